//! POSIX shared memory with a name, a semaphore in it, and how two strangers meet there.
//!
//! [`SharedMemory`] is the mechanism: one physical page in the address spaces of several
//! processes (shm_open(3), mmap(2); Python's `mmap(…, tagname=…)`, which exists on Windows only). It provides no
//! synchronisation. A [`Semaphore`] says whose turn it is: it is a word of the memory. A [`Pair`] is memory for two
//! processes that know nothing of each other but a name.
//!
//! Each is a file that can be copied: `memory.rs` alone, `semaphore.rs` alone, `pair.rs` with both.

mod memory;
mod pair;
mod semaphore;

pub use memory::{SharedMemory, unique_name};
pub use pair::{Pair, Side};
pub use semaphore::Semaphore;
