//! The newest value, for any number of readers: a sequence lock in shared memory.
//!
//! ```text
//!             ┌────────── one page ──────────┐
//!  writer ──▶ │ sequence │ time │ x │ y      │ ──▶ reader, reader, …
//!             └──────────────────────────────┘
//! ```
//!
//! Run `cargo run -p shm --example latest writer` and, in any number of other terminals and in any order,
//! `cargo run -p shm --example latest reader`. (A mailbox keeps the *oldest* value, for one reader.) The sequence
//! is odd while the writer writes: a reader that saw it odd, or changed, reads again. So it never gets a mixture of
//! two values, and never holds up the writer. What a killed writer left is used by the next one.

use std::fs::File;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use common::{Process, block_signals, supervise};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use shm::SharedMemory;

const NAME: &str = "/cnblogs-latest";
const SIZE: usize = 4 * size_of::<u64>();

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("writer") => write(),
        Some("reader") => read(),
        _ => Err(anyhow!("expected: writer or reader")),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(signal) = error.downcast_ref::<Signal>() {
        return ExitCode::from(128 + *signal as u8); // Ctrl-C is no error
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn write() -> Result<()> {
    block_signals()?; // until `supervise` takes them: Ctrl-C must not skip the removal
    let memory = match SharedMemory::create(NAME, SIZE) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => SharedMemory::open(NAME)?,
        memory => memory?,
    };
    // One writer at a time; the kernel unlocks it when we die.
    let lock = Flock::lock(File::open(format!("/dev/shm{NAME}"))?, FlockArg::LockExclusiveNonblock);
    let _lock = lock.ok().context("another writer runs")?;
    println!("writes {NAME}");
    let result = Process::spawn("writer", || {
        for step in 0u64.. {
            let x = step as f64;
            store(memory.words(), [x, 2.0 * x, 3.0 * x]);
            sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let result = supervise([result?]);
    SharedMemory::remove(NAME)?;
    result
}

fn store(words: &[AtomicU64], value: [f64; 3]) {
    // Odd already if a writer was killed while it wrote.
    let odd = words[0].load(Relaxed) | 1;
    words[0].store(odd, Relaxed);
    fence(Release); // a reader that sees one of the new words sees the odd sequence, too
    words[1..].iter().zip(value).for_each(|(word, number)| word.store(number.to_bits(), Relaxed));
    words[0].store(odd.wrapping_add(1), Release);
}

/// The value and its sequence, or `None` while it is written.
fn load(words: &[AtomicU64]) -> Option<(u64, [f64; 3])> {
    let before = words[0].load(Acquire);
    let value = [1, 2, 3].map(|index| f64::from_bits(words[index].load(Relaxed)));
    fence(Acquire); // what was read is older than what is read now
    (before % 2 == 0 && words[0].load(Relaxed) == before).then_some((before, value))
}

fn read() -> Result<()> {
    println!("reads {NAME}, as soon as there is a writer");
    let mut last = None;
    loop {
        // By name each time: a writer that was started again may have made a new one.
        let now = SharedMemory::open(NAME).ok().and_then(|memory| load(memory.words()));
        match now.filter(|now| now.0 > 0 && Some(now.0) != last) {
            Some((sequence, [x, y, z])) => {
                println!("{x} {y} {z}");
                last = Some(sequence);
            }
            // Nothing new, or no writer yet: the kernel has no event for that.
            None => sleep(Duration::from_millis(1)),
        }
    }
}
