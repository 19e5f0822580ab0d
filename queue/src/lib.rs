//! A bounded queue between processes, as `multiprocessing.Queue(capacity)` is.
//!
//! Any number of processes put values in and get them out, each value once, in order. Create it before
//! forking; the children inherit it. It needs `semaphore.rs` and `store.rs` beside it.
//!
//! ```text
//!  put: acquire `slots` ─▶ send the value ─▶ release `items`
//!  get: acquire `items` ─▶ receive a value ─▶ release `slots`
//! ```
//!
//! The values travel over an `ipc_channel` (a Unix socket, socketpair(2)), encoded as MessagePack;
//! longer ones go through a file in memory. Two counting semaphores that every process inherits enforce
//! the capacity.
//!
//! # Hazards
//!
//! - Any process that shares a queue can take any value, including its own. A process that puts a
//!   request and gets its answer from the *same* queue may get its own request back. So use one
//!   queue for each direction.
//! - There is no EOF: a `get` blocks as long as nothing is put, even when every
//!   producer is gone. Put a value that means "the end", or use [`Queue::get_timeout`].
//! - A process that is killed inside a `put` or a `get` may leak a slot and lose the value: of 2000 kills
//!   in full traffic 170 to 230 did on two CPUs, 1 to 3 on one. A queue of capacity 1 then deadlocks. No value
//!   is corrupted, duplicated or reordered by that, and calls with a timeout still return in time. Where
//!   processes may be killed, a pipe or a socket to each of them is the better choice: there
//!   the kernel reports the death as EOF.
//! - Bytes are best sent as `serde_bytes::ByteBuf`: serde writes a `Vec<u8>` element by element.

mod semaphore;
mod store;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use ipc_channel::IpcError;
use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, bytes_channel};
use ipc_channel::platform::OsIpcSender;
use serde::{Serialize, de::DeserializeOwned};

use self::semaphore::Semaphore;
use self::store::{MAX_BLOCKS, Overflow, recycle, scratch};

/// A bounded queue of values of type `T`, shared by all processes forked after it was made.
///
/// `T` is any type that serde can serialise, except one that contains ipc-channel's own senders or
/// receivers. A queue is not `Sync`: one thread of each process uses it. A wait spins for up to 100 µs
/// first, as long as that pays, then it sleeps.
///
/// A value that is too long for the socket stays in memory until it is received; up to 4 MiB per slot is
/// retained for reuse.
#[derive(Debug)]
pub struct Queue<T> {
    sender: IpcBytesSender,
    receiver: IpcBytesReceiver,
    slots: Semaphore,
    items: Semaphore,
    overflow: Overflow,
    capacity: u32,
    values: PhantomData<fn(T) -> T>,
}

/// Why a value could not be put.
#[derive(Debug, thiserror::Error)]
pub enum PutError<T> {
    /// No slot became free in time; the value is returned. Python: `queue.Full`.
    #[error("the queue is full")]
    Full(T),
    /// The value could not be encoded or sent; it is dropped, and nothing was put.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why no value was got.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No value came in time. Python: `queue.Empty`.
    #[error("the queue is empty")]
    Empty,
    /// The value could not be received or decoded; it is lost, and its slot free again.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The first byte of a message: the encoded value follows.
const INLINE: u8 = 0;

/// Or: the value is too long for the socket. Its block in the store and its length follow.
const STORED: u8 = 1;

/// What ipc-channel and [`INLINE`] add to an encoded value, at most.
const HEADER: usize = 32;

/// The longest value that travels in the socket (and its encoding's few bytes). The kernel's accounting of
/// longer ones varies.
const MAX_INLINE: usize = 64 * 1024;

/// How much of a socket's buffer a message takes at most: the kernel counts its own
/// bookkeeping too, and rounds up.
fn buffer_cost(len: usize) -> usize {
    (len + HEADER + 320).next_power_of_two() + 256
}

impl<T: Serialize + DeserializeOwned> Queue<T> {
    /// Makes a queue for up to `capacity` values: `multiprocessing.Queue(capacity)`.
    ///
    /// Fails with `InvalidInput` when `capacity` is 0, or more than a socket's buffer can hold
    /// (277 with Linux' usual `net.core.wmem_default`, never more than 1024): a put could then
    /// block on a full socket, although the queue is not full.
    pub fn new(capacity: usize) -> io::Result<Queue<T>> {
        let most = MAX_BLOCKS.min(1 + OsIpcSender::get_max_fragment_size() / buffer_cost(0));
        if capacity == 0 || capacity > most {
            let what = format!("Queue::new({capacity}): the capacity is 1 to {most} here");
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let capacity = capacity as u32;
        let (sender, receiver) = bytes_channel().map_err(|e| named("socketpair", e))?;
        Ok(Queue {
            sender,
            receiver,
            slots: Semaphore::new(capacity)?,
            items: Semaphore::new(0)?,
            overflow: Overflow::new(capacity)?,
            capacity,
            values: PhantomData,
        })
    }

    /// Puts a value in, and blocks while the queue is full: `Queue.put(value)`.
    ///
    /// What comes out is what the type's serde attributes say: a skipped field is its default, an untagged
    /// enum its first variant that fits. Fails with `InvalidData`, and puts nothing, if the value cannot be
    /// encoded, or is `Some(None)` or `Some(())`, which would come out as `None`. The value is dropped then.
    pub fn put(&self, value: T) -> io::Result<()> {
        self.put_until(value, None).map(drop)
    }

    /// Puts a value in without blocking: `Queue.put_nowait(value)`.
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_timeout(value, Duration::ZERO)
    }

    /// Puts a value in, and blocks up to `timeout` for a free slot: `Queue.put(value, True, timeout)`.
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
        loop {
            if let Some(value) = self.get_until(None)? {
                return Ok(value);
            }
        }
    }

    /// Takes the oldest value out without blocking: `Queue.get_nowait()`.
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_timeout(Duration::ZERO)
    }

    /// Takes the oldest value out, and blocks up to `timeout` for one: `Queue.get(True, timeout)`.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_until(Instant::now().checked_add(timeout))?.ok_or(GetError::Empty)
    }

    /// Puts a value in, or gives it back if no slot came free until the deadline.
    fn put_until(&self, value: T, deadline: Option<Instant>) -> io::Result<Option<T>> {
        // Encoded before anything is acquired: a value that cannot be encoded changes nothing.
        let encoded = encode(&value)?;
        if !self.slots.acquire(deadline)? {
            recycle(encoded);
            return Ok(Some(value));
        }
        let sent = self.send(&encoded);
        recycle(encoded);
        // On failure, give the slot back.
        let semaphore = if sent.is_ok() { &self.items } else { &self.slots };
        semaphore.release().and(sent).map(|()| None)
    }

    /// Takes a value out, or `None` if none came until the deadline.
    fn get_until(&self, deadline: Option<Instant>) -> io::Result<Option<T>> {
        if !self.items.acquire(deadline)? {
            return Ok(None);
        }
        let received = self.recv();
        self.slots.release()?;
        let encoded = received?;
        let decoded = rmp_serde::from_slice(&encoded[1..]).map_err(invalid)?;
        recycle(encoded);
        Ok(Some(decoded))
    }

    /// Sends an encoded value; we have acquired one of `slots`.
    fn send(&self, encoded: &[u8]) -> io::Result<()> {
        let send = |message: &[u8]| self.sender.send(message).map_err(|e| named("sendmsg", e));
        if fits(encoded.len(), self.capacity, OsIpcSender::get_max_fragment_size()) {
            return send(encoded);
        }
        let (block, len) = (self.overflow.write(encoded)?, encoded.len());
        let sent =
            postcard::to_stdvec(&(STORED, block, len)).map_err(invalid).and_then(|m| send(&m));
        if sent.is_err() {
            self.overflow.release(block, len)?;
        }
        sent
    }

    /// Receives an encoded value; we have acquired one of `items`.
    fn recv(&self) -> io::Result<Vec<u8>> {
        // Having acquired one of `items`, this does not block. Never ipc-channel's try_recv: it
        // makes the socket non-blocking for every process that shares it.
        let message = loop {
            match self.receiver.recv() {
                Err(IpcError::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                message => break message.map_err(recv_failed)?,
            }
        };
        if message.starts_with(&[INLINE]) {
            return Ok(message);
        }
        let (_, block, len): (u8, u32, usize) = postcard::from_bytes(&message).map_err(invalid)?;
        let encoded = self.overflow.read(block, len);
        self.overflow.release(block, len)?;
        encoded
    }
}

/// Whether `capacity` values of this encoded size fit in the `buffer` of a socket.
///
/// If not, a send could block although a slot was free; and a message longer than
/// the buffer blocks until someone receives, and the receiver is blocked on `items`.
fn fits(len: usize, capacity: u32, buffer: usize) -> bool {
    let others = capacity as usize - 1;
    len <= MAX_INLINE + HEADER
        && len + HEADER <= buffer
        && others.saturating_mul(buffer_cost(len)) <= buffer
}

/// How MessagePack writes `None` and `()`.
const NIL: u8 = 0xc0;

/// Where a value is encoded to.
struct Encoded {
    bytes: Vec<u8>,
    /// Whether there was a `None` or a `()` in it (or bytes that look like one).
    nil: bool,
}

impl Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.nil |= bytes == [NIL];
        // In pieces: glibc copies longer ones by `rep movsb`, which is slow on some CPUs where the target
        // lies a few bytes behind the source in its page, as it does behind a short header.
        bytes.chunks(2048).for_each(|piece| self.bytes.extend_from_slice(piece));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encodes a value with the names of its fields, so that it can be decoded whatever serde attributes
/// its type has.
fn encode<T: Serialize + DeserializeOwned>(value: &T) -> io::Result<Vec<u8>> {
    let mut encoded = Encoded { bytes: scratch(), nil: false };
    encoded.bytes.push(INLINE);
    let mut serializer = rmp_serde::Serializer::new(&mut encoded).with_struct_map();
    value.serialize(&mut serializer).map_err(invalid)?;
    // MessagePack writes Some(None) and Some(()) as it writes None. postcard does not, so compare.
    let sum = |value: &T| {
        let bytes = postcard::to_stdvec(value).map_err(invalid)?;
        io::Result::Ok(bytes.into_iter().map(u64::from).sum::<u64>())
    };
    let decode = |bytes| rmp_serde::from_slice(bytes).map_err(invalid);
    if encoded.nil && sum(&decode(&encoded.bytes[1..])?)? != sum(value)? {
        return Err(invalid("Some(None) and Some(()) would come out as None"));
    }
    Ok(encoded.bytes)
}

/// Names the call that failed.
fn named(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call}: {error}"))
}

fn recv_failed(error: IpcError) -> io::Error {
    match error {
        IpcError::Io(error) => named("recvmsg", error),
        IpcError::SerializationError(error) => invalid(error),
        IpcError::Disconnected => named("recvmsg", ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(error: impl Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("encode or decode a value: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_bytes::ByteBuf;

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
        for capacity in [1, 2, 3, 10, 100, 277] {
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

    /// The kernel's accounting of long messages varies, and with a large buffer it fell short.
    #[test]
    fn nothing_above_64_kib_goes_through_the_socket() {
        assert!(fits(60_000, 2, 4 << 20));
        assert!(!fits(261_700, 16, 4 << 20));
    }

    #[track_caller]
    fn check_unchanged<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
        let queue = Queue::new(1).unwrap();
        let encoded = encode(&value).unwrap();
        let expected: T = rmp_serde::from_slice(&encoded[1..]).unwrap();
        assert_eq!(expected, value);
        queue.try_put(expected).unwrap();
        assert_eq!(queue.try_get().unwrap(), value);
    }

    #[test]
    fn values_come_out_as_they_went_in_whatever_their_serde_attributes() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Number(i64),
            Text(String),
            Pair { left: u8, right: Option<u8> },
        }
        check_unchanged(Untagged::Number(-7));
        check_unchanged(Untagged::Text("Orange".into()));
        check_unchanged(Untagged::Pair { left: 1, right: Some(2) });

        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        enum Tagged {
            Nothing,
            Some { count: u32 },
        }
        check_unchanged(vec![Tagged::Nothing, Tagged::Some { count: 3 }]);

        #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
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
        check_unchanged(Some(Job { id: 7, then: None }));
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Job {
        id: u64,
        then: Option<Box<Job>>,
    }

    #[test]
    fn a_value_that_would_come_out_changed_is_refused() {
        let ticks = Queue::<Option<()>>::new(1).unwrap();
        let error = ticks.put(Some(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().ends_with("Some(()) would come out as None"), "{error}");
        ticks.try_put(None).unwrap();
        let nested = Queue::<Option<Option<u8>>>::new(1).unwrap();
        assert_eq!(nested.put(Some(None)).unwrap_err().kind(), ErrorKind::InvalidData);
        nested.try_put(Some(Some(1))).unwrap();
        assert_eq!(nested.try_get().unwrap(), Some(Some(1)));
    }

    #[test]
    fn a_capacity_that_cannot_be_kept_is_refused() {
        for capacity in [0, 1_000_000, usize::MAX] {
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
