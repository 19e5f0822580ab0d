//! A bounded queue between processes, as `multiprocessing.Queue(capacity)` is.
//!
//! Any number of processes put values in and get them out, each value once, in order. Create it before
//! forking; the children inherit it. It needs `tokens.rs` beside it.
//!
//! ```text
//!  put: acquire from `free`   ─▶ write the value into the slot ─▶ release to `filled`
//!  get: acquire from `filled` ─▶ read the value from the slot  ─▶ release to `free`
//! ```
//!
//! The values lie in a file in memory (memfd_create(2)), encoded as CBOR, each in one of `capacity` slots. One pipe
//! holds, in order, where each free slot starts, another where the value in each filled slot ends: that is all there
//! is to the queue.
//!
//! # Hazards
//!
//! - Any process that shares a queue can take any value, including its own. A process that puts a
//!   request and gets its answer from the *same* queue may get its own request back. So use one
//!   queue for each direction.
//! - There is no EOF: a `get` blocks as long as nothing is put, even when every
//!   producer is gone. Put a value that means "the end", or use [`Queue::get_timeout`].
//! - A process that is killed inside a `put` or a `get` may leak a slot and lose the value: under full load on two
//!   CPUs 3 to 25 % of the kills do, more with longer values and on a busier machine. A queue of capacity 1 then
//!   deadlocks. No value is corrupted, duplicated or reordered by that, and calls with a timeout still return in
//!   time. Where processes may be killed, a pipe, a socket or an ipc-channel to each of them is the better choice:
//!   there the kernel reports the death as EOF.
//! - An `Option` directly inside an `Option` loses a layer, as in JSON: `Some(None)` comes out as `None`, even with
//!   a newtype between the two. Inside untagged and internally tagged enums and `flatten`, `get` fails for `u128`,
//!   `i128`, `()` and types with a separate human-readable form, such as `IpAddr`. A value nested more than a
//!   hundred levels deep may be lost in the same way.
//! - Deadlock: a process that joins its children before it gets their results blocks forever once there are more of
//!   them than the queue holds. Get first.
//! - Each value wakes all processes that wait for one: the queue is made for a few, not for dozens.
//! - A process that lowers its `ulimit -f` after the queue was made is killed by SIGXFSZ at a `put` beyond the new
//!   limit. (Checking the limit each time would cost as much as the write.)
//! - `exec` closes a queue: it is for forked children, not for the programs that they start.
//! - Bytes are best sent as `serde_bytes::ByteBuf`: serde writes a `Vec<u8>` element by element.
//!
//! # Collecting results
//!
//! Since there is no EOF, a parent that collects results must check on its workers whenever none comes in time
//! (`Process::try_wait` of process.rs, or `Child::try_wait`):
//!
//! ```text
//! let result = loop {
//!     match results.get_timeout(Duration::from_millis(100)) {
//!         Err(GetError::Empty) => workers.iter_mut().try_for_each(|worker| worker.try_wait().map(drop))?,
//!         result => break result?,
//!     }
//! };
//! ```

mod tokens;

use std::cell::RefCell;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use serde::{Serialize, de::DeserializeOwned};

use self::tokens::{MAX_TOKENS, Tokens, named};

/// A bounded queue of values of type `T`, shared by all processes forked after it was made.
///
/// `T` is any type that serde can serialise. A queue is not `Sync`: one thread of each process uses it. A wait
/// spins for up to 100 µs first, as long as that pays, then it sleeps.
///
/// All slots are used in turn, and each keeps up to 4 MiB of memory for the next value, as does each process.
#[derive(Debug)]
pub struct Queue<T> {
    /// Where each free slot starts.
    free: Tokens,
    /// Where the value in each filled slot ends.
    filled: Tokens,
    file: File,
    /// How far apart the slots start. What is not written takes no memory.
    stride: u64,
    /// Where values are encoded, reused: fresh pages cost more than the copy.
    buffer: RefCell<Vec<u8>>,
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

/// The longest value, encoded, if nothing limits the file.
const MAX_LENGTH: u64 = 1 << 40;

/// Up to this size a slot keeps its memory for the next value: fresh pages cost more than the copy.
const MAX_RETAINED: usize = 4 * 1024 * 1024;

impl<T: Serialize + DeserializeOwned> Queue<T> {
    /// Makes a queue for up to `capacity` values: `multiprocessing.Queue(capacity)`.
    ///
    /// Fails with `InvalidInput` when `capacity` is 0 or more than 512. Each slot gets its share of the largest
    /// file that this process may write now (`ulimit -f`): a value that needs more fails with `FileTooLarge`.
    pub fn new(capacity: usize) -> io::Result<Queue<T>> {
        if capacity == 0 || capacity > MAX_TOKENS {
            let what = format!("Queue::new({capacity}): the capacity is 1 to {MAX_TOKENS}");
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let file = memfd_create("queue", MFdFlags::MFD_CLOEXEC);
        let file = file.map_err(|e| named("memfd_create", e.into()))?.into();
        // Writing past the limit (ulimit -f) would kill the process with SIGXFSZ.
        let limit = getrlimit(Resource::RLIMIT_FSIZE);
        let (limit, _) = limit.map_err(|e| named("getrlimit", e.into()))?;
        let queue = Queue {
            free: Tokens::new()?,
            filled: Tokens::new()?,
            file,
            stride: MAX_LENGTH.min(limit / capacity as u64),
            buffer: RefCell::default(),
            values: PhantomData,
        };
        (0..capacity as u64).try_for_each(|index| queue.free.release(index * queue.stride))?;
        Ok(queue)
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
        // Encoded before anything is acquired: a value that cannot be encoded changes nothing.
        let encoded = encode(&value, self.buffer.take())?;
        let length = encoded.len() as u64;
        if length >= self.stride {
            let what = format!("{length} bytes are more than a slot's share of ulimit -f");
            return Err(named("put", io::Error::new(ErrorKind::FileTooLarge, what)));
        }
        let Some(slot) = self.free.acquire(deadline)? else {
            return Ok(Some(value));
        };
        let written = self.file.write_all_at(&encoded, slot);
        self.recycle(encoded);
        match written {
            Ok(()) => self.filled.release(slot + length).map(|()| None),
            Err(error) => self.free.release(slot).and(Err(named("pwrite", error))),
        }
    }

    /// Takes a value out, or returns `None` if none came by the deadline.
    fn get_until(&self, deadline: Option<Instant>) -> io::Result<Option<T>> {
        let Some(end) = self.filled.acquire(deadline)? else {
            return Ok(None);
        };
        let length = end % self.stride; // the slot starts at a multiple of it
        let slot = end - length;
        let mut encoded = self.buffer.take();
        encoded.resize(length as usize, 0);
        let read = self.file.read_exact_at(&mut encoded, slot);
        if length > MAX_RETAINED as u64 {
            // Gives the memory of the slot back. If that fails, the next value reuses it.
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, slot as i64, self.stride as i64);
        }
        self.free.release(slot)?;
        read.map_err(|error| named("pread", error))?;
        let value = cbor4ii::serde::from_slice(&encoded[PAD..]).map_err(invalid)?;
        self.recycle(encoded);
        Ok(Some(value))
    }

    /// Keeps a buffer for the next value.
    fn recycle(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= MAX_RETAINED {
            self.buffer.replace(buffer);
        }
    }
}

/// How many zeros precede an encoded value. With the 5 bytes that CBOR puts before a long byte string they make 16, so
/// source and destination of each copy are aligned alike. On AMD's Zen 3 and 4 `rep movsb` takes six times as long if
/// the destination's offset in its page is 1 to 15 bytes above the source's.
const PAD: usize = 11;

/// Encodes a value with the names of its fields, so that it can be decoded whatever serde attributes
/// its type has.
fn encode(value: &impl Serialize, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    buffer.resize(PAD, 0);
    cbor4ii::serde::to_vec(buffer, value).map_err(invalid)
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
        for capacity in [1, 2, 3, 10, 100, MAX_TOKENS] {
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

    #[test]
    fn a_very_long_value_gives_its_memory_back() {
        let queue = Queue::new(2).unwrap();
        for length in [MAX_RETAINED / 2, 3 * MAX_RETAINED] {
            let value: ByteBuf = (0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
            for _ in 0..2 {
                queue.try_put(value.clone()).unwrap();
            }
            for _ in 0..2 {
                assert!(queue.try_get().unwrap() == value, "{length}");
            }
            let held = queue.file.metadata().unwrap().blocks();
            assert_eq!(held == 0, length > MAX_RETAINED, "{length}: {held} blocks");
            assert!(queue.buffer.borrow().capacity() <= MAX_RETAINED);
        }
    }

    #[track_caller]
    fn check_unchanged<T: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug>(
        value: T,
    ) {
        let queue = Queue::new(1).unwrap();
        queue.try_put(value.clone()).unwrap();
        assert_eq!(queue.try_get().unwrap(), value);
    }

    #[test]
    fn values_come_out_as_they_went_in_whatever_their_serde_attributes() {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(i64),
            Text(String),
            Pair { left: u8, right: Option<u8> },
        }
        check_unchanged(Untagged::Number(-7));
        check_unchanged(Untagged::Text("Orange".into()));
        check_unchanged(Untagged::Pair { left: 1, right: Some(2) });

        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        enum Tagged {
            Nothing,
            Some { count: u32 },
        }
        check_unchanged(vec![Tagged::Nothing, Tagged::Some { count: 3 }]);

        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        struct Sparse {
            #[serde(skip_serializing_if = "Option::is_none")]
            one: Option<Vec<u8>>,
            two: Vec<u8>,
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            three: Vec<u8>,
            #[serde(flatten)]
            more: std::collections::BTreeMap<String, u8>,
        }
        // By position it would come out as { one: [2], two: [], three: [] }, without an error.
        check_unchanged(Sparse { two: vec![1], three: vec![0, 0], ..Sparse::default() });
        check_unchanged(Sparse {
            one: Some(vec![7]),
            more: [("x".into(), 1)].into(),
            ..Sparse::default()
        });

        check_unchanged((1u128 << 100, -5i128, 1.5f32, f64::MIN, 'é', (), [1u8; 3]));
        check_unchanged([None, Some(1), Some(0)]);
        check_unchanged([Some(()), None]);
        check_unchanged(vec![None, Some(Sparse::default())]);
        check_unchanged(Some(Job { id: 7, then: None }));
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Job {
        id: u64,
        then: Option<Box<Job>>,
    }

    #[test]
    fn a_capacity_that_cannot_be_kept_is_refused() {
        for capacity in [0, MAX_TOKENS + 1, usize::MAX] {
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
