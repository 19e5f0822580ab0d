//! A counting semaphore in shared memory: what the article asks for to keep access in order.
//!
//! This file needs no other: copy it with `nix`. A semaphore is a number that never falls below zero, and a place to
//! sleep while it is zero: [`Semaphore::wait`] subtracts one, [`Semaphore::post`] adds one (sem_wait(3), sem_post(3);
//! `multiprocessing.Semaphore`'s `acquire` and `release`). The number is an atomic in the memory; the place to sleep
//! is futex(2), which glibc's `sem_t` uses, too. Unlike sem_timedwait(3) it does not go by the wall clock, which
//! may be set back.

#![expect(unsafe_code, reason = "futex(2) takes an address")]

use std::io::{self, ErrorKind};
use std::ptr;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::time::TimeSpec;

/// A counting semaphore: one word of memory that several processes map. Zero, as in new memory, is the value 0.
///
/// With the value 1 it is a lock: wait, use what is shared, post. It cannot detect that the process that should
/// post was killed: give each wait a timeout, or supervise the processes.
#[derive(Clone, Copy, Debug)]
pub struct Semaphore<'a> {
    /// The value, in units of `ONE`, and below it how many sleep or are about to: with none, a post needs no system
    /// call. A killed one stays counted, which costs that system call.
    word: &'a AtomicU64,
}

/// How long a wait spins before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// How long a wait sleeps before it looks again.
const SLICE: Duration = Duration::from_millis(250);

/// One of the value, which is the upper half of the word: it cannot run over into the sleepers.
const ONE: u64 = 1 << 32;

/// How many waits of this process in a row spun in vain, or did not spin.
static MISSES: AtomicU32 = AtomicU32::new(0);

impl Semaphore<'_> {
    /// The semaphore that `word` is, for instance one of `SharedMemory::words`.
    pub fn new(word: &AtomicU64) -> Semaphore<'_> {
        Semaphore { word }
    }

    /// Waits until the value is positive, then decrements it. Blocks up to `timeout` (`None`: as long as it takes).
    ///
    /// Fails with `TimedOut`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let take = || self.word.fetch_update(SeqCst, SeqCst, |word| word.checked_sub(ONE)).is_ok();
        if take() {
            return Ok(());
        }
        let start = Instant::now();
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        // A wake-up on another CPU costs some 50 µs: so spin that long first. But where that is in vain (a slow peer, or
        // one on the same CPU), only at the first miss in a row, the second, the fourth, the eighth …
        if (MISSES.fetch_add(1, Relaxed) % 8192 + 1).is_power_of_two() {
            let end = start + SPIN.min(timeout.unwrap_or(SPIN));
            while Instant::now() < end {
                if (0..20).any(|_| take()) {
                    MISSES.store(0, Relaxed);
                    return Ok(());
                }
            }
        }
        // Whatever ends the sleep (a post, a signal, the time), look again: another process may have won.
        while !take() {
            let left = deadline.map_or(SLICE, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let what = "semaphore: nobody posted in time";
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            self.word.fetch_add(1, SeqCst);
            // The kernel sleeps only if the value is still 0. The process that should wake us may be killed after its post, and
            // one that was woken instead of us before it takes: so nobody sleeps for longer than SLICE.
            self.futex(libc::FUTEX_WAIT, 0, Some(left.min(SLICE)));
            self.word.fetch_sub(1, SeqCst);
        }
        Ok(())
    }

    /// Adds one, and wakes a process that waits for it. Never blocks. (After 2³² posts that nobody took it begins at 0.)
    pub fn post(&self) {
        if self.word.fetch_add(ONE, SeqCst) as u32 > 0 {
            self.futex(libc::FUTEX_WAKE, 1, None);
        }
    }

    /// futex(2) on the value, the upper half of the word, between processes.
    fn futex(&self, operation: i32, number: u32, timeout: Option<Duration>) {
        let value =
            self.word.as_ptr().cast::<u32>().wrapping_add(cfg!(target_endian = "little").into());
        let timeout = timeout.map(TimeSpec::from);
        let timeout = timeout.as_ref().map_or(ptr::null(), |time| ptr::from_ref(time.as_ref()));
        // SAFETY: both addresses are valid for the length of the call (or null), and the kernel writes to
        // neither. Not covered: a process that wakes others at random; they look again, and no more.
        unsafe { libc::syscall(libc::SYS_futex, value, operation, number, timeout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semaphore_counts() {
        let soon = Some(Duration::from_millis(2));
        let word = AtomicU64::new(2 * ONE);
        let semaphore = Semaphore::new(&word);
        semaphore.wait(None).unwrap();
        semaphore.wait(soon).unwrap();
        let error = semaphore.wait(soon).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "semaphore: nobody posted in time");
        semaphore.post();
        semaphore.wait(Some(Duration::ZERO)).unwrap();
        semaphore.wait(Some(Duration::ZERO)).unwrap_err();
    }

    #[test]
    fn no_post_is_lost() {
        const TIMES: usize = 100_000;
        let words = [(); 2].map(|()| AtomicU64::new(0));
        let [ping, pong] = words.each_ref().map(Semaphore::new);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..TIMES).for_each(|_| (ping.wait(None).unwrap(), pong.post()).1));
            scope.spawn(|| (0..TIMES).for_each(|_| (ping.post(), pong.wait(None).unwrap()).1));
        });
        assert_eq!(words.map(AtomicU64::into_inner), [0, 0]);
    }
}
