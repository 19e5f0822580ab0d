//! A bounded queue between processes, as `multiprocessing.Queue(capacity)` is.
//!
//! Any number of processes put values in and get them out, each value once, in order. It is
//! made before the fork; the children inherit it.
//!
//! ```text
//!  put: take one of `slots` ─▶ send the value ─▶ give one to `items`
//!  get: take one of `items` ─▶ receive a value ─▶ give one to `slots`
//! ```
//!
//! The values travel over an `ipc_channel` (a Unix socket, socketpair(2)), those that are too long for
//! it by way of a file in memory (memfd_create(2)); the bound is kept by two counting semaphores
//! that every process inherits (eventfd(2) with `EFD_SEMAPHORE`).
//!
//! ```
//! use queue::{PutError, Queue};
//!
//! let queue = Queue::new(1)?;
//! queue.put("Orange".to_string())?;
//! // Python raises queue.Full; here the value comes back too.
//! let full = queue.try_put("Apple".to_string());
//! assert!(matches!(full, Err(PutError::Full(apple)) if apple == "Apple"));
//! assert_eq!(queue.get()?, "Orange");
//! # std::io::Result::Ok(())
//! ```
//!
//! # Dangers
//!
//! - Whoever shares a queue can take its values, its own ones too. A process that puts a
//!   request and gets its answer from the *same* queue may get its own request back. So use one
//!   queue for each direction.
//! - There is no end of the queue: a `get` waits as long as nothing is put, even when every
//!   producer is gone. Put a value that means "the end", or use [`Queue::get_timeout`].
//! - A process that is killed inside a `put` or a `get` can take a place in the queue, and the value,
//!   with it: in 99 of 2000 kills in full traffic (`tests/traffic.rs`). A queue of capacity 1
//!   stands still then. No value is torn, doubled or out of order by that, and calls with a
//!   timeout still return in time. Where
//!   processes may be killed, a pipe or a socket to each of them is the better choice: there
//!   the kernel tells you.
//! - Whole sequences of bytes are best sent as `serde_bytes::ByteBuf`: serde writes a `Vec<u8>`
//!   number by number.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use ipc_channel::platform::OsIpcSender;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A bounded queue of values of type `T`, shared by all processes forked after it was made.
///
/// `T` is any type that serde can take apart, but not one with ipc-channel's own senders or
/// receivers in it. A queue is not `Sync`: one thread of each process uses it.
///
/// A value that is too long for the socket lies in memory until it is got. Of each place in the queue up
/// to 4 MiB of that are kept for the next such value, as long as the queue lives.
#[derive(Debug)]
pub struct Queue<T> {
    sender: IpcSender<Message>,
    receiver: IpcReceiver<Message>,
    slots: Semaphore,
    items: Semaphore,
    store: Store,
    capacity: u32,
    values: std::marker::PhantomData<fn(T) -> T>,
}

/// Why a value could not be put.
#[derive(Debug)]
pub enum PutError<T> {
    /// No place came free in time; here is the value back. Python: `queue.Full`.
    Full(T),
    /// The value could not be encoded or sent.
    Io(io::Error),
}

/// Why no value was got.
#[derive(Debug)]
pub enum GetError {
    /// No value came in time. Python: `queue.Empty`.
    Empty,
    /// The value could not be received or decoded.
    Io(io::Error),
}

/// One value on its way, encoded.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Too long for the socket's buffer: it lies in this place of the store.
    Stored {
        place: u32,
        len: usize,
    },
}

thread_local! {
    /// Where values are encoded to and decoded from, kept for the next one: memory from the kernel
    /// costs several times as much as what is then copied into it.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Up to this size a scratch buffer, or a place in the store, keeps its memory for the next value.
const KEEP: usize = 4 * 1024 * 1024;

impl<T: Serialize + DeserializeOwned> Queue<T> {
    /// Makes a queue for up to `capacity` values: `multiprocessing.Queue(capacity)`.
    ///
    /// Fails with `InvalidInput` when `capacity` is 0, or more than a socket's buffer can hold
    /// (277 with Linux' usual `net.core.wmem_default`, never more than 1024): a put could then
    /// have to wait for room in the socket, although the queue is not full.
    pub fn new(capacity: usize) -> io::Result<Queue<T>> {
        let invalid = |what: String| {
            let what = format!("Queue::new({capacity}): {what}");
            Err(io::Error::new(ErrorKind::InvalidInput, what))
        };
        if capacity == 0 {
            return invalid("it needs room for one value at least".into());
        }
        let most = most_places();
        let Some(slots) = u32::try_from(capacity).ok().filter(|_| capacity <= most) else {
            return invalid(format!("it can hold at most {most} values here"));
        };
        let (sender, receiver) = ipc::channel().map_err(|e| failed("socketpair", e))?;
        Ok(Queue {
            sender,
            receiver,
            slots: Semaphore::new(slots)?,
            items: Semaphore::new(0)?,
            store: Store::new(slots)?,
            capacity: slots,
            values: std::marker::PhantomData,
        })
    }

    /// Puts a value in, and waits while the queue is full: `Queue.put(value)`.
    pub fn put(&self, value: T) -> io::Result<()> {
        match self.put_until(value, None) {
            Ok(()) => Ok(()),
            Err(PutError::Io(error)) => Err(error),
            Err(PutError::Full(_)) => unreachable!("without a deadline it waits"),
        }
    }

    /// Puts a value in if there is room at once: `Queue.put_nowait(value)`.
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_until(value, Some(Instant::now()))
    }

    /// Puts a value in, and waits for room up to `timeout`: `Queue.put(value, True, timeout)`.
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
        self.put_until(value, Instant::now().checked_add(timeout))
    }

    /// Takes the oldest value out, and waits while the queue is empty: `Queue.get()`.
    pub fn get(&self) -> io::Result<T> {
        match self.get_until(None) {
            Ok(value) => Ok(value),
            Err(GetError::Io(error)) => Err(error),
            Err(GetError::Empty) => unreachable!("without a deadline it waits"),
        }
    }

    /// Takes the oldest value out if there is one at once: `Queue.get_nowait()`.
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_until(Some(Instant::now()))
    }

    /// Takes the oldest value out, and waits for one up to `timeout`: `Queue.get(True, timeout)`.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_until(Instant::now().checked_add(timeout))
    }

    fn put_until(&self, value: T, deadline: Option<Instant>) -> Result<(), PutError<T>> {
        let mut scratch = SCRATCH.take();
        scratch.clear();
        // Encoded before anything is taken: a value that cannot be encoded changes nothing.
        let encoded = postcard::to_extend(&value, scratch).map_err(|e| PutError::Io(invalid(e)))?;
        if !self.slots.take(deadline).map_err(PutError::Io)? {
            keep(encoded);
            return Err(PutError::Full(value));
        }
        let sent = self.send(&encoded);
        keep(encoded);
        // Not sent: the slot is free again.
        let semaphore = if sent.is_ok() { &self.items } else { &self.slots };
        semaphore.give().and(sent).map_err(PutError::Io)
    }

    fn get_until(&self, deadline: Option<Instant>) -> Result<T, GetError> {
        if !self.items.take(deadline).map_err(GetError::Io)? {
            return Err(GetError::Empty);
        }
        let received = self.recv();
        self.slots.give().map_err(GetError::Io)?;
        let encoded = received.map_err(GetError::Io)?;
        let decoded = postcard::from_bytes(&encoded).map_err(|e| GetError::Io(invalid(e)));
        keep(encoded);
        decoded
    }

    /// Sends an encoded value; we have taken one of `slots`.
    fn send(&self, encoded: &[u8]) -> io::Result<()> {
        let send = |message| self.sender.send(message).map_err(|e| ipc_failed("sendmsg", e));
        if self.fits(encoded.len()) {
            return send(Message::Inline(encoded.to_vec()));
        }
        let place = self.store.write(encoded)?;
        let sent = send(Message::Stored { place, len: encoded.len() });
        if sent.is_err() {
            self.store.release(place, encoded.len())?;
        }
        sent
    }

    /// Receives an encoded value; we have taken one of `items`.
    fn recv(&self) -> io::Result<Vec<u8>> {
        // A value is there for us, so this does not wait. Never ipc-channel's try_recv: it
        // makes the socket non-blocking for every process that shares it.
        let message = loop {
            match self.receiver.recv() {
                Err(IpcError::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                message => break message.map_err(|e| ipc_failed("recvmsg", e))?,
            }
        };
        match message {
            Message::Inline(encoded) => Ok(encoded),
            Message::Stored { place, len } => {
                let encoded = self.store.read(place, len);
                self.store.release(place, len)?;
                encoded
            }
        }
    }

    /// Whether as many values of this encoded size as the queue can hold fit in the socket's buffer.
    ///
    /// If not, a send could wait for room although a slot was free; and a message longer than
    /// the buffer waits for a receiver, who in turn waits for `items`.
    fn fits(&self, len: usize) -> bool {
        let most = OsIpcSender::get_max_fragment_size();
        let others = self.capacity as usize - 1;
        len + HEADER <= most && others.saturating_mul(buffer_cost(len)) <= most
    }
}

/// What ipc-channel and the encoding of [`Message`] add to an encoded value, at most.
const HEADER: usize = 32;

/// How much of a socket's buffer a message takes at most: the kernel counts its own
/// bookkeeping too, and rounds up.
fn buffer_cost(len: usize) -> usize {
    (len + HEADER + 320).next_power_of_two() + 256
}

/// Places for values that are too long for the socket, shared by forked processes.
///
/// There is one for each slot of the queue, so who has taken a slot finds a place, too.
#[derive(Debug)]
struct Store {
    /// A file in memory, with room for every place: what is not written takes no memory.
    file: File,
    /// A pipe with the numbers of the free places in it.
    free: File,
    freed: File,
}

/// As many values as a socket's buffer holds, and no more numbers than the smallest of pipes does:
/// [`Store::new`] must not wait for a reader.
fn most_places() -> usize {
    let numbers = 4096 / size_of::<u32>();
    numbers.min(1 + OsIpcSender::get_max_fragment_size() / buffer_cost(0))
}

/// Where in the file a place starts. They are further apart than any value can be long.
fn offset(place: u32) -> u64 {
    u64::from(place) << 40
}

impl Store {
    fn new(places: u32) -> io::Result<Store> {
        let file = memfd_create("queue", MFdFlags::MFD_CLOEXEC);
        let (free, freed) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("pipe2", errno.into()))?;
        let store = Store {
            file: file.map_err(|errno| failed("memfd_create", errno.into()))?.into(),
            free: free.into(),
            freed: freed.into(),
        };
        (0..places).try_for_each(|place| (&store.freed).write_all(&place.to_ne_bytes()))?;
        Ok(store)
    }

    /// Writes to a free place, and says which: pwrite(2).
    fn write(&self, encoded: &[u8]) -> io::Result<u32> {
        let mut place = [0; 4];
        (&self.free).read_exact(&mut place).map_err(|e| failed("read (pipe)", e))?;
        let place = u32::from_ne_bytes(place);
        if let Err(error) = self.file.write_all_at(encoded, offset(place)) {
            self.release(place, encoded.len())?;
            return Err(failed("pwrite (memfd)", error));
        }
        Ok(place)
    }

    /// Reads from a place: pread(2).
    fn read(&self, place: u32, len: usize) -> io::Result<Vec<u8>> {
        let mut encoded = SCRATCH.take();
        encoded.resize(len, 0);
        let read = self.file.read_exact_at(&mut encoded, offset(place));
        read.map_err(|e| failed("pread (memfd)", e)).map(|()| encoded)
    }

    /// Makes a place free again.
    fn release(&self, place: u32, len: usize) -> io::Result<()> {
        if len > KEEP {
            // Gives the memory back.
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // If that fails, the next value takes the memory over.
            let _ = fallocate(&self.file, flags, offset(place) as i64, len as i64);
        }
        (&self.freed).write_all(&place.to_ne_bytes()).map_err(|e| failed("write (pipe)", e))
    }
}

/// Keeps a buffer for the next value.
fn keep(buffer: Vec<u8>) {
    let kept = SCRATCH.take();
    if (kept.capacity()..=KEEP).contains(&buffer.capacity()) {
        SCRATCH.set(buffer);
    } else {
        SCRATCH.set(kept);
    }
}

/// A counting semaphore that forked processes share: `multiprocessing.Semaphore`, eventfd(2).
#[derive(Debug)]
struct Semaphore(EventFd);

impl Semaphore {
    fn new(count: u32) -> io::Result<Semaphore> {
        let flags = EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let eventfd = EventFd::from_value_and_flags(count, flags);
        Ok(Semaphore(eventfd.map_err(|e| failed("eventfd", e.into()))?))
    }

    /// Takes one: true, or false when none came until the deadline.
    fn take(&self, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            match self.0.read() {
                Ok(_) => return Ok(true),
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(failed("read (eventfd)", errno.into())),
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up: a wait of 0 ms for the last microseconds would be a busy loop.
            let millis = left.as_nanos().div_ceil(1_000_000);
            let wait = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, wait) {
                // Woken, or time to look at the deadline. Another process may be faster: try.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("poll (eventfd)", errno.into())),
            }
        }
    }

    /// Gives one back, and wakes a process that waits to take it.
    fn give(&self) -> io::Result<()> {
        loop {
            match self.0.write(1) {
                Err(Errno::EINTR) => {}
                given => {
                    return given.map(drop).map_err(|e| failed("write (eventfd)", e.into()));
                }
            }
        }
    }
}

impl<T> fmt::Display for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PutError::Full(_) => f.write_str("the queue is full"),
            PutError::Io(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for GetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GetError::Empty => f.write_str("the queue is empty"),
            GetError::Io(error) => error.fmt(f),
        }
    }
}

impl<T: fmt::Debug> std::error::Error for PutError<T> {}
impl std::error::Error for GetError {}

/// Names the call that failed.
fn failed(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call}: {error}"))
}

fn ipc_failed(call: &str, error: IpcError) -> io::Error {
    match error {
        IpcError::Io(error) => failed(call, error),
        IpcError::SerializationError(error) => invalid(error),
        IpcError::Disconnected => failed(call, ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(error: impl fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("encode or decode a value: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        for capacity in [1, 2, 3, 10, 100, most_places()] {
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
        for length in [KEEP / 2, 3 * KEEP] {
            let value: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            for _ in 0..2 {
                queue.try_put(ByteBuf::from(value.clone())).unwrap();
            }
            for _ in 0..2 {
                assert!(queue.try_get().unwrap() == value, "{length}");
            }
            // In blocks of 512 bytes.
            let held = queue.store.file.metadata().unwrap().blocks() * 512;
            assert!(held <= 2 * KEEP as u64, "{length}: {held} bytes");
        }
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
