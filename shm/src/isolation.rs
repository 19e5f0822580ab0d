//! Isolation: the picture of the article, with real addresses.
//!
//! 不同进程的地址空间是完全隔离的, the address spaces of different processes are completely isolated:
//! after a fork both processes have the same *virtual* addresses, but what lies behind them diverges. The kernel
//! gives the child a page of its own as soon as it writes (copy on write), unless the page is shared.
//!
//! ```text
//!           before the child writes          after
//!  parent   private ──▶ frame A ◀── private   private ──▶ A    C ◀── private   child
//!           shared  ──▶ frame B ◀── shared    shared  ──▶   B    ◀── shared
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use common::{Process, block_signals, say, supervise};
use shm::{SharedMemory, unique_name};

use crate::NAME;

/// The usual size of a page; a page of our own is aligned to it.
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Page(AtomicU64);

pub fn run() -> Result<()> {
    block_signals()?;
    let private = Box::new(Page(AtomicU64::new(1)));
    let memory = SharedMemory::create(&unique_name(NAME), PAGE)?;
    let (private, shared) = (&private.0, &memory.words()[0]);
    shared.store(1, Ordering::Relaxed);
    show(private, shared)?;

    let child = Process::spawn("child", || {
        // The same addresses, and still the same frames.
        show(private, shared)?;
        say!("writes 2 into both")?;
        private.store(2, Ordering::Relaxed);
        shared.store(2, Ordering::Relaxed);
        show(private, shared)
    })?;
    supervise([child])?;

    show(private, shared)?;
    ensure!(private.load(Ordering::Relaxed) == 1, "the private page is not private");
    ensure!(shared.load(Ordering::Relaxed) == 2, "the shared page is not shared");
    Ok(())
}

/// Prints where two pages are, virtually and really, and the number in each.
fn show(private: &AtomicU64, shared: &AtomicU64) -> Result<()> {
    for (kind, page) in [("private", private), ("shared ", shared)] {
        let number = page.load(Ordering::Relaxed); // also makes sure that the page is present
        let frame = frame(page.as_ptr() as usize)?;
        say!("{kind} page at {:p}, {frame}: {number}", page.as_ptr())?;
    }
    Ok(())
}

/// What to print of the physical page behind an address, its number: proc_pid_pagemap(5).
fn frame(address: usize) -> Result<String> {
    let pagemap = File::open("/proc/self/pagemap").context("open /proc/self/pagemap")?;
    let mut entry = [0; 8];
    // One entry of 64 bits for each page; the low 55 bits are the frame, or 0 if it is hidden.
    let read = pagemap.read_exact_at(&mut entry, (address / PAGE * 8) as u64);
    read.context("read /proc/self/pagemap")?;
    Ok(match u64::from_ne_bytes(entry) & ((1 << 55) - 1) {
        0 => "frame hidden (only root may see it)".to_owned(),
        frame => format!("frame {frame:#x}"),
    })
}
