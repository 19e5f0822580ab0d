//! A counting semaphore in shared memory: what the article asks for to keep access in order.
//!
//! It needs `memory.rs` beside it. A semaphore is a number that never falls below zero, and a place to sleep while
//! it is zero: [`Semaphore::wait`] subtracts one, [`Semaphore::post`] adds one (sem_wait(3), sem_post(3);
//! `multiprocessing.Semaphore`'s `acquire` and `release`). The number is an atomic in the page; the place to sleep
//! is futex(2), which glibc's `sem_t` uses, too. Unlike sem_timedwait(3) it does not go by the wall clock, which
//! may be set back.

#![expect(unsafe_code, reason = "futex(2) takes an address, and the page is raw memory")]

use std::io;
use std::io::ErrorKind::TimedOut;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::time::TimeSpec;

use super::memory::{Object, SharedMemory, failed, named};

/// A counting semaphore that forked processes share.
///
/// With the value 1 it is a lock: wait, use what is shared, post. It cannot detect that the process that should
/// post was killed: give each wait a timeout, or supervise the processes.
#[derive(Debug)]
pub struct Semaphore {
    memory: SharedMemory,
}

impl Semaphore {
    /// Makes a semaphore for the processes forked from now on, which inherit it: `multiprocessing.Semaphore(value)`.
    ///
    /// It has no name, so nothing is left behind. Fails as memfd_create(2) and posix_fallocate(3) do.
    pub fn new(value: u32) -> io::Result<Semaphore> {
        let (name, size) = ("semaphore", size_of::<Futex>() as u64);
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC);
        let file = file.map_err(|errno| named("memfd_create", name, errno.into()))?.into();
        let object = Object { name: name.to_owned(), file, owner: None };
        object.reserve(size)?;
        let semaphore = Semaphore { memory: object.map(size)? };
        semaphore.futex().value.store(value, SeqCst);
        Ok(semaphore)
    }

    /// Waits until the value is positive, then decrements it. Blocks up to `timeout` (`None`: as long as it takes).
    ///
    /// Fails with `TimedOut`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let (futex, deadline) = (self.futex(), deadline(timeout));
        // Whatever ends the sleep (a post, a signal, the time), look again: another process may have won.
        while futex.value.fetch_update(SeqCst, SeqCst, |value| value.checked_sub(1)).is_err() {
            if !futex.sleep(0, left(deadline)) {
                return Err(failed("wait", "semaphore", TimedOut, "nobody posted in time"));
            }
        }
        Ok(())
    }

    /// Adds one, and wakes a process that waits for it. Never blocks.
    ///
    /// # Panics
    ///
    /// If the value is `u32::MAX`, and would come round to 0 (sem_post(3): EOVERFLOW).
    pub fn post(&self) {
        let one_more = |value: u32| value.checked_add(1);
        let posted = self.futex().value.fetch_update(SeqCst, SeqCst, one_more);
        assert!(posted.is_ok(), "post: the semaphore's value is at its maximum");
        self.futex().wake();
    }

    fn futex(&self) -> &Futex {
        // SAFETY: the mapping has the size of a futex, starts at a page, and lives as long as
        // `self`; both fields are atomics, of which any bytes are valid. Not covered: a
        // process that writes nonsense over it; waits may then end early or never.
        unsafe { &*self.memory.pointer().cast() }
    }
}

/// A number in memory that several processes map, and a place to sleep until it changes.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Futex {
    pub(crate) value: AtomicU32,
    /// How many sleep, or are about to; with none, waking needs no system call. A killed one stays counted,
    /// which costs that system call.
    sleepers: AtomicU32,
}

impl Futex {
    /// Wakes a process that sleeps, after the value was changed. It sees all that we wrote before.
    pub(crate) fn wake(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            self.futex(libc::FUTEX_WAKE, 1, None);
        }
    }

    /// Sleeps while the value is `value`, and no longer than `timeout` (`None`: as long as it takes). A change that
    /// came before is not missed. May return early. False, without having slept, if there is no time.
    pub(crate) fn sleep(&self, value: u32, timeout: Option<Duration>) -> bool {
        if timeout == Some(Duration::ZERO) {
            return false;
        }
        self.sleepers.fetch_add(1, SeqCst);
        self.futex(libc::FUTEX_WAIT, value, timeout);
        self.sleepers.fetch_sub(1, SeqCst);
        true
    }

    /// futex(2) on the value, between processes.
    fn futex(&self, operation: i32, value: u32, timeout: Option<Duration>) {
        let timeout = timeout.map(TimeSpec::from);
        let timeout =
            timeout.as_ref().map_or(std::ptr::null(), |time| std::ptr::from_ref(time.as_ref()));
        // SAFETY: both addresses are valid for the length of the call (or null), and the kernel writes to
        // neither. Not covered: a process that wakes others at random; they look again, and no more.
        unsafe { libc::syscall(libc::SYS_futex, self.value.as_ptr(), operation, value, timeout) };
    }
}

/// When a timeout that begins now is over. One that the clock cannot express is as good as none.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// How much time is left.
pub(crate) fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semaphore_counts() {
        let soon = Some(Duration::from_millis(2));
        let semaphore = Semaphore::new(2).unwrap();
        semaphore.wait(None).unwrap();
        semaphore.wait(soon).unwrap();
        let error = semaphore.wait(soon).unwrap_err();
        assert_eq!(error.kind(), TimedOut);
        assert_eq!(error.to_string(), "wait semaphore: nobody posted in time");
        semaphore.post();
        semaphore.wait(Some(Duration::ZERO)).unwrap();
        semaphore.wait(Some(Duration::ZERO)).unwrap_err();
    }

    #[test]
    #[should_panic(expected = "post: the semaphore's value is at its maximum")]
    fn a_post_too_many_is_not_lost_silently() {
        Semaphore::new(u32::MAX).unwrap().post();
    }

    #[test]
    fn no_post_is_lost() {
        const TIMES: usize = 100_000;
        let [ping, pong] = [(); 2].map(|()| Semaphore::new(0).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| (0..TIMES).for_each(|_| (ping.wait(None).unwrap(), pong.post()).1));
            scope.spawn(|| (0..TIMES).for_each(|_| (ping.post(), pong.wait(None).unwrap()).1));
        });
        for semaphore in [ping, pong] {
            semaphore.wait(Some(Duration::ZERO)).unwrap_err();
            assert_eq!(semaphore.futex().sleepers.load(SeqCst), 0);
        }
    }
}
