//! A mailbox in shared memory: one slot for a message, from one writer to one reader.
//!
//! It needs `memory.rs`, `semaphore.rs` and `peers.rs` beside it. Two numbers say whose turn it is:
//!
//! ```text
//!              ┌──────────────── one page ────────────────┐
//!  Writer ───▶ │ came │ written │ taken │ length │ slot … │ ───▶ Reader
//!              └──────────────────────────────────────────┘
//!  write: wait until taken = written,     copy in,  count `written`
//!  read:  wait until taken = written - 1, copy out, count `taken` when the message is dropped
//! ```
//!
//! The two processes meet at a name, in either order, and each notices when the other one is gone: `peers.rs`.
//!
//! # Hazards
//!
//! - A `write` into a free slot succeeds even if the reader is gone; [`Writer::flush`] reports it.
//! - Trust nothing in the page: a length is read once and checked, text is checked on the private copy.
//! - It keeps the *oldest* message until that is taken. For the newest value, use [`SharedMemory::words`].
//! - A fork copies an end, as it copies the end of a pipe: use only one of the copies, preferably in the process that
//!   opened it. A process that has used an end leaves by dropping it or by dying. An unused end is left only when its
//!   last copy is closed, including those in children forked meanwhile, and in programs that another thread is just
//!   starting.
//! - A killed process is gone once the kernel has closed its files: after its core dump, if it makes one, and not
//!   while another process still holds copies of them. (Its children by `Process::spawn` die with it.)

#![expect(unsafe_code, reason = "raw memory that others write to")]

use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::memory::{SharedMemory, failed};
use super::peers::{NAMES, Peer};
use super::semaphore::{Futex, deadline, left};

/// The end of a mailbox that writes. Dropping it leaves the mailbox.
#[derive(Debug)]
pub struct Writer(End);

/// The end of a mailbox that reads. Dropping it leaves the mailbox.
#[derive(Debug)]
pub struct Reader(End);

/// A message whose slot is still taken; dropping it frees the slot for the next one.
///
/// It is a private copy: the writer cannot change it any more.
#[derive(Debug)]
pub struct Message<'a> {
    bytes: Vec<u8>,
    taken: &'a Futex,
    number: u32,
}

#[derive(Debug)]
struct End {
    role: usize,
    /// How many waits in a row spun in vain, or did not spin.
    misses: u32,
    peer: Peer,
}

/// What the page of a mailbox starts with; the slot follows.
#[repr(C, align(64))]
struct Header {
    /// Who has come.
    _came: AtomicU64,
    /// How many messages were put into the slot, and how many of them taken out.
    written: Futex,
    taken: Futex,
    length: AtomicU64,
}

/// The roles.
const WRITER: usize = 0;
const READER: usize = 1;

/// How long a wait sleeps before it looks whether the other side is still there.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long a wait spins at most before it sleeps: about what a wake-up on another CPU costs.
const MAX_SPIN: Duration = Duration::from_micros(100);

/// After this many waits without a successful spin, try spinning again.
const RETRY_SPIN: u32 = 8192;

impl Writer {
    /// Opens the writing end of the mailbox `name`, for messages of up to `capacity` bytes.
    ///
    /// Makes the mailbox if the reader has not, and does not wait for the reader. A mailbox that killed processes
    /// left under that name is replaced. Fails with `AlreadyExists` if it has a writer, or another capacity; with
    /// `TimedOut` if a process that was stopped while opening it does not resume within a second; with
    /// `InvalidData` if the object of that name is not a mailbox; with `PermissionDenied` if it is another user's;
    /// and as [`SharedMemory::create`] does.
    pub fn open(name: &str, capacity: usize) -> io::Result<Writer> {
        End::open(name, WRITER, capacity).map(Writer)
    }

    /// Puts a message into the slot, and blocks up to `timeout` while the slot is taken. `None` blocks
    /// indefinitely, even before the reader has come; a reader that came and is gone is noticed within 250 ms.
    ///
    /// If the slot is free it does not look for the reader: use [`Writer::flush`] to confirm delivery. Before it
    /// sleeps it spins, for up to 100 µs (longer for long messages), as long as that pays.
    ///
    /// Fails with `InvalidInput` if the message is longer than the capacity, with `TimedOut`, and with
    /// `BrokenPipe` if it waits and the reader is gone.
    pub fn write(&mut self, message: &[u8], timeout: Option<Duration>) -> io::Result<()> {
        let end = &mut self.0;
        if message.len() > end.capacity() {
            let what = format!("{} bytes are more than {}", message.len(), end.capacity());
            return Err(failed("write", end.peer.memory.name(), ErrorKind::InvalidInput, &what));
        }
        end.wait_turn("write", timeout)?;
        // SAFETY: the slot has room for `capacity` bytes, and no part of `message` can be in
        // it, since nobody gets a reference into it. The turn is ours: the reader looks at the slot only after
        // `written` was counted. Not covered: a process that writes there without waiting for its turn; it
        // can garble the message.
        unsafe { end.slot().copy_from_nonoverlapping(message.as_ptr(), message.len()) };
        let header = header(&end.peer.memory);
        header.length.store(message.len() as u64, Relaxed);
        header.written.value.fetch_add(1, SeqCst);
        header.written.wake();
        Ok(())
    }

    /// Blocks up to `timeout` until the reader has taken the last message out of the slot.
    ///
    /// Fails as [`Writer::write`] does, but never with `InvalidInput`.
    pub fn flush(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.wait_turn("flush", timeout)
    }
}

impl Reader {
    /// Opens the reading end of the mailbox `name`; see [`Writer::open`], which does the same for the other one.
    pub fn open(name: &str, capacity: usize) -> io::Result<Reader> {
        End::open(name, READER, capacity).map(Reader)
    }

    /// Takes the message out of the slot, and blocks up to `timeout` until there is one. The slot stays taken
    /// until the message is dropped: so the writer's next `write` or `flush` waits until the reader is done with it.
    ///
    /// It waits as [`Writer::write`] does. Fails with `TimedOut`, with `BrokenPipe` if the writer is gone and
    /// left no message, and with `InvalidData` if the length in the page is impossible.
    pub fn read(&mut self, timeout: Option<Duration>) -> io::Result<Message<'_>> {
        let end = &mut self.0;
        end.wait_turn("read", timeout)?;
        let header = header(&end.peer.memory);
        // Read once: checked and then read again, it could have changed in between.
        let length = header.length.load(Relaxed) as usize;
        if length > end.capacity() {
            let what = "the length in the page is impossible";
            return Err(failed("read", end.peer.memory.name(), ErrorKind::InvalidData, what));
        }
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: `length` is at most the size of the slot and of the room in `bytes`, and all of it is
        // initialised by the copy. The turn is ours: the writer writes only after `taken` was counted. Not
        // covered: a process that writes without waiting for its turn; the copy may then be garbled.
        unsafe {
            end.slot().copy_to_nonoverlapping(bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Ok(Message { bytes, taken: &header.taken, number: header.taken.value.load(Relaxed) })
    }
}

impl End {
    fn open(name: &str, role: usize, capacity: usize) -> io::Result<End> {
        let peer = Peer::come(name, role, size_of::<Header>(), capacity)?;
        Ok(End { role, misses: 0, peer })
    }

    /// The longest message in bytes.
    fn capacity(&self) -> usize {
        self.peer.memory.size() - size_of::<Header>()
    }

    fn slot(&self) -> *mut u8 {
        // SAFETY: the mapping is at least as long as a header, so this stays within it.
        unsafe { self.peer.memory.pointer().add(size_of::<Header>()) }
    }

    /// Waits until the peer has incremented its count: `taken` for the writer, `written` for the reader.
    fn wait_turn(&mut self, call: &str, timeout: Option<Duration>) -> io::Result<()> {
        if self.peer.user == 0 {
            self.peer.user = std::process::id();
        }
        let Header { written, taken, length, .. } = header(&self.peer.memory);
        let (counted, before) = match self.role {
            WRITER => (taken, written.value.load(Relaxed).wrapping_sub(1)),
            _ => (written, taken.value.load(Relaxed)),
        };
        let has_come = || counted.value.load(SeqCst) != before;
        if has_come() {
            return Ok(());
        }
        let deadline = deadline(timeout);
        // Spins as long as that pays: with each miss in a row more rarely, since messages are rare, or both
        // sides share one CPU. The other side may be copying a message as long as the last one.
        let copying = length.load(Relaxed).min(self.capacity() as u64) / 4;
        let end = Instant::now() + MAX_SPIN + Duration::from_nanos(copying);
        let end = deadline.map_or(end, |deadline| deadline.min(end));
        self.misses = self.misses % RETRY_SPIN + 1;
        if self.misses.is_power_of_two() && counted.spin(before, end) {
            self.misses = 0;
            return Ok(());
        }
        loop {
            let left = left(deadline);
            let interval = left.map_or(LIVENESS_INTERVAL, |left| left.min(LIVENESS_INTERVAL));
            counted.sleep(before, Some(interval));
            // The count once more after the peer: what it counted before it left is not lost.
            let is_gone = !has_come() && self.peer.other_is_gone();
            let (kind, what) = match is_gone {
                _ if has_come() => return Ok(()),
                true => (ErrorKind::BrokenPipe, "is gone"),
                false if left == Some(Duration::ZERO) => {
                    (ErrorKind::TimedOut, "did not respond in time")
                }
                false => continue,
            };
            let what = format!("the {} {what}", NAMES[1 - self.role]);
            return Err(failed(call, self.peer.memory.name(), kind, &what));
        }
    }
}

impl Futex {
    /// Spins until the value is not `value` any more. False if it still was at the end.
    fn spin(&self, value: u32, end: Instant) -> bool {
        while Instant::now() < end {
            // More often than it looks at the clock.
            if (0..20).any(|_| self.value.load(SeqCst) != value) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }
}

impl Message<'_> {
    /// Frees the slot, and keeps the bytes.
    pub fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Deref for Message<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        // Counted once, also where a forked child has a copy of this value.
        let (taken, next) = (&self.taken.value, self.number.wrapping_add(1));
        if taken.compare_exchange(self.number, next, SeqCst, SeqCst).is_ok() {
            self.taken.wake();
        }
    }
}

fn header(memory: &SharedMemory) -> &Header {
    // SAFETY: the mapping is at least as long as a header (checked in `Peer::come`),
    // starts at a page, and lives as long as `memory`. Every field is made of atomics, so it may change
    // under a shared reference, and any bytes are valid. Not covered: a
    // process that writes nonsense there; waits may then end early or never.
    unsafe { &*memory.pointer().cast() }
}

#[cfg(test)]
mod tests {
    use super::super::memory::unique_name;
    use super::*;
    use std::thread;

    const SOON: Option<Duration> = Some(Duration::from_millis(2));
    const LATE: Option<Duration> = Some(Duration::from_secs(60));

    fn both(name: &str, capacity: usize) -> (Writer, Reader) {
        (Writer::open(name, capacity).unwrap(), Reader::open(name, capacity).unwrap())
    }

    #[test]
    fn messages_go_through_one_by_one() {
        let name = unique_name("/cnblogs");
        let mut writer = Writer::open(&name, 1024).unwrap();
        let reader = thread::spawn(move || {
            let mut reader = Reader::open(&name, 1024).unwrap();
            (0..10_000u32).all(|i| *reader.read(None).unwrap() == *vec![i as u8; i as usize % 1025])
        });
        for i in 0..10_000u32 {
            writer.write(&vec![i as u8; i as usize % 1025], None).unwrap();
        }
        assert!(reader.join().unwrap());
    }

    #[test]
    fn flush_waits_until_the_slot_is_free() {
        let (mut writer, mut reader) = both(&unique_name("/cnblogs"), 16);
        writer.flush(SOON).unwrap();
        writer.write(b"Hello", None).unwrap();
        let held = reader.read(None).unwrap();
        assert_eq!(*held, *b"Hello");
        assert_eq!(writer.flush(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(writer.write(b"x", SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        drop(held);
        writer.flush(None).unwrap();
        writer.flush(SOON).unwrap();
        writer.write(b"", None).unwrap();
        assert_eq!(*reader.read(None).unwrap(), *b"");
        assert_eq!(reader.read(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn the_counts_may_come_round() {
        let (mut writer, mut reader) = both(&unique_name("/cnblogs"), 16);
        for count in [&header(&writer.0.peer.memory).written, &header(&writer.0.peer.memory).taken]
        {
            count.value.store(u32::MAX - 1, SeqCst);
        }
        for i in 0..4 {
            writer.write(&[i], SOON).unwrap();
            assert_eq!(writer.flush(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
            assert_eq!(*reader.read(SOON).unwrap(), [i]);
            assert_eq!(reader.read(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_noticed() {
        let name = unique_name("/cnblogs");
        let (mut writer, mut reader) = both(&name, 16);
        writer.write(b"last words", LATE).unwrap();
        drop(writer);
        assert_eq!(*reader.read(LATE).unwrap(), *b"last words");
        let error = reader.read(LATE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(error.to_string(), format!("read {name}: the writer is gone"));

        let (mut writer, mut reader) = both(&name, 16);
        writer.write(b"Hello", LATE).unwrap();
        reader.read(LATE).unwrap();
        drop(reader);
        // Like a pipe, the slot takes what nobody will read; but nobody waits forever.
        writer.write(b"Anyone?", LATE).unwrap();
        let error = writer.flush(LATE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(error.to_string(), format!("flush {name}: the reader is gone"));
        drop(writer);

        // Before its first message, too.
        let (writer, mut reader) = both(&name, 16);
        drop(writer);
        assert_eq!(reader.read(LATE).unwrap_err().kind(), ErrorKind::BrokenPipe);
        drop(reader);
        let (mut writer, reader) = both(&name, 16);
        drop(reader);
        writer.write(b"Anyone?", LATE).unwrap();
        assert_eq!(writer.flush(LATE).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    /// Whoever polls may look in the moment between the last message and the leaving.
    #[test]
    fn what_the_peer_did_before_it_left_is_not_lost() {
        let name = unique_name("/cnblogs");
        for _ in 0..1000 {
            let (mut writer, mut reader) = both(&name, 16);
            let poll = |result: io::Result<()>| match result {
                Err(error) if error.kind() == ErrorKind::TimedOut => false,
                result => result.map(|()| true).unwrap(),
            };
            thread::scope(|scope| {
                scope.spawn(move || writer.write(b"last words", None).unwrap());
                while !poll(
                    reader.read(Some(Duration::ZERO)).map(|last| assert_eq!(*last, *b"last words")),
                ) {}
            });
            drop(reader);
            let (mut writer, mut reader) = both(&name, 16);
            writer.write(b"last words", None).unwrap();
            thread::scope(|scope| {
                scope.spawn(move || drop(reader.read(None).unwrap()));
                while !poll(writer.flush(Some(Duration::ZERO))) {}
            });
        }
    }

    #[test]
    fn a_length_in_the_page_is_not_believed() {
        let (mut writer, mut reader) = both(&unique_name("/cnblogs"), 16);
        writer.write(b"Hello", None).unwrap();
        header(&writer.0.peer.memory).length.store(17, Relaxed);
        assert_eq!(reader.read(None).unwrap_err().kind(), ErrorKind::InvalidData);
        let error = writer.write(&[0; 17], None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
