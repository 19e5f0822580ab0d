//! Isolation: the picture of the article, with real addresses.
//!
//! 不同进程的地址空间是完全隔离的: after a fork both processes have the same *virtual* addresses, but
//! what is behind them parts. The kernel gives the child a page of its own as soon as it writes
//! (copy on write), unless the page is shared.
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
use common::{Process, hold_signals, say, supervise};
use shm::SharedMemory;

/// The usual size of a page; a page of our own is aligned to it.
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Page([AtomicU64; PAGE / 8]);

pub fn both() -> Result<()> {
    hold_signals()?;
    let private = Box::new(Page([const { AtomicU64::new(0) }; PAGE / 8]));
    let shared = SharedMemory::create(&crate::unguessable(), PAGE)?;
    write(&private.0, "Hello");
    write(shared.words(), "Hello");
    say!("private page at {}", describe(&private.0)?);
    say!("shared  page at {}", describe(shared.words())?);

    let child = Process::spawn("child", || {
        // The same addresses, and still the same frames.
        say!("private page at {}", describe(&private.0)?);
        say!("shared  page at {}", describe(shared.words())?);
        say!("writes Alpha_Panda into both");
        write(&private.0, "Alpha_Panda");
        write(shared.words(), "Alpha_Panda");
        say!("private page at {}", describe(&private.0)?);
        say!("shared  page at {}", describe(shared.words())?);
        Ok(())
    })?;
    supervise([child])?;

    say!("private page at {}", describe(&private.0)?);
    say!("shared  page at {}", describe(shared.words())?);
    ensure!(read(&private.0) == "Hello", "the private page is not private");
    ensure!(read(shared.words()) == "Alpha_Panda", "the shared page is not shared");
    Ok(())
}

fn write(page: &[AtomicU64], text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(16, 0);
    for (word, eight) in page.iter().zip(bytes.chunks_exact(8)) {
        let new = eight.iter().rev().fold(0, |new, byte| new << 8 | u64::from(*byte));
        word.store(new, Ordering::Relaxed);
    }
}

fn read(page: &[AtomicU64]) -> String {
    let bytes = page.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
    bytes.take_while(|byte| *byte != 0).map(char::from).collect()
}

/// Where a page is, virtually and really, and what it says.
fn describe(page: &[AtomicU64]) -> Result<String> {
    let text = read(page); // also sees to it that the page is there
    let address = page.as_ptr() as usize;
    let frame = match frame(address)? {
        Some(frame) => format!("frame {frame:#x}"),
        None => "frame hidden (only root may see it)".to_owned(),
    };
    Ok(format!("{address:#x}, {frame}: {text}"))
}

/// The number of the physical page behind an address: proc_pid_pagemap(5).
fn frame(address: usize) -> Result<Option<u64>> {
    let pagemap = File::open("/proc/self/pagemap").context("open /proc/self/pagemap")?;
    let mut entry = [0; 8];
    // One entry of 64 bits for each page; the low 55 bits are the frame, or 0 if it is hidden.
    pagemap
        .read_exact_at(&mut entry, (address / PAGE * 8) as u64)
        .context("read /proc/self/pagemap")?;
    let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
    Ok((frame != 0).then_some(frame))
}
