//! A bounded queue between processes, as `multiprocessing.Queue(capacity)` is.
//!
//! Any number of processes put values in and get them out, each value once, in order. Make it before forking.
//!
//! ```text
//!  put: acquire from `free`   ─▶ write the value into the slot ─▶ release to `filled`
//!  get: acquire from `filled` ─▶ read the value from the slot  ─▶ release to `free`
//! ```
//!
//! The values lie in a file in memory (memfd_create(2)), each in one of `capacity` slots. One pipe holds, in order, where
//! each free slot starts, another where the value in each filled slot ends: that is all there is to the queue.
//!
//! # Hazards
//!
//! - Any process takes any value, including its own: use one queue for each direction.
//! - There is no EOF: a `get` blocks even when every producer is gone. Put a value that means "the end"; or use
//!   [`Queue::get_timeout`], and look now and then whether the workers live (`Process::try_wait`), as `pool.rs` does.
//! - A process that is killed inside a `put` or a `get` may leak a slot and lose the value (3 to 25 % of the kills under
//!   full load); a queue of capacity 1 then deadlocks. Nothing is corrupted, duplicated or reordered, and timeouts hold.
//!   Where processes may be killed, a pipe or a socket to each of them is better: a death is EOF there.
//! - Not every value survives: an `Option` directly around what is null, such as `Some(None)` or `Some(())`, comes out
//!   as `None`, as in JSON. Inside untagged and internally tagged enums and `flatten`, `get` refuses `u128` and `i128`,
//!   and the value is lost; likewise one that is nested more than 1,000 deep. Send bytes as
//!   `serde_bytes::ByteBuf`.
//! - Deadlock: get before you join. A child that has more to put than the queue holds never ends.
//! - Each value wakes all that wait: with 128 of them a `put` takes 330 µs, with one 20.
//! - Under a limit on the size of files (`ulimit -f`) a `put` kills the process (SIGXFSZ). `exec` closes a queue.

use std::cell::RefCell;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use rmp_serde::{Deserializer, Serializer};
use serde::{Serialize, de::DeserializeOwned};

/// The most slots: the numbers of so many fit in the smallest pipe, two pages, at any offset in the page. (Before
/// Linux 5.14 a user with more than a thousand pipes gets smaller ones, which may be too small.)
const MAX_CAPACITY: usize = 4096 / size_of::<u64>();

/// How far apart the slots start. What is not written takes no memory.
const STRIDE: u64 = 1 << 40;

/// Up to this length memory is kept for the next value: fresh pages cost more than the copy.
const MAX_RETAINED: usize = 4 << 20;

thread_local! {
    /// Where values are encoded and read to.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A bounded queue of values of type `T`, shared by all processes forked after it was made.
///
/// `T` is any type that serde can serialise. A wait spins for up to 50 µs first, where that pays, then it sleeps.
#[derive(Debug)]
pub struct Queue<T> {
    /// Where each free slot starts.
    free: Tokens,
    /// Where the value in each filled slot ends.
    filled: Tokens,
    file: File,
    values: PhantomData<fn(T) -> T>,
}

/// Why a value could not be put.
#[derive(Debug, thiserror::Error)]
pub enum PutError<T> {
    /// No slot became free in time; the value is returned. Python: `queue.Full`.
    #[error("the queue is full")]
    Full(T),
    /// The value could not be encoded or written; it is dropped, and nothing was put.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why no value was got.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No value came in time. Python: `queue.Empty`.
    #[error("the queue is empty")]
    Empty,
    /// The value could not be read or decoded; it is lost, and its slot free again.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<T: Serialize + DeserializeOwned> Queue<T> {
    /// Makes a queue for up to `capacity` values: `multiprocessing.Queue(capacity)`.
    ///
    /// Fails with `InvalidInput` when `capacity` is 0 or more than 512.
    pub fn new(capacity: usize) -> io::Result<Queue<T>> {
        if capacity == 0 || capacity > MAX_CAPACITY {
            let what = format!("Queue::new({capacity}): the capacity is 1 to {MAX_CAPACITY}");
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let file = memfd_create("queue", MFdFlags::MFD_CLOEXEC);
        let file = file.map_err(|errno| named("memfd_create", errno.into()))?.into();
        let (free, filled) = (Tokens::new()?, Tokens::new()?);
        (0..capacity as u64).try_for_each(|index| free.release(index * STRIDE))?;
        Ok(Queue { free, filled, file, values: PhantomData })
    }

    /// Puts a value in, and blocks while the queue is full: `Queue.put(value)`.
    ///
    /// What comes out follows the type's serde attributes: a skipped field has its default, an untagged enum its
    /// first variant that fits. Fails with `InvalidData` if the value cannot be encoded: nothing is put, and the
    /// value is dropped.
    pub fn put(&self, value: T) -> io::Result<()> {
        self.put_until(value, None).map(drop)
    }

    /// Puts a value in without blocking: `Queue.put_nowait(value)`.
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_timeout(value, Duration::ZERO)
    }

    /// Puts a value in, and blocks up to `timeout` for a free slot: `Queue.put(value, True, timeout)`. Encoding counts
    /// towards the timeout, but a slot that is free afterwards is taken even if it has expired.
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
        match self.put_until(value, Instant::now().checked_add(timeout))? {
            Some(value) => Err(PutError::Full(value)),
            None => Ok(()),
        }
    }

    /// Takes the oldest value out, and blocks while the queue is empty: `Queue.get()`.
    ///
    /// Fails as [`GetError::Io`] says.
    pub fn get(&self) -> io::Result<T> {
        self.get_until(None).map(|value| value.expect("there is no deadline"))
    }

    /// Takes the oldest value out without blocking: `Queue.get_nowait()`.
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_timeout(Duration::ZERO)
    }

    /// Takes the oldest value out, and blocks up to `timeout` for one: `Queue.get(True, timeout)`.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_until(Instant::now().checked_add(timeout))?.ok_or(GetError::Empty)
    }

    /// Puts a value in, or gives it back if no slot became free by the deadline.
    fn put_until(&self, value: T, deadline: Option<Instant>) -> io::Result<Option<T>> {
        // Encoded before anything is acquired: a value that cannot be encoded changes nothing. It has the names of its
        // fields, so that it can be decoded whatever serde attributes its type has.
        let mut buffer = BUFFER.take();
        buffer.clear();
        let mut to = Serializer::new(&mut buffer).with_struct_map().with_human_readable();
        value.serialize(&mut to).map_err(invalid)?;
        let Some(slot) = self.free.acquire(deadline)? else {
            retain(buffer);
            return Ok(Some(value));
        };
        let (written, end) = (self.file.write_all_at(&buffer, slot), slot + buffer.len() as u64);
        retain(buffer);
        match written {
            Ok(()) => self.filled.release(end).map(|()| None),
            Err(error) => self.free.release(slot).and(Err(named("pwrite", error))),
        }
    }

    /// Takes a value out, or returns `None` if none came by the deadline.
    fn get_until(&self, deadline: Option<Instant>) -> io::Result<Option<T>> {
        let Some(end) = self.filled.acquire(deadline)? else {
            return Ok(None);
        };
        let length = end % STRIDE; // the slot starts at a multiple of it
        let slot = end - length;
        let mut buffer = BUFFER.take();
        buffer.resize(length as usize, 0);
        let read = self.file.read_exact_at(&mut buffer, slot);
        if length > MAX_RETAINED as u64 {
            // Gives the memory of the slot back. If that fails, the next value reuses it.
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, slot as i64, length as i64);
        }
        self.free.release(slot)?;
        read.map_err(|error| named("pread", error))?;
        let mut from = Deserializer::from_read_ref(&buffer).with_human_readable();
        let value = T::deserialize(&mut from).map_err(invalid)?;
        retain(buffer);
        Ok(Some(value))
    }
}

/// Keeps a buffer for the next value.
fn retain(buffer: Vec<u8>) {
    if buffer.capacity() <= MAX_RETAINED {
        BUFFER.set(buffer);
    }
}

/// Numbers that processes hand to each other: a pipe with the numbers in it. read(2) takes one out, write(2) puts one
/// in, and poll(2) blocks while there is none. All are 8 bytes long, so Linux never splits one. (A counting semaphore
/// whose permits are numbered.)
#[derive(Debug)]
struct Tokens {
    read: File,
    write: File,
    /// How many waits of this process in a row spun in vain, or did not spin.
    misses: AtomicU32,
}

impl Tokens {
    fn new() -> io::Result<Tokens> {
        let pipe = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK);
        let (read, write) = pipe.map_err(|errno| named("pipe2", errno.into()))?;
        Ok(Tokens { read: read.into(), write: write.into(), misses: AtomicU32::new(0) })
    }

    /// Takes the oldest number, or `None` if the deadline passed. No deadline: blocks as long as it takes.
    fn acquire(&self, deadline: Option<Instant>) -> io::Result<Option<u64>> {
        let mut spin_end = None;
        loop {
            let mut token = [0; 8];
            match (&self.read).read_exact(&mut token) {
                Ok(()) => {
                    if spin_end.is_some_and(|end| Instant::now() < end) {
                        self.misses.store(0, Relaxed);
                    }
                    return Ok(Some(u64::from_ne_bytes(token)));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(named("read", error)),
            }
            // A wake-up on another CPU costs some 50 µs: so spin that long first, but where that is in vain only at the
            // first miss in a row, the second, the fourth, the eighth …
            let end = *spin_end.get_or_insert_with(|| {
                let is_due = (self.misses.fetch_add(1, Relaxed) % 8192 + 1).is_power_of_two();
                Instant::now() + Duration::from_micros(if is_due { 50 } else { 0 })
            });
            if Instant::now() < end.min(deadline.unwrap_or(end)) {
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::new(self.read.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, left.map(Into::into), None) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {} // another process may take it first
                Err(errno) => return Err(named("ppoll", errno.into())),
            }
        }
    }

    /// Puts a number in, and wakes the processes that wait for one. Never blocks: all numbers fit in the pipe.
    fn release(&self, token: u64) -> io::Result<()> {
        (&self.write).write_all(&token.to_ne_bytes()).map_err(|error| named("write", error))
    }
}

/// Names the call that failed.
fn named(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} (queue): {error}"))
}

fn invalid(error: impl Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("encode or decode a value: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_bytes::ByteBuf;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn values_come_out_in_order() {
        let queue = Queue::new(3).unwrap();
        for product in ["Orange", "Apple", ""] {
            queue.put(product.to_owned()).unwrap();
        }
        for product in ["Orange", "Apple", ""] {
            assert_eq!(queue.get().unwrap(), product);
        }
    }

    #[test]
    fn full_gives_the_value_back_and_empty_says_so() {
        let queue = Queue::new(1).unwrap();
        assert!(matches!(queue.try_get(), Err(GetError::Empty)));
        queue.try_put("Orange".to_owned()).unwrap();
        let soon = Duration::from_millis(2);
        for full in [queue.try_put("Apple".to_owned()), queue.put_timeout("Apple".to_owned(), soon)]
        {
            assert!(matches!(full, Err(PutError::Full(apple)) if apple == "Apple"));
        }
        assert_eq!(queue.try_get().unwrap(), "Orange");
        assert!(matches!(queue.get_timeout(soon), Err(GetError::Empty)));
    }

    #[test]
    fn a_queue_that_is_not_full_never_makes_a_put_wait() {
        for capacity in [1, 2, 3, 10, 100, MAX_CAPACITY] {
            for length in [0, 1, 100, 200, 700, 2000, 7000, 15_000, 60_000, 212_000, 300_000] {
                let queue = Queue::new(capacity).unwrap();
                for _ in 0..capacity {
                    queue.try_put(ByteBuf::from(vec![7; length])).unwrap();
                }
                assert!(queue.try_put(ByteBuf::new()).is_err());
                for _ in 0..capacity {
                    assert_eq!(queue.try_get().unwrap().len(), length);
                }
                assert!(queue.try_get().is_err());
            }
        }
    }

    /// A queue of 512 must not keep 512 times its longest value.
    #[test]
    fn the_memory_of_a_long_value_is_given_back() {
        let queue = Queue::new(3).unwrap();
        for length in [8 << 20, 1 << 20].repeat(3) {
            queue.put(ByteBuf::from(vec![7; length])).unwrap();
            assert_eq!(queue.get().unwrap().len(), length);
        }
        let kept = queue.file.metadata().unwrap().blocks() * 512;
        assert!(kept < 4 << 20, "{kept} bytes");
        assert!(BUFFER.take().capacity() <= MAX_RETAINED);
    }

    /// It may be shared by threads, too.
    #[test]
    fn threads_share_a_queue() {
        let queue = Queue::new(4).unwrap();
        let sum: u64 = std::thread::scope(|scope| {
            (0..4)
                .for_each(|_| drop(scope.spawn(|| (0..1000).for_each(|i| queue.put(i).unwrap()))));
            let got = [(); 2]
                .map(|()| scope.spawn(|| (0..2000).map(|_| queue.get().unwrap()).sum::<u64>()));
            got.into_iter().map(|sum| sum.join().unwrap()).sum()
        });
        assert_eq!(sum, 4 * (0..1000).sum::<u64>());
    }

    #[test]
    fn a_capacity_that_cannot_be_kept_is_refused() {
        for capacity in [0, MAX_CAPACITY + 1, usize::MAX] {
            let error = Queue::<u8>::new(capacity).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let start = format!("Queue::new({capacity}): ");
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_encoded_changes_nothing() {
        #[derive(Debug)]
        struct Odd(u8);
        impl Serialize for Odd {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self.0 {
                    0 => Err(serde::ser::Error::custom("zero")),
                    n => s.serialize_u8(n),
                }
            }
        }
        impl<'de> Deserialize<'de> for Odd {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Odd, D::Error> {
                u8::deserialize(d).map(Odd)
            }
        }
        let queue = Queue::new(1).unwrap();
        assert_eq!(queue.put(Odd(0)).unwrap_err().kind(), ErrorKind::InvalidData);
        queue.try_put(Odd(1)).unwrap();
        assert_eq!(queue.try_get().unwrap().0, 1);
    }
}
