//! Numbers that forked processes hand to each other: a pipe with the numbers in it. (A counting semaphore whose
//! permits are numbered.)
//!
//! read(2) takes one out, write(2) puts one in, and poll(2) blocks while there is none. All are 8 bytes long, so
//! Linux never splits one. This file needs no other.

use std::cell::Cell;
use std::fs::File;
use std::hint::spin_loop;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::unistd::pipe2;

/// The most that [`Tokens`] hold: this many fit in the smallest pipe, two pages, at any offset in the page. (Before
/// Linux 5.14 a user with more than a thousand pipes gets smaller ones, which may be too small.)
pub const MAX_TOKENS: usize = 4096 / size_of::<u64>();

/// How long [`Tokens::acquire`] spins at most before it blocks: about what a wake-up on another CPU costs.
const MAX_SPIN: Duration = Duration::from_micros(100);

/// After this many waits without a successful spin, try spinning again.
const RETRY_SPIN: u32 = 8192;

/// Numbers for this process and all children forked later; each is acquired by one of them.
///
/// It is not `Sync`: one thread of each process uses it.
#[derive(Debug)]
pub struct Tokens {
    read: File,
    write: File,
    /// How many waits in a row spun in vain, or did not spin.
    misses: Cell<u32>,
}

impl Tokens {
    /// Makes a pipe without a number in it: pipe2(2).
    pub fn new() -> io::Result<Tokens> {
        let pipe = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK);
        let (read, write) = pipe.map_err(|errno| named("pipe2", errno.into()))?;
        Ok(Tokens { read: read.into(), write: write.into(), misses: Cell::new(0) })
    }

    /// Takes the oldest number, or `None` if the deadline passed. No deadline: blocks as long as it takes.
    pub fn acquire(&self, deadline: Option<Instant>) -> io::Result<Option<u64>> {
        let mut token = self.try_acquire()?;
        if token.is_none() {
            token = self.spin(deadline)?;
        }
        while token.is_none() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            let mut fds = [PollFd::new(self.read.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, left.map(Into::into), None) {
                // Woken, or time to look at the clock. Another process may have won.
                Ok(_) | Err(Errno::EINTR) => token = self.try_acquire()?,
                Err(errno) => return Err(named("ppoll", errno.into())),
            }
        }
        Ok(token)
    }

    /// Puts a number in, and wakes the processes that wait for one. Never blocks.
    pub fn release(&self, token: u64) -> io::Result<()> {
        (&self.write).write_all(&token.to_ne_bytes()).map_err(|error| named("write", error))
    }

    fn try_acquire(&self) -> io::Result<Option<u64>> {
        let mut token = [0; 8];
        match (&self.read).read_exact(&mut token) {
            Ok(()) => Ok(Some(u64::from_ne_bytes(token))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(named("read", error)),
        }
    }

    /// Spins as long as that pays: every second miss in a row halves the time, soon to zero, since values are
    /// rare, or both sides share one CPU. A success restores it, even that of a rare retry.
    fn spin(&self, deadline: Option<Instant>) -> io::Result<Option<u64>> {
        let missed = self.misses.take();
        let mut end = Instant::now() + MAX_SPIN / 2u32.saturating_pow(missed / 2);
        end = deadline.map_or(end, |deadline| deadline.min(end));
        while Instant::now() < end {
            if let Some(token) = self.try_acquire()? {
                return Ok(Some(token));
            }
            spin_loop();
        }
        self.misses.set((missed + 1) % RETRY_SPIN);
        Ok(None)
    }
}

/// Names the call that failed.
pub fn named(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} (queue): {error}"))
}
