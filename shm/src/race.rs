//! Race: two processes count in the same memory, without and with a semaphore.
//!
//! The article: 对共享内存的访问必须是互斥的。这个可以借助信号量来实现, access must be mutually exclusive,
//! and a semaphore can see to that. Here is what happens otherwise: both read 5, both
//! write 6, and one count is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use common::{Process, block_signals, say, supervise};
use shm::{Semaphore, SharedMemory, unique_name};

use crate::NAME;

/// How often each of the two processes counts.
const COUNTS: u64 = 10_000;

pub fn run() -> Result<()> {
    block_signals()?;
    let (without, all) = (race(false)?, 2 * COUNTS);
    say!("without a semaphore: {without} of {all} counts, {} lost", all - without)?;

    let with = race(true)?;
    say!("with a semaphore:    {with} of {all} counts")?;
    ensure!(with == all, "the semaphore let two processes in at a time");
    Ok(())
}

/// Lets two processes count, and returns how far they got.
fn race(with_semaphore: bool) -> Result<u64> {
    let memory = SharedMemory::create(&unique_name(NAME), 24)?;
    let [counter, arrived, semaphore] = memory.words() else {
        unreachable!("24 bytes are three words");
    };
    // With the value 1: one process at a time.
    let mutex = with_semaphore.then(|| Semaphore::new(semaphore));
    mutex.inspect(Semaphore::post);
    let body = || {
        for i in 0..COUNTS {
            if let Some(mutex) = mutex {
                mutex.wait(None)?;
            }
            // What `counter += 1` does, in its three steps. (`fetch_add` would do it in one, without any
            // semaphore; but only for one number.)
            let value = counter.load(Ordering::Relaxed);
            match i {
                // The other process may run between our reading and our writing. Without the semaphore
                // both meet there once, so that the race shows on any machine; and now and then we
                // yield, so that it shows more often on a single CPU.
                0 if mutex.is_none() => meet(arrived),
                _ if i % 100 == 0 => std::thread::yield_now(),
                _ => {}
            }
            counter.store(value + 1, Ordering::Relaxed);
            if let Some(mutex) = mutex {
                mutex.post();
            }
        }
        Ok(())
    };
    let one = Process::spawn("one", body)?;
    let two = Process::spawn("two", body)?;
    supervise([one, two])?;
    Ok(counter.load(Ordering::Relaxed))
}

/// Waits until both processes are here.
fn meet(arrived: &AtomicU64) {
    arrived.fetch_add(1, Ordering::Relaxed);
    while arrived.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
}
