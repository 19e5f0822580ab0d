//! A mailbox in shared memory: one slot for a message, and two semaphores that say whose turn it is.
//!
//! It needs `memory.rs` and `semaphore.rs` beside it.
//!
//! ```text
//!              ┌─────────────── one page ───────────────┐
//!  writer ───▶ │ users │ length │ filled │ empty │ slot │ ───▶ reader
//!              └────────────────────────────────────────┘
//!  write: wait `empty`, copy in, post `filled`      read: wait `filled`, copy out, post `empty`
//! ```
//!
//! Two processes meet at the name, in either order. Each records in the page which process it is, so
//! that its peer can check that it is alive. Opening and closing take a short flock(2): whoever comes
//! creates the mailbox, joins it, or removes a stale one; the last to leave unlinks the name.
//!
//! # Hazards
//!
//! - A `write` into a free slot succeeds although the reader is gone; [`Mailbox::flush`] tells.
//! - Trust nothing in the page: a length is read once and checked, text is checked on the private copy.
//! - A forked child that inherits a mailbox counts from its first `write` or `read` on: if it dies
//!   before, only its parent can tell. A value moved into a child is dropped in the parent, which
//!   counts as leaving until then. And once a process has written or read, a child forked afterwards
//!   must not do the same.
//! - Both sides must see the same /proc (the same pid namespace), and leave before they exec another
//!   program.

#![expect(unsafe_code, reason = "raw memory that others write to")]

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::libc::{LOCK_EX, LOCK_UN};

use super::memory::{Object, RESERVED, SharedMemory, failed};
use super::semaphore::{LEFT, PID_MASK, RawSemaphore, identity, is_alive};

/// A slot for one message in shared memory, from one writer to one reader.
///
/// Two may open it, in one process or in two. The first that writes is the writer and the first that
/// reads is the reader, permanently.
///
/// A wait spins for up to 100 µs first (longer for long messages), as long as that pays, then it sleeps.
/// With a timeout of `None` it blocks as long as it takes, also for a peer that has not come yet; a peer
/// that has come and is gone is noticed within 250 ms.
#[derive(Debug)]
pub struct Mailbox {
    memory: SharedMemory,
    /// The process that opened it, and which of the two that is.
    opener: u64,
    seat: usize,
    /// The roles taken through this value: writer, reader.
    roles: [Cell<bool>; 2],
    /// Whether a [`Message`] is outstanding.
    held: Cell<bool>,
    /// For each role, how many waits in a row spun in vain, or did not spin.
    misses: [Cell<u32>; 2],
}

/// A message whose slot is still taken; dropping it frees the slot for the next one.
///
/// It is a private copy: the writer cannot change it any more.
#[derive(Debug)]
pub struct Message<'a> {
    bytes: Vec<u8>,
    mailbox: &'a Mailbox,
    reader: u32,
}

/// What the page of a mailbox starts with; the slot follows.
#[repr(C, align(64))]
struct Header {
    /// The two processes that opened it, see [`identity`]: 0 before they come, [`LEFT`] after they left.
    openers: [AtomicU64; 2],
    /// The writer and the reader, likewise. They may be children of the openers.
    roles: [AtomicU64; 2],
    length: AtomicU64,
    filled: RawSemaphore,
    empty: RawSemaphore,
}

/// The roles, as indices.
const WRITER: usize = 0;
const READER: usize = 1;
const NAMES: [&str; 2] = ["writer", "reader"];

/// How often to look again where the kernel has no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Mailbox {
    /// Makes a mailbox for messages of up to `capacity` bytes.
    ///
    /// What killed processes left under `name` is replaced. Fails with `AlreadyExists` if a mailbox of
    /// that name is in use; otherwise as [`Mailbox::open`] and [`SharedMemory::create`] do.
    pub fn create(name: &str, capacity: usize) -> io::Result<Mailbox> {
        Mailbox::enter(name, Some(capacity), false)
    }

    /// Opens a mailbox, and waits up to `timeout` (`None`: as long as it takes) for it to be created.
    ///
    /// Fails with `TimedOut`, with `AlreadyExists` if two use it already, with `InvalidData` if the
    /// object is not a mailbox, and with `PermissionDenied` if it is another user's.
    pub fn open(name: &str, timeout: Option<Duration>) -> io::Result<Mailbox> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            match Mailbox::enter(name, None, true) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                entered => return entered,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let what = "nobody created it in time";
                return Err(failed("open", name, ErrorKind::TimedOut, what));
            }
            // The kernel cannot wake us when a name appears: look again. (Not `sleep`, which frequent
            // signals can prolong.)
            std::thread::park_timeout(POLL_INTERVAL);
        }
    }

    /// Creates a mailbox, or opens it if another process has; for two that start in either order.
    ///
    /// Fails with `AlreadyExists` also if the other one made it with another capacity; otherwise as
    /// [`Mailbox::create`] and [`Mailbox::open`] do.
    pub fn create_or_open(name: &str, capacity: usize) -> io::Result<Mailbox> {
        Mailbox::enter(name, Some(capacity), true)
    }

    /// The longest message in bytes.
    pub fn capacity(&self) -> usize {
        self.memory.size() - size_of::<Header>()
    }

    /// Puts a message into the slot, and blocks up to `timeout` while the slot is taken.
    ///
    /// If the slot is free it does not look for the reader: use [`Mailbox::flush`] to confirm delivery.
    ///
    /// Fails with `InvalidInput` if the message is longer than the capacity, with `TimedOut`, with
    /// `BrokenPipe` if it waits and the reader is gone, and with `AlreadyExists` if another is the writer.
    pub fn write(&self, message: &[u8], timeout: Option<Duration>) -> io::Result<()> {
        if message.len() > self.capacity() {
            let what = format!("{} bytes are more than {}", message.len(), self.capacity());
            return Err(failed("write", self.memory.name(), ErrorKind::InvalidInput, &what));
        }
        self.wait_turn("write", WRITER, timeout)?;
        // SAFETY: the slot has room for `capacity` bytes, and no part of `message` can be in
        // it, since nobody gets a reference into it. `empty` gave the turn to us alone. Not
        // covered: a process that writes there without waiting for its turn; it can garble
        // the message.
        unsafe { self.slot().copy_from_nonoverlapping(message.as_ptr(), message.len()) };
        header(&self.memory).length.store(message.len() as u64, Relaxed);
        header(&self.memory).filled.post();
        Ok(())
    }

    /// Blocks up to `timeout` until the reader has taken the last message out of the slot.
    ///
    /// Fails as [`Mailbox::write`] does, but never with `InvalidInput`.
    pub fn flush(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.wait_turn("flush", WRITER, timeout)?;
        header(&self.memory).empty.post();
        Ok(())
    }

    /// Takes the message out of the slot, and blocks up to `timeout` until there is one.
    ///
    /// Fails with `TimedOut`, with `BrokenPipe` if the writer is gone and left no message, with
    /// `InvalidData` if the length in the page is impossible, with `AlreadyExists` if
    /// another is the reader, and with `Deadlock` while this one still holds a [`Message`].
    pub fn read(&self, timeout: Option<Duration>) -> io::Result<Vec<u8>> {
        let bytes = self.copy_out(timeout)?;
        header(&self.memory).empty.post();
        Ok(bytes)
    }

    /// Like [`Mailbox::read`], but the slot stays taken until the message is dropped.
    ///
    /// So the writer's next `write` or `flush` blocks until the reader is done with this message.
    pub fn hold(&self, timeout: Option<Duration>) -> io::Result<Message<'_>> {
        let bytes = self.copy_out(timeout)?;
        self.held.set(true);
        Ok(Message { bytes, mailbox: self, reader: std::process::id() })
    }

    /// Makes a mailbox of this capacity, or takes the second seat if we may `join`. Fails with `NotFound` if there
    /// is none, and we are not to make it.
    fn enter(name: &str, capacity: Option<usize>, join: bool) -> io::Result<Mailbox> {
        let fail = |kind, what: &str| Err(failed("open", name, kind, what));
        let header_size = size_of::<Header>() as u64;
        let wanted = capacity.map(|capacity| header_size.saturating_add(capacity as u64));
        let flags = if wanted.is_some() { OFlag::O_CREAT } else { OFlag::empty() };
        loop {
            let (mut object, _) = Object::open(name, flags, RESERVED)?;
            object.flock(LOCK_EX)?;
            let there = object.file.metadata()?;
            let size = there.len();
            if there.nlink() == 0 {
                continue; // removed while we waited for the lock
            }
            if there.mode() & RESERVED.bits() == 0 || (1..header_size).contains(&size) {
                return fail(ErrorKind::InvalidData, "not a mailbox");
            }
            // Size 0: just created, or its creator died before allocating.
            if size == 0 {
                let wanted = wanted.ok_or(ErrorKind::NotFound)?;
                object.owner = Some(std::process::id());
                object.reserve(wanted)?;
                let memory = object.map(wanted)?;
                header(&memory).empty.post();
                return Mailbox::sit_down(memory, 0);
            }
            let memory = object.map(size)?;
            let [first, second] = header(&memory).openers.each_ref();
            let is_free = second.load(SeqCst) == 0;
            match (is_alive(first), is_alive(second)) {
                (true, _) if is_free && join && wanted.is_none_or(|wanted| wanted == size) => {
                    return Mailbox::sit_down(memory, 1);
                }
                (true, other) if is_free || other => {
                    let what = format!("it is in use, with a capacity of {}", size - header_size);
                    return fail(ErrorKind::AlreadyExists, &what);
                }
                // The session has ended. Whoever still uses it needs no name to learn that.
                _ => memory.object.unlink(),
            }
        }
    }

    /// Takes a seat, and lets go of the lock.
    fn sit_down(mut memory: SharedMemory, seat: usize) -> io::Result<Mailbox> {
        let opener = identity(std::process::id())?;
        header(&memory).openers[seat].store(opener, SeqCst);
        memory.object.owner = None; // the last opener to leave unlinks it
        memory.object.flock(LOCK_UN)?;
        let (roles, held, misses) = Default::default();
        Ok(Mailbox { memory, opener, seat, roles, held, misses })
    }

    fn slot(&self) -> *mut u8 {
        // SAFETY: the mapping is at least as long as a header, so this stays within it.
        unsafe { self.memory.pointer().add(size_of::<Header>()) }
    }

    /// Takes a role on first use, so that the other side can tell whether this process is alive.
    fn take_role(&self, role: usize) -> io::Result<()> {
        if !self.roles[role].get() {
            let (word, us) = (&header(&self.memory).roles[role], identity(std::process::id())?);
            if word.compare_exchange(0, us, SeqCst, SeqCst).is_err() {
                // Not to count as a peer that has left: somebody else may take the seat.
                let seat = &header(&self.memory).openers[self.seat];
                if !self.roles.iter().any(Cell::get) {
                    let _ = seat.compare_exchange(self.opener, 0, SeqCst, SeqCst);
                }
                let what = format!("it already has, or had, a {}", NAMES[role]);
                return Err(failed("attach", self.memory.name(), ErrorKind::AlreadyExists, &what));
            }
            self.roles[role].set(true);
        }
        Ok(())
    }

    /// Waits for `filled` as the reader, and copies the message.
    fn copy_out(&self, timeout: Option<Duration>) -> io::Result<Vec<u8>> {
        if self.held.get() {
            let what = "the last message is still held: no further message can arrive";
            return Err(failed("read", self.memory.name(), ErrorKind::Deadlock, what));
        }
        self.wait_turn("read", READER, timeout)?;
        // Read once: checked and then read again, it could have changed in between.
        let length = header(&self.memory).length.load(Relaxed) as usize;
        if length > self.capacity() {
            let what = "the length in the page is impossible";
            return Err(failed("read", self.memory.name(), ErrorKind::InvalidData, what));
        }
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: `length` is at most the size of the slot and of the room in `bytes`, and all
        // of it is initialised by the copy. `filled` gave the turn to us alone. Not covered:
        // a process that writes without waiting for its turn; the copy may then be garbled.
        unsafe {
            self.slot().copy_to_nonoverlapping(bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Ok(bytes)
    }

    /// Waits as the writer for `empty`, as the reader for `filled`: the peer posts it.
    fn wait_turn(&self, call: &str, role: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.take_role(role)?;
        let (header, peer) = (header(&self.memory), 1 - role);
        let semaphore = [&header.empty, &header.filled][role];
        let spin = || {
            // The other side may be copying a message as long as the last one.
            let length = header.length.load(Relaxed).min(self.capacity() as u64);
            semaphore.spin(Duration::from_nanos(length / 4), &self.misses[role])
        };
        if semaphore.try_wait() || spin() || semaphore.wait(timeout, || self.is_gone(peer)) {
            return Ok(());
        }
        let (kind, what) = match self.is_gone(peer) {
            true => (ErrorKind::BrokenPipe, "is gone"),
            false => (ErrorKind::TimedOut, "did not come in time"),
        };
        Err(failed(call, self.memory.name(), kind, &format!("the {} {what}", NAMES[peer])))
    }

    /// Whether whoever has this role has left or died, or nobody is left who could take it.
    fn is_gone(&self, role: usize) -> bool {
        let (role, opener) =
            (&header(&self.memory).roles[role], &header(&self.memory).openers[1 - self.seat]);
        match (role.load(SeqCst), opener.load(SeqCst)) {
            // Nobody else came so far; without a name nobody can.
            (0, 0) => self.memory.object.file.metadata().is_ok_and(|there| there.nlink() == 0),
            (0, _) => !is_alive(opener),
            _ => !is_alive(role),
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let (header, object) = (header(&self.memory), &self.memory.object);
        // A forked child has a copy of this value, but what its parent has taken is not its own.
        let is_ours = |id: u64| id & PID_MASK == u64::from(std::process::id());
        for (role, _) in header.roles.iter().zip(&self.roles).filter(|(_, taken)| taken.get()) {
            if is_ours(role.load(Relaxed)) {
                role.store(LEFT, SeqCst);
            }
        }
        if is_ours(self.opener) && object.flock(LOCK_EX).is_ok() {
            let seat = &header.openers[self.seat];
            let _ = seat.compare_exchange(self.opener, LEFT, SeqCst, SeqCst);
            if !header.openers.iter().any(is_alive) {
                object.unlink(); // we are the last
            }
            let _ = object.flock(LOCK_UN);
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
        // A forked child has a copy of this value, but must not free the slot.
        if self.reader == std::process::id() {
            self.mailbox.held.set(false);
            header(&self.mailbox.memory).empty.post();
        }
    }
}

fn header(memory: &SharedMemory) -> &Header {
    // SAFETY: the mapping is at least as long as a header (checked in `enter`),
    // starts at a page, and lives as long as `memory`. Every field is made of atomics, so it may change
    // under a shared reference, and any bytes are valid. Not covered: a
    // process that writes nonsense there; waits may then end early or never.
    unsafe { &*memory.pointer().cast() }
}

#[cfg(test)]
mod tests {
    use super::super::{memory::unique_name, semaphore::PID_BITS};
    use super::*;
    use std::path::Path;
    use std::thread;

    const SOON: Option<Duration> = Some(Duration::from_millis(2));

    fn exists(name: &str) -> bool {
        Path::new("/dev/shm").join(&name[1..]).exists()
    }

    #[test]
    fn what_is_not_a_mailbox_is_refused() {
        let name = unique_name("/cnblogs");
        let error = Mailbox::open(&name, SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        for size in [8, 4096] {
            let there = SharedMemory::create(&name, size).unwrap();
            there.words()[0].store(7, Relaxed);
            for error in [
                Mailbox::open(&name, None).unwrap_err(),
                Mailbox::create(&name, 16).unwrap_err(),
                Mailbox::create_or_open(&name, 16).unwrap_err(),
            ] {
                assert_eq!(error.to_string(), format!("open {name}: not a mailbox"));
            }
            assert_eq!(there.words()[0].load(Relaxed), 7);
        }
        // And the other way round: the live slot is not plain memory.
        let _mailbox = Mailbox::create(&name, 16).unwrap();
        let error = SharedMemory::open(&name).unwrap_err();
        assert_eq!(error.to_string(), format!("shm_open {name}: it is not plain memory"));
    }

    /// What a maker leaves that was killed before it was done, and what two users leave.
    #[test]
    fn open_never_sees_a_half_initialised_mailbox() {
        let name = unique_name("/cnblogs");
        let leavings = |size: u64, user: u64| {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL;
            let (object, _) = Object::open(&name, flags, RESERVED).unwrap();
            if size > 0 {
                object.reserve(size).unwrap();
                let memory = object.map(size).unwrap();
                memory.words()[0].store(user, Relaxed);
            }
        };
        // A process id that is in use, with the start of another process.
        let dead = 1 << PID_BITS | u64::from(std::process::id());
        for (size, user) in [(0, 0), (4096, 0), (4096, dead), (4096, LEFT)] {
            leavings(size, user);
            assert_eq!(Mailbox::open(&name, SOON).unwrap_err().kind(), ErrorKind::TimedOut);
            let creator = Mailbox::create(&name, 16).unwrap();
            let opener = Mailbox::open(&name, SOON).unwrap();
            creator.write(b"Hello", SOON).unwrap();
            assert_eq!(opener.read(SOON).unwrap(), b"Hello");
            drop((creator, opener));
            assert!(!exists(&name));
        }
    }

    #[test]
    fn messages_go_through_one_by_one() {
        let name = unique_name("/cnblogs");
        let writer = Mailbox::create(&name, 1024).unwrap();
        let reader = thread::spawn(move || {
            let mailbox = Mailbox::open(&name, None).unwrap();
            (0..10_000u32).all(|i| mailbox.read(None).unwrap() == vec![i as u8; i as usize % 1025])
        });
        for i in 0..10_000u32 {
            writer.write(&vec![i as u8; i as usize % 1025], None).unwrap();
        }
        assert!(reader.join().unwrap());
    }

    /// The same with one mapping, where ThreadSanitizer sees both sides at the same address.
    #[test]
    fn the_protocol_has_no_data_race() {
        struct Both(Mailbox);
        // SAFETY: one thread only writes and the other only reads, so each uses its own cells; the
        // header is made to be shared. Not covered: more than two threads.
        unsafe impl Sync for Both {}
        let both = &Both(Mailbox::create(&unique_name("/cnblogs"), 1024).unwrap());
        thread::scope(|scope| {
            scope.spawn(move || {
                let Both(mailbox) = both;
                (0..2000u32)
                    .for_each(|i| mailbox.write(&vec![i as u8; i as usize % 1025], None).unwrap());
            });
            for i in 0..2000u32 {
                let Both(mailbox) = both;
                assert!(*mailbox.hold(None).unwrap() == *vec![i as u8; i as usize % 1025]);
            }
        });
    }

    #[test]
    fn flush_waits_until_the_slot_is_free() {
        let name = unique_name("/cnblogs");
        let writer = Mailbox::create(&name, 16).unwrap();
        let reader = Mailbox::open(&name, None).unwrap();
        writer.write(b"Hello", None).unwrap();
        let held = reader.hold(None).unwrap();
        assert_eq!(*held, *b"Hello");
        assert_eq!(writer.flush(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(writer.write(b"x", SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        drop(held);
        writer.flush(None).unwrap();
        writer.write(b"", None).unwrap();
        assert_eq!(reader.read(None).unwrap(), b"");
        assert_eq!(reader.read(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_peer_that_is_gone_is_noticed() {
        let (name, late) = (unique_name("/cnblogs"), Some(Duration::from_secs(60)));
        let writer = Mailbox::create(&name, 16).unwrap();
        let reader = Mailbox::open(&name, None).unwrap();
        writer.write(b"last words", late).unwrap();
        drop(writer);
        assert_eq!(reader.read(late).unwrap(), b"last words");
        let error = reader.read(late).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(error.to_string(), format!("read {name}: the writer is gone"));

        let writer = Mailbox::create(&name, 16).unwrap();
        let reader = Mailbox::open(&name, None).unwrap();
        writer.write(b"Hello", late).unwrap();
        reader.read(late).unwrap();
        drop(reader);
        // Like a pipe, the slot takes what nobody will read; but nobody waits forever.
        writer.write(b"Anyone?", late).unwrap();
        let error = writer.flush(late).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(error.to_string(), format!("flush {name}: the reader is gone"));
    }

    #[test]
    fn each_role_is_taken_once() {
        let name = unique_name("/cnblogs");
        let mailbox = Mailbox::create(&name, 16).unwrap();
        let other = Mailbox::open(&name, None).unwrap();
        mailbox.write(b"Hello", None).unwrap();
        let error = other.write(b"me too", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(mailbox.read(None).unwrap(), b"Hello"); // both roles, as a test may
    }

    #[test]
    fn either_side_may_come_first_and_the_last_one_unlinks() {
        let name = unique_name("/cnblogs");
        let first = Mailbox::create_or_open(&name, 16).unwrap();
        let error = Mailbox::create_or_open(&name, 17).unwrap_err();
        assert_eq!(error.to_string(), format!("open {name}: it is in use, with a capacity of 16"));
        let second = Mailbox::create_or_open(&name, 16).unwrap();
        for third in [Mailbox::create(&name, 16), Mailbox::open(&name, SOON)] {
            assert_eq!(
                third.unwrap_err().to_string(),
                format!("open {name}: it is in use, with a capacity of 16")
            );
        }
        first.write(b"Hello", None).unwrap();
        drop(first);
        // That one is over, so whoever comes now begins a new one.
        let next = Mailbox::create_or_open(&name, 16).unwrap();
        assert_eq!(second.read(None).unwrap(), b"Hello");
        drop(second);
        assert!(exists(&name));
        drop(next);
        assert!(!exists(&name));
    }

    #[test]
    fn a_peer_that_leaves_before_its_first_message_is_noticed() {
        let name = unique_name("/cnblogs");
        let late = Some(Duration::from_secs(60));
        let creator = Mailbox::create(&name, 16).unwrap();
        let opener = Mailbox::open(&name, None).unwrap();
        drop(creator);
        assert_eq!(opener.read(late).unwrap_err().kind(), ErrorKind::BrokenPipe);
        drop(opener);

        let creator = Mailbox::create(&name, 16).unwrap();
        drop(Mailbox::open(&name, None).unwrap());
        creator.write(b"Anyone?", late).unwrap();
        assert_eq!(creator.flush(late).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_second_hold_does_not_wait_for_the_first() {
        let name = unique_name("/cnblogs");
        let mailbox = Mailbox::create(&name, 16).unwrap();
        mailbox.write(b"Hello", None).unwrap();
        let held = mailbox.hold(None).unwrap();
        assert_eq!(mailbox.hold(None).unwrap_err().kind(), ErrorKind::Deadlock);
        assert_eq!(mailbox.read(None).unwrap_err().kind(), ErrorKind::Deadlock);
        drop(held);
        assert_eq!(mailbox.read(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_length_in_the_page_is_not_believed() {
        let name = unique_name("/cnblogs");
        let mailbox = Mailbox::create(&name, 16).unwrap();
        mailbox.write(b"Hello", None).unwrap();
        header(&mailbox.memory).length.store(17, Relaxed);
        assert_eq!(mailbox.read(None).unwrap_err().kind(), ErrorKind::InvalidData);
        let error = mailbox.write(&[0; 17], None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
