//! The newest value, for any number of readers: a sequence lock in shared memory.
//!
//! ```text
//!             ┌────────── one page ──────────┐
//!  writer ──▶ │ sequence │ x │ y │ z         │ ──▶ reader, reader, …
//!             └──────────────────────────────┘
//! ```
//!
//! Run `cargo run -p shm --example latest writer [NAME]` and, in any number of other terminals and in any order,
//! `cargo run -p shm --example latest reader [NAME]`. The sequence is odd while the writer writes: a reader that saw it
//! odd, or changed, reads again. So it never gets a mixture of two values, and never holds up the writer. That is for a
//! few words: of long data a reader would never see a whole value; for those take `frames.rs`. A reader that polls each
//! millisecond takes 4 to 5 % of a CPU. NAME is the writer's own: of this user it replaces whatever has it.

use std::fs::File;
use std::io::ErrorKind::{BrokenPipe, NotFound, UnexpectedEof};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::{log, stop_signals, stop_status};
use nix::fcntl::{Flock, FlockArg, OFlag, posix_fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::shm_open;
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use shm::SharedMemory;

const SIZE: usize = 4 * size_of::<u64>();

fn main() -> Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let (role, name) = (args.next(), args.next());
    let name = name.as_deref().unwrap_or("/cnblogs-latest");
    match role.as_deref() {
        Some("writer") => write(name),
        Some("reader") => read(name),
        _ => bail!("expected: writer or reader, and perhaps the NAME of the memory"),
    }
}

fn write(name: &str) -> Result<ExitCode> {
    let stop = stop_signals()?; // from here on Ctrl-C cannot skip the removal
    let (_lock, memory) = claim(name)?;
    log(&format!("writes {name}"));
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let mut x = 0.0;
    while fds[0].any() != Some(true) {
        store(memory.words(), [x, 2.0 * x, 3.0 * x]);
        x += 1.0;
        let _ = poll(&mut fds, PollTimeout::from(1u8)); // the pace of a sensor, say
    }
    SharedMemory::remove(name)?;
    stop_status(&stop)
}

/// Makes the memory, or takes what a killed writer left, and locks it for the only writer. Only the one that has locked
/// what really has the name uses or removes it. The kernel unlocks it when the process dies.
fn claim(name: &str) -> Result<(Flock<File>, SharedMemory)> {
    let (flags, mode) = (OFlag::O_CREAT | OFlag::O_RDWR, Mode::S_IRUSR | Mode::S_IWUSR);
    // For a moment, since one that was killed may still be dying.
    for _ in 0..100 {
        let file = shm_open(name, flags, mode).with_context(|| format!("shm_open {name}"))?;
        match Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) {
            Ok(lock) if lock.metadata()?.nlink() > 0 => {
                let there = lock.metadata()?;
                let (owner, length) = (there.uid(), there.len() as usize);
                ensure!(owner == geteuid().as_raw(), "{name} belongs to user {owner}");
                if length == 0 {
                    posix_fallocate(&*lock, 0, SIZE as i64)
                        .inspect_err(|_| drop(SharedMemory::remove(name)))
                        .with_context(|| format!("posix_fallocate {name}"))?;
                }
                if [0, SIZE].contains(&length) {
                    return Ok((lock, SharedMemory::open(name)?));
                }
                SharedMemory::remove(name)?; // another version's: make it anew
            }
            _ => sleep(Duration::from_millis(1)),
        }
    }
    bail!("another writer runs: {name} is locked")
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

fn read(name: &str) -> Result<ExitCode> {
    log(&format!("reads {name}, as soon as there is a writer"));
    let mut last = 0;
    loop {
        // By name each time: a writer that was started again may have made a new one.
        let now = match SharedMemory::open(name) {
            Ok(memory) if memory.size() == SIZE => load(memory.words()),
            Ok(memory) => bail!("{name} is another version's: it has {} bytes", memory.size()),
            // Not made yet, or not complete. (What may not be opened is an error.)
            Err(error) if [NotFound, UnexpectedEof].contains(&error.kind()) => None,
            Err(error) => bail!(error),
        };
        let Some((sequence, [x, y, z])) = now.filter(|now| now.0 != last) else {
            sleep(Duration::from_millis(1)); // nothing new, and the kernel has no event for that
            continue;
        };
        last = sequence;
        match writeln!(io::stdout(), "{x} {y} {z}") {
            Err(error) if error.kind() == BrokenPipe => return Ok(ExitCode::SUCCESS),
            written => written.context("write stdout")?,
        }
    }
}
