//! A counting semaphore that forked processes share: `multiprocessing.Semaphore`, made of eventfd(2).
//!
//! The kernel keeps a counter: read(2) decrements it, write(2) increments it, and poll(2) blocks while it
//! is 0. This file needs no other.

use std::cell::Cell;
use std::hint::spin_loop;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// How long [`Semaphore::acquire`] spins at most before it blocks: about what a wake-up on another CPU costs.
const MAX_SPIN: Duration = Duration::from_micros(100);

/// After so many waits without success, try spinning again.
const RETRY_SPIN: u32 = 8192;

/// A counting semaphore for this process and all children forked later.
///
/// It is not `Sync`: one thread of each process uses it.
#[derive(Debug)]
pub struct Semaphore {
    eventfd: EventFd,
    /// How many waits in a row spun in vain, or did not spin.
    misses: Cell<u32>,
}

impl Semaphore {
    /// Makes a semaphore of this value: eventfd(2).
    pub fn new(value: u32) -> io::Result<Semaphore> {
        let flags = EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let eventfd = EventFd::from_value_and_flags(value, flags);
        let eventfd = eventfd.map_err(|errno| named("eventfd", errno))?;
        Ok(Semaphore { eventfd, misses: Cell::new(0) })
    }

    /// Takes one: true, or false if the deadline passed. `None` blocks as long as it takes.
    pub fn acquire(&self, deadline: Option<Instant>) -> io::Result<bool> {
        let mut acquired = self.try_acquire()? || self.spin(deadline)?;
        while !acquired {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let mut fds = [PollFd::new(self.eventfd.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, left.map(Into::into), None) {
                // Woken, or time to look at the clock. Another process may have won.
                Ok(_) | Err(Errno::EINTR) => acquired = self.try_acquire()?,
                Err(errno) => return Err(named("ppoll", errno)),
            }
        }
        Ok(true)
    }

    fn try_acquire(&self) -> io::Result<bool> {
        match self.eventfd.read() {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(named("read", errno)),
        }
    }

    /// Tries for as long as it pays: each second miss in a row halves the time, soon to nothing, since values
    /// are rare, or both sides share one CPU. A success, also of a rare retry, restores it.
    fn spin(&self, deadline: Option<Instant>) -> io::Result<bool> {
        let missed = self.misses.take();
        let mut end = Instant::now() + MAX_SPIN / 2u32.saturating_pow(missed / 2);
        end = deadline.map_or(end, |deadline| deadline.min(end));
        while Instant::now() < end {
            if self.try_acquire()? {
                return Ok(true);
            }
            spin_loop();
        }
        self.misses.set((missed + 1) % RETRY_SPIN);
        Ok(false)
    }

    /// Gives one back, and wakes a process that waits for it. Never blocks.
    pub fn release(&self) -> io::Result<()> {
        self.eventfd.write(1).map(drop).map_err(|errno| named("write", errno))
    }
}

/// Names the call that failed.
fn named(call: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{call} (eventfd): {error}"))
}
