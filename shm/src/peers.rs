//! Two processes that meet at a name, in either order, and notice when the other one is gone.
//!
//! It needs `memory.rs` beside it; the mailbox is made with it. The first word of the memory records which of the
//! two have come. Each locks a byte of the object (`F_OFD_SETLK`), and the kernel releases the lock when the
//! process dies, however it dies. A peer that has come and holds no lock is gone.
//!
//! Whoever comes or leaves first locks a third byte, the door, so that two never do so at once. Whoever leaves last
//! unlinks the name; whoever comes and finds that a peer has left unlinks it, too, and makes a new one.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock};
use nix::sys::stat::Mode;
use nix::unistd::ftruncate;

use super::memory::{Object, RESERVED, SharedMemory, failed, named, within_limit};

/// One of the two; dropping it leaves.
#[derive(Debug)]
pub(crate) struct Peer {
    /// 0 or 1, also the byte that is locked for it.
    role: usize,
    /// The process that has used it; 0 before.
    pub(crate) user: u32,
    // Dropped in this order: closing the memory releases the lock at which `_name` then looks.
    pub(crate) memory: SharedMemory,
    _name: Name,
}

/// The name where they meet; dropping it unlinks the name if nobody is here.
#[derive(Debug)]
struct Name(String);

/// What the two are called in errors.
pub(crate) const NAMES: [&str; 2] = ["writer", "reader"];

/// The byte that is locked by whoever is coming or leaving.
const DOOR: usize = 2;

/// How long to wait at the door, which is held for some microseconds, unless the process was stopped there.
const DOOR_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to try the door: fcntl(2) has no lock with a timeout.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

impl Peer {
    /// Joins the mailbox `name`, or makes it, with memory for `header` and `capacity` bytes.
    ///
    /// Fails as [`Writer::open`](super::Writer::open) says.
    pub(crate) fn come(
        name: &str,
        role: usize,
        header: usize,
        capacity: usize,
    ) -> io::Result<Peer> {
        let fail = |kind, what: &str| Err(failed("open", name, kind, what));
        let wanted = header.saturating_add(capacity) as u64;
        let on_error = Name(name.to_owned());
        loop {
            let object = Object::open(name, OFlag::O_CREAT, RESERVED)?;
            lock_door(&object)?; // on any error, closing the object unlocks it
            let there = object.metadata()?;
            if there.nlink() == 0 {
                continue; // unlinked while we waited
            }
            if there.mode() & RESERVED.bits() == 0 || (1..header as u64).contains(&there.len()) {
                return fail(ErrorKind::InvalidData, "not a mailbox");
            }
            // Reserve only what is read here, while the door is locked: reserving all of it may take long.
            let is_new = there.len() == 0;
            let size = if is_new { wanted } else { there.len() };
            object.reserve(header as u64)?;
            if is_new {
                object.resize(size)?;
            }
            let memory = object.map(size)?;
            let here = [memory.object.is_locked(0)?, memory.object.is_locked(1)?];
            let came = memory.words()[0].load(SeqCst);
            let is_left =
                here == [false; 2] || came != u64::from(here[0]) | u64::from(here[1]) << 1;
            if is_left && !is_new {
                memory.object.unlink(); // whoever still uses it needs no name to learn that
                continue;
            }
            if here[role] {
                return fail(
                    ErrorKind::AlreadyExists,
                    &format!("it has a {} already", NAMES[role]),
                );
            } else if size != wanted {
                let what = format!("it has a capacity of {}", size - header as u64);
                return fail(ErrorKind::AlreadyExists, &what);
            }
            memory.object.lock(role, F_WRLCK)?;
            memory.words()[0].fetch_or(1 << role, SeqCst);
            memory.object.lock(DOOR, F_UNLCK)?;
            let peer = Peer { role, user: 0, memory, _name: on_error };
            peer.memory.object.reserve(size)?;
            return Ok(peer);
        }
    }

    /// Whether the peer has come and is gone, or can no longer come, since the name is unlinked.
    pub(crate) fn other_is_gone(&self) -> bool {
        let (object, other) = (&self.memory.object, 1 - self.role);
        match self.memory.words()[0].load(SeqCst) & 1 << other {
            0 => object.metadata().is_ok_and(|there| there.nlink() == 0),
            _ => !object.is_locked(other).unwrap_or(true),
        }
    }
}

/// What only a mailbox does with its object.
impl Object {
    /// Makes it `size` bytes long, without reserving them: ftruncate(2).
    fn resize(&self, size: u64) -> io::Result<()> {
        let resized = within_limit(size).and_then(|size| ftruncate(&self.file, size));
        resized.map_err(|errno| named("ftruncate", &self.name, errno.into()))
    }

    /// Locks one byte, or unlocks it, for this descriptor and its copies: fcntl(2), `F_OFD_SETLK`. The kernel unlocks it
    /// when the last copy is closed. Fails with `WouldBlock` if another descriptor has locked it.
    fn lock(&self, byte: usize, kind: i32) -> io::Result<()> {
        let locked = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&one_byte(byte, kind)));
        locked.map(drop).map_err(|errno| named("fcntl F_OFD_SETLK", &self.name, errno.into()))
    }

    /// Whether another descriptor has locked this byte: `F_OFD_GETLK`.
    fn is_locked(&self, byte: usize) -> io::Result<bool> {
        let mut there = one_byte(byte, F_WRLCK);
        let looked = fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut there));
        looked.map_err(|errno| named("fcntl F_OFD_GETLK", &self.name, errno.into()))?;
        Ok(there.l_type != F_UNLCK as _)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Closing would do, unless a child has a copy. But an end that was never used here may be in use by the
        // child.
        if self.user == std::process::id() {
            let _ = self.memory.object.lock(self.role, F_UNLCK);
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
            if [0, 1].iter().all(|role| matches!(object.is_locked(*role), Ok(false))) {
                object.unlink();
            }
            let _ = object.lock(DOOR, F_UNLCK);
        }
    }
}

/// Locks the door, and waits for whoever holds it.
fn lock_door(object: &Object) -> io::Result<()> {
    let deadline = Instant::now() + DOOR_TIMEOUT;
    loop {
        match object.lock(DOOR, F_WRLCK) {
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::park_timeout(POLL_INTERVAL);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let what = "a process that was opening or leaving it has stopped";
                return Err(failed("open", &object.name, ErrorKind::TimedOut, what));
            }
            locked => return locked,
        }
    }
}

fn one_byte(byte: usize, kind: i32) -> flock {
    let (l_type, l_whence) = (kind as _, SEEK_SET as _);
    flock { l_type, l_whence, l_start: byte as _, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::{Reader, Writer};
    use super::super::memory::unique_name;
    use super::*;
    use std::path::Path;

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
            there.words()[0].store(7, SeqCst);
            for error in refused(&name, 16) {
                assert_eq!(error.to_string(), format!("open {name}: not a mailbox"));
            }
            assert_eq!(there.words()[0].load(SeqCst), 7);
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
        for (size, came) in [(0, 0), (64, 0), (4096, 1), (4096, 3)] {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL;
            let object = Object::open(&name, flags, RESERVED).unwrap();
            if size > 0 {
                object.reserve(size).unwrap();
                let memory = object.map(size).unwrap();
                memory.words()[0].store(came, SeqCst);
                memory.words()[1].store(5, SeqCst);
            }
            let (mut writer, mut reader) = both(&name, 16);
            writer.write(b"Hello", SOON).unwrap();
            assert_eq!(*reader.read(SOON).unwrap(), *b"Hello");
            drop((writer, reader));
            assert!(!exists(&name));
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
        other.lock(DOOR, F_WRLCK).unwrap();
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
}
