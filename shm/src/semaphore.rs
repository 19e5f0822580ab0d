//! A counting semaphore in shared memory: what the article asks for to keep access in order.
//!
//! It needs `memory.rs` beside it. A semaphore is a number that never gets below zero, and a place to sleep
//! while it is zero: [`Semaphore::wait`] takes one off, [`Semaphore::post`] adds one (sem_wait(3),
//! sem_post(3); `multiprocessing.Semaphore`'s `acquire` and `release`). The number is an atomic in the
//! page; the place to sleep is futex(2), which glibc's `sem_t` uses, too. Unlike sem_timedwait(3) it
//! does not go by the wall clock, which may be set back.

#![expect(unsafe_code, reason = "futex(2) takes an address, and the page is raw memory")]

use std::cell::Cell;
use std::fs;
use std::io;
use std::io::ErrorKind::{InvalidData, TimedOut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::time::TimeSpec;

use super::memory::{RESERVED, SharedMemory, failed, named};

/// How long a wait sleeps before it looks whether the other side is still there.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(250);

/// A counting semaphore that forked processes share.
///
/// With the value 1 it is a lock: wait, use what is shared, post. It
/// cannot tell that a process which should post was killed: give waits a timeout, or supervise.
#[derive(Debug)]
pub struct Semaphore {
    memory: SharedMemory,
}

impl Semaphore {
    /// Makes a semaphore for the processes forked from now on, which inherit it: nobody opens it by its
    /// name. Dropping it in the process that made it unlinks the name. See [`SharedMemory::create`].
    pub fn create(name: &str, value: u32) -> io::Result<Semaphore> {
        let memory = SharedMemory::create_with(name, size_of::<RawSemaphore>(), RESERVED)?;
        let semaphore = Semaphore { memory };
        semaphore.raw().value.store(value, SeqCst);
        Ok(semaphore)
    }

    /// Takes one off, and blocks up to `timeout` (`None`: as long as it takes) while there is none.
    ///
    /// Fails with `TimedOut`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let late = || failed("wait", self.memory.name(), TimedOut, "nobody posted in time");
        self.raw().wait(timeout, || false).then_some(()).ok_or_else(late)
    }

    /// Adds one, and wakes a process that waits for it. Never blocks.
    pub fn post(&self) {
        self.raw().post();
    }

    fn raw(&self) -> &RawSemaphore {
        // SAFETY: the mapping has the size of a semaphore, starts at a page, and lives as long as
        // `self`; both fields are atomics, of which any bytes are valid. Not covered: a
        // process that writes nonsense over it; waits may then end early or never.
        unsafe { &*self.memory.pointer().cast() }
    }
}

/// How long a wait spins at most before it sleeps: about what a wake-up on another CPU costs.
const MAX_SPIN: Duration = Duration::from_micros(100);

/// After so many waits without success, try spinning again.
const RETRY_SPIN: u32 = 8192;

/// A semaphore in memory that several processes map. All zeros is one of value 0.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct RawSemaphore {
    value: AtomicU32,
    /// How many sleep, or are about to; with none, post needs no system call. A killed one stays counted,
    /// which costs that system call.
    sleepers: AtomicU32,
}

impl RawSemaphore {
    /// Adds one. Whoever waits sees all that we wrote before.
    pub(crate) fn post(&self) {
        self.value.fetch_add(1, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            self.futex(libc::FUTEX_WAKE, 1, Duration::ZERO);
        }
    }

    /// Takes one off if there is one. No system call.
    pub(crate) fn try_wait(&self) -> bool {
        self.value.fetch_update(SeqCst, SeqCst, |value| value.checked_sub(1)).is_ok()
    }

    /// Takes one off if there is one in time. No system call. `copying` is how long the other side may be busy
    /// with a copy, in addition to [`MAX_SPIN`].
    ///
    /// Spins as long as that pays: every second miss in a row halves the time, soon to zero, since messages
    /// are rare, or both sides share one CPU. A success restores it, even that of a rare retry.
    pub(crate) fn spin(&self, copying: Duration, misses: &Cell<u32>) -> bool {
        let missed = misses.take();
        let end = Instant::now() + (MAX_SPIN + copying) / 2u32.saturating_pow(missed / 2);
        while Instant::now() < end {
            // More often than it looks at the clock.
            if (0..20).any(|_| self.try_wait()) {
                return true;
            }
            std::hint::spin_loop();
        }
        misses.set((missed + 1) % RETRY_SPIN);
        false
    }

    /// Takes one off. False if the timeout passed, or `is_hopeless`: asked when it has slept in vain, each
    /// [`LIVENESS_INTERVAL`].
    pub(crate) fn wait(&self, timeout: Option<Duration>, is_hopeless: impl Fn() -> bool) -> bool {
        // A timeout that the clock cannot express is as good as none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.try_wait() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            self.sleepers.fetch_add(1, SeqCst);
            // Sleeps only while the value is 0: a post since we looked is not missed. Whatever ends
            // it (a post, a signal, the time), retry: another process may have won.
            let interval = left.unwrap_or(LIVENESS_INTERVAL).min(LIVENESS_INTERVAL);
            self.futex(libc::FUTEX_WAIT, 0, interval);
            self.sleepers.fetch_sub(1, SeqCst);
            // After a shorter sleep the caller is about to look, too.
            if interval == LIVENESS_INTERVAL && self.value.load(SeqCst) == 0 && is_hopeless() {
                return self.try_wait(); // whoever is gone may have posted before
            }
        }
        true
    }

    /// futex(2) on the value, between processes. `FUTEX_WAKE` ignores the timeout.
    fn futex(&self, operation: i32, value: u32, timeout: Duration) {
        let timeout = TimeSpec::from(timeout);
        // SAFETY: both addresses are valid for the length of the call, and the kernel writes to
        // neither. Not covered: a process that wakes others at random; they look again, and no more.
        unsafe {
            libc::syscall(libc::SYS_futex, self.value.as_ptr(), operation, value, timeout.as_ref());
        }
    }
}

/// In place of an [`identity`]: whoever was there has left.
pub(crate) const LEFT: u64 = u64::MAX;

/// How many bits the id of a process takes on Linux, and which.
pub(crate) const PID_BITS: u32 = 22;
pub(crate) const PID_MASK: u64 = !(!0 << PID_BITS);

/// Which process this is: its id and, because ids are reused, when it started. 0 if it has ended.
pub(crate) fn identity(pid: u32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read(&path) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(0),
        stat => stat.map_err(|e| named("read", &path, e))?,
    };
    // After the name, in brackets, come the state, as the 7th the flags, and as the 20th the start:
    // proc_pid_stat(5).
    const PF_EXITING: u64 = 4;
    let stat = String::from_utf8_lossy(&stat);
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    match (number(6), number(19)) {
        (Some(flags), _) if flags & PF_EXITING != 0 => Ok(0), // perhaps not reaped yet
        (_, Some(start)) => Ok(start << PID_BITS | u64::from(pid)),
        _ => Err(failed("read", &path, InvalidData, "not as in proc_pid_stat(5)")),
    }
}

/// Whether this names a process that lives and has not left.
pub(crate) fn is_alive(who: &AtomicU64) -> bool {
    match who.load(SeqCst) {
        0 | LEFT => false,
        // If that cannot be read (no descriptor may be left), assume that it is alive.
        id => identity((id & PID_MASK) as u32).map_or(true, |now| now == id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semaphore_counts() {
        let name = format!("/cnblogs-semaphore-{}", std::process::id());
        let soon = Some(Duration::from_millis(2));
        let semaphore = Semaphore::create(&name, 2).unwrap();
        semaphore.wait(None).unwrap();
        semaphore.wait(soon).unwrap();
        let error = semaphore.wait(soon).unwrap_err();
        assert_eq!(error.kind(), TimedOut);
        assert_eq!(error.to_string(), format!("wait {name}: nobody posted in time"));
        semaphore.post();
        semaphore.wait(Some(Duration::ZERO)).unwrap();
        // Its memory is not for others.
        assert!(SharedMemory::open(&name).is_err());
    }

    #[test]
    fn no_post_is_lost() {
        const TIMES: usize = 100_000;
        let [ping, pong] = [(); 2].map(|()| RawSemaphore::default());
        std::thread::scope(|scope| {
            scope.spawn(|| (0..TIMES).for_each(|_| (ping.wait(None, || false), pong.post()).1));
            scope.spawn(|| (0..TIMES).for_each(|_| (ping.post(), pong.wait(None, || false)).0));
        });
        assert!(!ping.try_wait() && !pong.try_wait());
        assert_eq!(ping.sleepers.load(SeqCst), 0);
    }
}
