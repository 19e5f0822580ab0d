//! A counting semaphore that forked processes share: `multiprocessing.Semaphore`, made of eventfd(2).
//!
//! The kernel keeps a counter: read(2) decrements it, write(2) increments it, and poll(2) blocks while it
//! is 0. This file needs no other.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A counting semaphore for this process and all children forked later.
#[derive(Debug)]
pub struct Semaphore(EventFd);

impl Semaphore {
    /// Makes a semaphore of this value: eventfd(2).
    pub fn new(value: u32) -> io::Result<Semaphore> {
        let flags = EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let eventfd = EventFd::from_value_and_flags(value, flags);
        eventfd.map(Semaphore).map_err(|errno| named("eventfd", errno))
    }

    /// Takes one: true, or false if the deadline passed. `None` blocks as long as it takes.
    pub fn acquire(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            match self.0.read() {
                Ok(_) => return Ok(true),
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(named("read", errno)),
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, left.map(Into::into), None) {
                // Woken, or time to look at the clock. Retry: another process may have won.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(named("ppoll", errno)),
            }
        }
    }

    /// Gives one back, and wakes a process that waits for it. Never blocks.
    pub fn release(&self) -> io::Result<()> {
        self.0.write(1).map(drop).map_err(|errno| named("write", errno))
    }
}

/// Names the call that failed.
fn named(call: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{call} (eventfd): {error}"))
}
