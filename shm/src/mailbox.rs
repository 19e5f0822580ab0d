//! A mailbox in shared memory: one slot for a message, from one writer to one reader.
//!
//! It needs `memory.rs` and `semaphore.rs` beside it. Two numbers say whose turn it is:
//!
//! ```text
//!              ┌──────────────── one page ────────────────┐
//!  Writer ───▶ │ came │ written │ taken │ length │ slot … │ ───▶ Reader
//!              └──────────────────────────────────────────┘
//!  write: wait until taken = written,     copy in,  count `written`
//!  read:  wait until taken = written - 1, copy out, count `taken` when the message is dropped
//! ```
//!
//! The two processes meet at a name, in either order. The page says who has come, and a lock says who is
//! here: one byte of the object for each role (`F_OFD_SETLK`), which the kernel unlocks when a process dies,
//! however it dies. Come and not here is gone. Whoever opens or leaves a mailbox first locks a third byte, the
//! door: so each finds it as the last one left it. The last to leave unlinks the name, and whoever finds one
//! that somebody has left already begins anew.
//!
//! # Hazards
//!
//! - A `write` into a free slot succeeds although the reader is gone; [`Writer::flush`] tells.
//! - Trust nothing in the page: a length is read once and checked, text is checked on the private copy.
//! - It keeps the *oldest* message until that is taken. For the newest value, use [`SharedMemory::words`].
//! - A fork copies an end, as it copies the end of a pipe: use one of the copies. A process that has used an
//!   end leaves by dropping it or by dying; an end that was moved into a child, unused, leaves with the child.
//! - A killed process is gone when the kernel has closed its files: after its core dump, if it makes one, and
//!   not as long as a child lives on that has copies of them. (Those of `Process::spawn` die with it.)

#![expect(unsafe_code, reason = "raw memory that others write to")]

use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock};
use nix::sys::stat::Mode;

use super::memory::{Object, RESERVED, SharedMemory, failed, named};
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
    /// The process that has used this end; 0 before.
    user: u32,
    /// How many waits in a row spun in vain, or did not spin.
    misses: u32,
    // Dropped in this order: only what is closed can be left.
    memory: SharedMemory,
    _name: Name,
}

/// The name of a mailbox; dropping it unlinks the name if nobody is here.
#[derive(Debug)]
struct Name(String);

/// What the page of a mailbox starts with; the slot follows.
#[repr(C, align(64))]
struct Header {
    /// Whether the writer, and whether the reader, has come.
    came: [AtomicU32; 2],
    /// How many messages were put into the slot, and how many of them taken out.
    written: Futex,
    taken: Futex,
    length: AtomicU64,
}

/// The roles, and the bytes that are locked for them.
const WRITER: usize = 0;
const READER: usize = 1;
const NAMES: [&str; 2] = ["writer", "reader"];

/// The byte that is locked by whoever is opening or leaving.
const DOOR: usize = 2;

/// How long to wait at the door, which is held for some microseconds, unless the process was stopped there.
const DOOR_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to look at the door, for which the kernel has no wait with a timeout.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How long a wait sleeps before it looks whether the other side is still there.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long a wait spins at most before it sleeps: about what a wake-up on another CPU costs.
const MAX_SPIN: Duration = Duration::from_micros(100);

/// After so many waits without success, try spinning again.
const RETRY_SPIN: u32 = 8192;

impl Writer {
    /// Opens the writing end of the mailbox `name`, for messages of up to `capacity` bytes.
    ///
    /// Makes the mailbox if the reader has not, and waits for nobody. What killed processes left under that
    /// name is replaced. Fails with `AlreadyExists` if it has a writer, or another capacity; with `TimedOut` if a
    /// process that was stopped while opening it does not go on within a second; with `InvalidData` if
    /// what has that name is not a mailbox; with `PermissionDenied` if it is another user's; and as
    /// [`SharedMemory::create`] does.
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
            return Err(failed("write", end.memory.name(), ErrorKind::InvalidInput, &what));
        }
        end.wait_turn("write", timeout)?;
        // SAFETY: the slot has room for `capacity` bytes, and no part of `message` can be in
        // it, since nobody gets a reference into it. The turn is ours: the reader looks at the slot only after
        // `written` was counted. Not covered: a process that writes there without waiting for its turn; it
        // can garble the message.
        unsafe { end.slot().copy_from_nonoverlapping(message.as_ptr(), message.len()) };
        let header = header(&end.memory);
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
        let header = header(&end.memory);
        // Read once: checked and then read again, it could have changed in between.
        let length = header.length.load(Relaxed) as usize;
        if length > end.capacity() {
            let what = "the length in the page is impossible";
            return Err(failed("read", end.memory.name(), ErrorKind::InvalidData, what));
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
        let fail = |kind, what: &str| Err(failed("open", name, kind, what));
        let header_size = size_of::<Header>() as u64;
        let wanted = header_size.saturating_add(capacity as u64);
        let on_error = Name(name.to_owned());
        loop {
            let object = Object::open(name, OFlag::O_CREAT, RESERVED)?;
            lock_door(&object)?; // on any error, closing the object unlocks it
            let there = object.metadata()?;
            if there.nlink() == 0 {
                continue; // unlinked while we waited
            }
            if there.mode() & RESERVED.bits() == 0 || (1..header_size).contains(&there.len()) {
                return fail(ErrorKind::InvalidData, "not a mailbox");
            }
            // Only what is looked at here is reserved here: all of it may take long.
            let is_new = there.len() == 0;
            let size = if is_new { wanted } else { there.len() };
            object.reserve(header_size)?;
            if is_new {
                object.resize(size)?;
            }
            let memory = object.map(size)?;
            let came = header(&memory).came.each_ref();
            let here = [is_locked(&memory.object, WRITER)?, is_locked(&memory.object, READER)?];
            let is_left = here == [false; 2] || came.map(|came| came.load(SeqCst) != 0) != here;
            if is_left && !is_new {
                memory.object.unlink(); // whoever still uses it needs no name to learn that
                continue;
            }
            if here[role] || size != wanted {
                let (role, capacity) = (NAMES[role], size - header_size);
                let what = format!("it has a capacity of {capacity}");
                let what = if size == wanted { format!("it has a {role} already") } else { what };
                return fail(ErrorKind::AlreadyExists, &what);
            }
            lock(&memory.object, role, F_WRLCK)?;
            came[role].store(1, SeqCst);
            lock(&memory.object, DOOR, F_UNLCK)?;
            let end = End { role, user: 0, misses: 0, memory, _name: on_error };
            end.memory.object.reserve(size)?;
            return Ok(end);
        }
    }

    /// The longest message in bytes.
    fn capacity(&self) -> usize {
        self.memory.size() - size_of::<Header>()
    }

    fn slot(&self) -> *mut u8 {
        // SAFETY: the mapping is at least as long as a header, so this stays within it.
        unsafe { self.memory.pointer().add(size_of::<Header>()) }
    }

    /// Waits until the peer has counted: as the writer for `taken`, as the reader for `written`.
    fn wait_turn(&mut self, call: &str, timeout: Option<Duration>) -> io::Result<()> {
        if self.user == 0 {
            self.user = std::process::id();
        }
        let Header { written, taken, length, .. } = header(&self.memory);
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
        self.misses = self.misses % RETRY_SPIN + 1;
        if self.misses.is_power_of_two() {
            let copying = length.load(Relaxed).min(self.capacity() as u64) / 4;
            let end = Instant::now() + MAX_SPIN + Duration::from_nanos(copying);
            let end = deadline.map_or(end, |deadline| deadline.min(end));
            while Instant::now() < end {
                // More often than it looks at the clock.
                if (0..20).any(|_| has_come()) {
                    self.misses = 0;
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        }
        loop {
            let left = left(deadline);
            let interval = left.map_or(LIVENESS_INTERVAL, |left| left.min(LIVENESS_INTERVAL));
            counted.sleep(before, Some(interval));
            // In this order: what the peer counted before it left is not lost.
            let is_gone = !has_come() && self.peer_is_gone();
            let (kind, what) = match is_gone {
                _ if has_come() => return Ok(()),
                true => (ErrorKind::BrokenPipe, "is gone"),
                false if left == Some(Duration::ZERO) => {
                    (ErrorKind::TimedOut, "did not come in time")
                }
                false => continue,
            };
            let peer = NAMES[1 - self.role];
            return Err(failed(call, self.memory.name(), kind, &format!("the {peer} {what}")));
        }
    }

    /// Whether the peer has come and is not here, or nobody can come any more.
    fn peer_is_gone(&self) -> bool {
        let (object, peer) = (&self.memory.object, 1 - self.role);
        match header(&self.memory).came[peer].load(SeqCst) {
            0 => object.metadata().is_ok_and(|there| there.nlink() == 0),
            _ => !is_locked(object, peer).unwrap_or(true),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Closing would do, unless a child has a copy. But one that has never been used here may be the child's.
        if self.user == std::process::id() {
            let _ = lock(&self.memory.object, self.role, F_UNLCK);
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Whatever has the name by now.
        let Ok(object) = Object::open(&self.0, OFlag::empty(), Mode::empty()) else {
            return;
        };
        let is_mailbox = object.metadata().is_ok_and(|it| it.mode() & RESERVED.bits() != 0);
        if is_mailbox && lock_door(&object).is_ok() {
            let is_free = |role| is_locked(&object, role).is_ok_and(|locked| !locked);
            if [WRITER, READER].into_iter().all(is_free) {
                object.unlink();
            }
            let _ = lock(&object, DOOR, F_UNLCK);
        }
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
    // SAFETY: the mapping is at least as long as a header (checked in `open`),
    // starts at a page, and lives as long as `memory`. Every field is made of atomics, so it may change
    // under a shared reference, and any bytes are valid. Not covered: a
    // process that writes nonsense there; waits may then end early or never.
    unsafe { &*memory.pointer().cast() }
}

/// Locks the door, and waits for whoever holds it.
fn lock_door(object: &Object) -> io::Result<()> {
    let deadline = Instant::now() + DOOR_TIMEOUT;
    while !lock(object, DOOR, F_WRLCK)? {
        if Instant::now() >= deadline {
            let what = "a process that was opening or leaving it has stopped";
            return Err(failed("open", object.name(), ErrorKind::TimedOut, what));
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
    Ok(())
}

/// Locks one byte of the object, or unlocks it, for this descriptor and its copies. False if another has locked it.
fn lock(object: &Object, byte: usize, kind: i32) -> io::Result<bool> {
    match fcntl(&object.file, FcntlArg::F_OFD_SETLK(&one_byte(byte, kind))) {
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(named("fcntl F_OFD_SETLK", object.name(), errno.into())),
        Ok(_) => Ok(true),
    }
}

/// Whether another descriptor has locked this byte.
fn is_locked(object: &Object, byte: usize) -> io::Result<bool> {
    let mut there = one_byte(byte, F_WRLCK);
    let looked = fcntl(&object.file, FcntlArg::F_OFD_GETLK(&mut there));
    looked.map_err(|errno| named("fcntl F_OFD_GETLK", object.name(), errno.into()))?;
    Ok(there.l_type != F_UNLCK as _)
}

fn one_byte(byte: usize, kind: i32) -> flock {
    let (l_type, l_whence) = (kind as _, SEEK_SET as _);
    flock { l_type, l_whence, l_start: byte as _, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::memory::unique_name;
    use super::*;
    use std::path::Path;
    use std::thread;

    const SOON: Option<Duration> = Some(Duration::from_millis(2));
    const LATE: Option<Duration> = Some(Duration::from_secs(60));

    fn exists(name: &str) -> bool {
        Path::new("/dev/shm").join(&name[1..]).exists()
    }

    fn both(name: &str, capacity: usize) -> (Writer, Reader) {
        (Writer::open(name, capacity).unwrap(), Reader::open(name, capacity).unwrap())
    }

    /// What both ends answer to a name.
    fn refused(name: &str, capacity: usize) -> [io::Error; 2] {
        let reader = Reader::open(name, capacity).unwrap_err();
        [Writer::open(name, capacity).unwrap_err(), reader]
    }

    #[test]
    fn what_is_not_a_mailbox_is_refused() {
        let name = unique_name("/cnblogs");
        for size in [8, 4096] {
            let there = SharedMemory::create(&name, size).unwrap();
            there.words()[0].store(7, Relaxed);
            for error in refused(&name, 16) {
                assert_eq!(error.to_string(), format!("open {name}: not a mailbox"));
            }
            assert_eq!(there.words()[0].load(Relaxed), 7);
        }
        // And the other way round: the live slot is not plain memory.
        let _writer = Writer::open(&name, 16).unwrap();
        let error = SharedMemory::open(&name).unwrap_err();
        assert_eq!(error.to_string(), format!("shm_open {name}: it is not plain memory"));
    }

    /// What a process leaves that was killed before it had made the mailbox, and later.
    #[test]
    fn what_killed_processes_left_is_replaced() {
        let name = unique_name("/cnblogs");
        for (size, came) in [(0, [0, 0]), (64, [0, 0]), (4096, [1, 0]), (4096, [1, 1])] {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL;
            let object = Object::open(&name, flags, RESERVED).unwrap();
            if size > 0 {
                object.reserve(size).unwrap();
                let memory = object.map(size).unwrap();
                let header = header(&memory);
                header.came.iter().zip(came).for_each(|(word, came)| word.store(came, SeqCst));
                header.written.value.store(5, SeqCst);
            }
            let (mut writer, mut reader) = both(&name, 16);
            writer.write(b"Hello", SOON).unwrap();
            assert_eq!(*reader.read(SOON).unwrap(), *b"Hello");
            drop((writer, reader));
            assert!(!exists(&name));
        }
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
        for count in [&header(&writer.0.memory).written, &header(&writer.0.memory).taken] {
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
    fn each_role_is_taken_once_and_the_last_to_leave_unlinks() {
        let name = unique_name("/cnblogs");
        let mut writer = Writer::open(&name, 16).unwrap();
        let error = Writer::open(&name, 16).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(error.to_string(), format!("open {name}: it has a writer already"));
        let error = Reader::open(&name, 17).unwrap_err();
        assert_eq!(error.to_string(), format!("open {name}: it has a capacity of 16"));
        let mut reader = Reader::open(&name, 16).unwrap();
        for error in refused(&name, 16) {
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        }
        // Whoever was refused has ended nothing.
        writer.write(b"Hello", None).unwrap();
        assert_eq!(*reader.read(None).unwrap(), *b"Hello");
        writer.write(b"bye", None).unwrap();
        drop(writer);
        // That one is over, so whoever comes now begins a new one.
        let next = Writer::open(&name, 16).unwrap();
        assert_eq!(*reader.read(None).unwrap(), *b"bye");
        drop(reader);
        assert!(exists(&name));
        drop(next);
        assert!(!exists(&name));
    }

    /// Leaving must not remove what has the name by now.
    #[test]
    fn what_somebody_else_made_meanwhile_stays() {
        let name = unique_name("/cnblogs");
        let mut reader = Reader::open(&name, 16).unwrap();
        SharedMemory::remove(&name).unwrap();
        // Nobody can come any more.
        assert_eq!(reader.read(LATE).unwrap_err().kind(), ErrorKind::BrokenPipe);
        let memory = SharedMemory::create(&name, 16).unwrap();
        drop(reader);
        assert!(exists(&name));
        drop(memory);
    }

    /// As by a process that is stopped while it opens the mailbox.
    #[test]
    fn a_door_that_stays_locked_is_an_error() {
        let name = unique_name("/cnblogs");
        let writer = Writer::open(&name, 16).unwrap();
        let other = Object::open(&name, OFlag::empty(), Mode::empty()).unwrap();
        assert!(lock(&other, DOOR, F_WRLCK).unwrap());
        let error = Reader::open(&name, 16).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let what = "a process that was opening or leaving it has stopped";
        assert_eq!(error.to_string(), format!("open {name}: {what}"));
        drop(other);
        drop((writer, Reader::open(&name, 16).unwrap()));
        assert!(!exists(&name));
    }

    #[test]
    fn a_size_that_cannot_be_leaves_nothing() {
        let name = unique_name("/cnblogs");
        for capacity in [usize::MAX, isize::MAX as usize, 1 << 60] {
            for error in refused(&name, capacity) {
                assert!(error.to_string().contains(&name), "{error}");
            }
            assert!(!exists(&name));
        }
    }

    #[test]
    fn a_length_in_the_page_is_not_believed() {
        let (mut writer, mut reader) = both(&unique_name("/cnblogs"), 16);
        writer.write(b"Hello", None).unwrap();
        header(&writer.0.memory).length.store(17, Relaxed);
        assert_eq!(reader.read(None).unwrap_err().kind(), ErrorKind::InvalidData);
        let error = writer.write(&[0; 17], None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
