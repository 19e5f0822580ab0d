//! POSIX shared memory with a name, and a semaphore and a mailbox in it.
//!
//! [`SharedMemory`] is the mechanism: one physical page in the address spaces of several
//! processes (shm_open(3), mmap(2); Python's `mmap(…, tagname=…)`, which exists on Windows only).
//! It provides no synchronisation. A [`Semaphore`] says whose turn it is, between related processes; a
//! [`Writer`] and a [`Reader`] pass messages between strangers who know a name: the two ends of a mailbox.
//!
//! Each is a file that can be copied: `memory.rs` alone, `semaphore.rs` with it, `mailbox.rs` with both and
//! `peers.rs`.

mod mailbox;
mod memory;
mod peers;
mod semaphore;

pub use mailbox::{Message, Reader, Writer};
pub use memory::{SharedMemory, unique_name};
pub use semaphore::Semaphore;
