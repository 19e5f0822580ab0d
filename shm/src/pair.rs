//! Memory where two strangers meet at a name, in either order; each notices when the other one is gone.
//!
//! It needs `memory.rs` and `semaphore.rs` beside it. Whoever comes first makes the memory, locks a byte of it that says
//! which side this is, and then gives it the name. Whoever comes second locks another byte, and unlinks the name: from
//! then on nobody else can come, and nothing is left behind, however the two end. The kernel unlocks a byte when its
//! process dies (fcntl(2), `F_OFD_SETLK`). So a peer has come once the name is gone, and is here while its byte is locked.
//!
//! The name is unlinked only under the second's lock: by the second; by a first that leaves alone; and by whoever finds
//! what a killed first has left. So nobody ever unlinks a name that others have made anew.
//!
//! # Hazards
//!
//! - Both must come for the same size, and agree on who starts: new memory is all zeros.
//! - A fork copies this, as it copies the end of a pipe: the peer is here until the last copy is closed. Keep it in
//!   the parent and let a child borrow it.
//! - What a killed process left is removed: memory of this name and size that nobody has locked.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock};
use nix::unistd::linkat;

use super::memory::{SharedMemory, named, open};
use super::semaphore::Semaphore;

/// Shared memory of two processes; dropping it leaves.
#[derive(Debug)]
pub struct Pair {
    memory: SharedMemory,
    side: Side,
    /// The process that made it, if this side came first.
    maker: Option<u32>,
}

/// Which of the two a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that writes.
    Writer = 0,
    /// The one that reads.
    Reader = 1,
}

/// The byte that whoever comes second locks. Bytes 0 and 1 are those of a writer and a reader that came first.
const SECOND: i64 = 2;

/// How long to try for that lock: whoever has it while the name is still there is about to unlink it, unless it was
/// stopped (SIGSTOP) just then.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a wait sleeps before it looks whether the other side is still there.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(250);

impl Pair {
    /// Comes to `name` as one side, for `size` bytes, and does not wait for the other.
    ///
    /// Fails with `AlreadyExists` if a process waits there as this side, or with another size; with `TimedOut` if one
    /// that is about to unlink the name does not within a second; and as [`SharedMemory::create`] does otherwise.
    pub fn open(name: &str, size: usize, side: Side) -> io::Result<Pair> {
        let refuse =
            |what: String| Err(named("open", name, io::Error::new(ErrorKind::AlreadyExists, what)));
        loop {
            let file = match open(name, OFlag::empty()) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    match Pair::come_first(name, size, side) {
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                        made => return made,
                    }
                }
                file => file?,
            };
            lock_in_time(&file).map_err(|error| named("open", name, error))?;
            let there = file.metadata()?;
            if there.nlink() == 0 {
                continue; // unlinked while we waited
            }
            if is_locked(&file, side as i64) {
                return refuse(format!("it has a {} already", side.name()));
            }
            if there.len() != size as u64 {
                return refuse(format!("it has {} bytes", there.len()));
            }
            let memory = SharedMemory::map(name, file, there.len())?;
            let pair = Pair { memory, side, maker: None };
            let has_peer = pair.has_peer();
            SharedMemory::remove(name)?;
            if has_peer {
                return Ok(pair);
            }
            // It was left by a killed process.
        }
    }

    /// Makes the memory; only when it is complete and locked does it get its name: linkat(2).
    fn come_first(name: &str, size: usize, side: Side) -> io::Result<Pair> {
        let (dir, flags) = (Path::new("/dev/shm"), OFlag::O_TMPFILE);
        let mut options = File::options();
        options.read(true).write(true).mode(0o600).custom_flags(flags.bits());
        let file = options.open(dir).map_err(|error| named("open /dev/shm for", name, error))?;
        lock(&file, side as i64).map_err(|errno| named("fcntl", name, errno.into()))?;
        let memory = SharedMemory::map(name, file, size as u64)?;
        let unnamed = format!("/proc/self/fd/{}", memory.file.as_raw_fd());
        let path = dir.join(name.trim_start_matches('/'));
        linkat(AT_FDCWD, &*unnamed, AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(|errno| named("linkat", name, errno.into()))?;
        Ok(Pair { memory, side, maker: Some(std::process::id()) })
    }

    /// [`Semaphore::wait`] for what the other side posts, and within 250 ms a `BrokenPipe` when it is gone.
    ///
    /// Waits as long as it takes for a peer that has not come yet.
    pub fn wait(&self, semaphore: Semaphore) -> io::Result<()> {
        while semaphore.wait(Some(LIVENESS_INTERVAL)).is_err() {
            if self.memory.has_name() || self.has_peer() {
                continue; // it has not come yet, or is here; in this order, since it locks before it unlinks
            }
            // Once more: it may have posted before it left.
            return semaphore.wait(Some(Duration::ZERO)).map_err(|_| {
                let what = format!("the {} is gone", self.side.other().name());
                named("wait", self.memory.name(), io::Error::new(ErrorKind::BrokenPipe, what))
            });
        }
        Ok(())
    }

    /// Whether the other side is here.
    fn has_peer(&self) -> bool {
        let peer_came_second = self.maker.is_some();
        is_locked(
            &self.memory.file,
            if peer_came_second { SECOND } else { self.side.other() as i64 },
        )
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // A forked child has a copy of this value, but the name is not its own. Looked at twice: the second may come
        // until this side has its lock.
        let is_ours = self.maker == Some(std::process::id()) && self.memory.has_name();
        if is_ours && lock_in_time(&self.memory.file).is_ok() && self.memory.has_name() {
            let _ = SharedMemory::remove(self.memory.name());
        }
    }
}

impl Deref for Pair {
    type Target = SharedMemory;

    fn deref(&self) -> &SharedMemory {
        &self.memory
    }
}

impl Side {
    fn other(self) -> Side {
        if self == Side::Writer { Side::Reader } else { Side::Writer }
    }

    fn name(self) -> &'static str {
        if self == Side::Writer { "writer" } else { "reader" }
    }
}

/// Locks the second's byte, or fails with `TimedOut`.
fn lock_in_time(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while let Err(errno) = lock(file, SECOND) {
        if file.metadata()?.nlink() == 0 {
            return Ok(()); // nothing to unlink any more: the second has it for as long as it is here
        }
        if errno != Errno::EAGAIN {
            return Err(errno.into());
        }
        if Instant::now() > deadline {
            let what = "another process stays there";
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
        std::thread::sleep(Duration::from_millis(1)); // there is no event with a timeout
    }
    Ok(())
}

/// Locks one byte, or fails with `EAGAIN`.
fn lock(file: &File, byte: i64) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(byte))).map(drop)
}

/// Whether another process has locked a byte.
fn is_locked(file: &File, byte: i64) -> bool {
    let mut there = one_byte(byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut there)).is_err() || there.l_type != F_UNLCK as _
}

fn one_byte(byte: i64) -> flock {
    let (l_type, l_whence) = (F_WRLCK as _, SEEK_SET as _);
    flock { l_type, l_whence, l_start: byte as _, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::memory::unique_name;
    use super::*;
    use std::path::Path;

    fn exists(name: &str) -> bool {
        Path::new("/dev/shm").join(&name[1..]).exists()
    }

    fn refused(name: &str, size: usize, side: Side) -> String {
        let error = Pair::open(name, size, side).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        error.to_string()
    }

    #[test]
    fn two_meet_in_either_order_and_the_name_is_gone() {
        for side in [Side::Writer, Side::Reader] {
            let name = unique_name("/cnblogs");
            let first = Pair::open(&name, 64, side).unwrap();
            assert_eq!(
                refused(&name, 64, side),
                format!("open {name}: it has a {} already", side.name())
            );
            assert_eq!(refused(&name, 65, side.other()), format!("open {name}: it has 64 bytes"));
            let second = Pair::open(&name, 64, side.other()).unwrap();
            assert!(!exists(&name));
            first.words()[0].store(7, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(second.words()[0].load(std::sync::atomic::Ordering::SeqCst), 7);
            // The next pair meets while this one is at work.
            let next = Pair::open(&name, 64, side).unwrap();
            drop((first, second));
            assert!(exists(&name));
            drop(next);
            assert!(!exists(&name));
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_noticed_and_its_last_post_is_not_lost() {
        let name = unique_name("/cnblogs");
        for posts in [0, 2] {
            let writer = Pair::open(&name, 64, Side::Writer).unwrap();
            let reader = Pair::open(&name, 64, Side::Reader).unwrap();
            (0..posts).for_each(|_| Semaphore::new(&writer.words()[0]).post());
            drop(writer);
            let posted = Semaphore::new(&reader.words()[0]);
            (0..posts).for_each(|_| reader.wait(posted).unwrap());
            let error = reader.wait(posted).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            assert_eq!(error.to_string(), format!("wait {name}: the writer is gone"));
        }
    }

    #[test]
    fn what_killed_processes_left_is_taken_over_and_other_memory_is_not() {
        let name = unique_name("/cnblogs");
        let left = SharedMemory::create(&name, 64).unwrap();
        left.words()[0].store(7, std::sync::atomic::Ordering::SeqCst);
        let pair = Pair::open(&name, 64, Side::Reader).unwrap();
        assert_eq!(pair.read(64), [0; 64]);
        drop(left);
        assert!(exists(&name));
        drop(pair);
        assert!(!exists(&name));
        let other = SharedMemory::create(&name, 1024).unwrap();
        assert_eq!(refused(&name, 64, Side::Reader), format!("open {name}: it has 1024 bytes"));
        drop(other);
        for size in [0, usize::MAX] {
            let error = Pair::open(&name, size, Side::Reader).unwrap_err();
            assert!(error.to_string().starts_with("posix_fallocate "), "{error}");
            assert!(!exists(&name));
        }
    }

    /// A process that was stopped just where it is about to unlink the name.
    #[test]
    fn nobody_waits_long_for_a_stopped_process() {
        let name = unique_name("/cnblogs");
        let first = Pair::open(&name, 64, Side::Writer).unwrap();
        let stopped = open(&name, OFlag::empty()).unwrap();
        lock(&stopped, SECOND).unwrap();
        let error = Pair::open(&name, 64, Side::Reader).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(stopped);
        // Nor for a second that has come in the meantime.
        let late = open(&name, OFlag::empty()).unwrap();
        let second = Pair::open(&name, 64, Side::Reader).unwrap();
        let start = Instant::now();
        lock_in_time(&late).unwrap();
        assert!(start.elapsed() < LOCK_TIMEOUT);
        drop((first, second));
        assert!(!exists(&name));
    }
}
