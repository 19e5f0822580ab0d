//! Race: two processes count in the same memory, without and with a semaphore.
//!
//! The article: 对共享内存的访问必须是互斥的。这个可以借助信号量来实现, access must be mutually exclusive,
//! and a semaphore can see to that. Here is what happens otherwise: both read 5, both
//! write 6, and one count is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use common::{Process, hold_signals, say, supervise};
use shm::{Semaphore, SharedMemory};

/// How often each of the two processes counts.
const COUNTS: u64 = 10_000;

pub fn all() -> Result<()> {
    hold_signals()?;
    let without = race(None)?;
    say!(
        "without a semaphore: {} of {} counts, {} lost",
        without,
        2 * COUNTS,
        2 * COUNTS - without
    );

    // A semaphore with the value 1: one process at a time.
    let mutex = Semaphore::create(&crate::unguessable(), 1)?;
    let with = race(Some(&mutex))?;
    say!("with a semaphore:    {} of {} counts", with, 2 * COUNTS);
    ensure!(with == 2 * COUNTS, "the semaphore let two processes in at a time");
    Ok(())
}

/// Lets two processes count, and returns how far they got.
fn race(mutex: Option<&Semaphore>) -> Result<u64> {
    let memory = SharedMemory::create(&crate::unguessable(), 16)?;
    let [counter, started] = memory.words() else {
        unreachable!("16 bytes are two words");
    };
    let body = || {
        // Off the line together.
        started.fetch_add(1, Ordering::Relaxed);
        while started.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        for i in 0..COUNTS {
            match mutex {
                None => count(counter, i),
                Some(mutex) => {
                    mutex.wait(None)?;
                    count(counter, i);
                    mutex.post();
                }
            }
        }
        Ok(())
    };
    let one = Process::spawn("one", body)?;
    let two = Process::spawn("two", body)?;
    supervise([one, two])?;
    Ok(counter.load(Ordering::Relaxed))
}

/// What `counter += 1` does, in its three steps. (`fetch_add` would do it in one, without any
/// semaphore; but only for one number.)
fn count(counter: &AtomicU64, i: u64) {
    let value = counter.load(Ordering::Relaxed);
    // The other process may run at any point. Now and then it gets the chance here, so that
    // the race shows on a single CPU as well.
    if i % 100 == 0 {
        std::thread::yield_now();
    }
    counter.store(value + 1, Ordering::Relaxed);
}
