//! POSIX shared memory with a name, and a mailbox in it.
//!
//! [`SharedMemory`] is the mechanism: one physical page in the address spaces of several
//! processes (shm_open(3), mmap(2); Python's `mmap(…, tagname=…)`, which exists on Windows only).
//! It does nothing about *when* who reads and writes. [`Mailbox`] does: one slot for a message,
//! and two semaphores (sem_init(3)) that say whose turn it is.
//!
//! ```text
//!              ┌──────────── one page ────────────┐
//!  writer ───▶ │ filled │ empty │ length │  slot  │ ───▶ reader
//!              └──────────────────────────────────┘
//!  write: wait `empty`, copy in, post `filled`      read: wait `filled`, copy out, post `empty`
//! ```
//!
//! ```
//! use shm::Mailbox;
//!
//! let name = format!("/cnblogs-{}", std::process::id());
//! let writer = Mailbox::create(&name, 1024)?;
//! let reader = Mailbox::open(&name, None)?; // usually in another process
//!
//! writer.write(b"Hello", None)?;
//! assert_eq!(reader.read(None)?, b"Hello");
//! # std::io::Result::Ok(())
//! ```
//!
//! # Dangers
//!
//! - Never look at shared memory through `&[u8]` or `&mut [u8]`: another process may change it
//!   at any time, and the compiler relies on it not changing. Here all that is shared is an atomic, a
//!   semaphore, or raw bytes that are copied while it is our turn.
//! - Trust nothing in it: a length is read once and checked, text is checked on the private copy.
//! - Touching a page that the object does not have kills the process (SIGBUS). So its
//!   size is checked before mapping, and its memory reserved when it is made.
//! - The name outlives every process until somebody unlinks it. Its creator does, when the
//!   value is dropped; after a `kill -9` of the creator it stays in /dev/shm.
//! - A process killed in the middle of its turn never ends it. Each side can tell that the other
//!   is gone by a lock that the kernel releases, and fails instead of waiting for ever.

#![expect(unsafe_code, reason = "semaphores, and raw memory that others write to")]

use std::cell::{OnceCell, UnsafeCell};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, posix_fallocate};
use nix::libc;
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

/// Memory with a name that every process of this user can map: shm_open(3), mmap(2).
#[derive(Debug)]
pub struct SharedMemory {
    name: String,
    file: File,
    map: MmapRaw,
    /// The process that made it, which unlinks the name.
    creator: Option<u32>,
}

impl SharedMemory {
    /// Makes `size` bytes of zeros under `name`, which is new and looks like "/cnblogs".
    ///
    /// Nobody but this user can open it (mode 0600). Dropping the value in the process that
    /// made it unlinks the name; who has mapped it keeps the memory.
    ///
    /// Fails with `AlreadyExists` if there is something of that name (`O_EXCL`), with
    /// `StorageFull` if there is no memory left for it, and with `InvalidInput` for size 0.
    pub fn create(name: &str, size: usize) -> io::Result<SharedMemory> {
        check_name(name)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
        let file = shm_open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| named("shm_open", name, e.into()))?;
        let file = File::from(file);
        // From here on the name is ours to unlink, also if the rest fails.
        let unlinker = Unlink { name, file: &file };
        let length = i64::try_from(size).map_err(|_| Errno::EFBIG);
        // Unlike ftruncate(2) this reserves the memory: with none left it fails here, and not
        // with SIGBUS at the first touch.
        length
            .and_then(|length| retry(|| posix_fallocate(&file, 0, length)))
            .map_err(|e| named("posix_fallocate", name, e.into()))?;
        let map = map(name, &file, size)?;
        std::mem::forget(unlinker);
        Ok(SharedMemory { name: name.to_owned(), file, map, creator: Some(std::process::id()) })
    }

    /// Maps the whole of what another process made under `name`.
    ///
    /// Fails with `NotFound` if there is nothing of that name, with `PermissionDenied` if it is
    /// another user's, and with `InvalidData` if it is empty.
    pub fn open(name: &str) -> io::Result<SharedMemory> {
        check_name(name)?;
        let file = shm_open(name, OFlag::O_RDWR, Mode::empty())
            .map_err(|e| named("shm_open", name, e.into()))?;
        let file = File::from(file);
        let there = file.metadata().map_err(|e| named("fstat", name, e))?;
        if there.uid() != geteuid().as_raw() {
            let what = format!("belongs to user {}", there.uid());
            let error = io::Error::new(ErrorKind::PermissionDenied, what);
            return Err(named("shm_open", name, error));
        }
        let size = usize::try_from(there.len()).unwrap_or(0);
        if size == 0 {
            return Err(named("mmap", name, invalid("it is empty")));
        }
        Ok(SharedMemory {
            name: name.to_owned(),
            map: map(name, &file, size)?,
            file,
            creator: None,
        })
    }

    /// The name it was created or opened with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of bytes.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// The memory as 64-bit numbers, each read and written atomically; a rest of up to seven
    /// bytes is left out.
    ///
    /// That makes a race with another process harmless to Rust, but not to the data: who needs
    /// more than one number at a time to be consistent needs a semaphore.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `size` bytes long, starts at a page, and lives as long as
        // `self`; the object was made or measured at that size. Atomics may change under a
        // shared reference. Not covered: a process that shrinks the object (SIGBUS), or writes
        // it otherwise than by whole words, atomically.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.size() / 8) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // A forked child has a copy of this value, but the name is not its own.
        if self.creator == Some(std::process::id()) {
            let (name, file) = (&self.name, &self.file);
            drop(Unlink { name, file });
        }
    }
}

/// A slot for one message in shared memory, from one writer to one reader.
///
/// The first that writes is the writer and the first that reads is the reader, for good. Each
/// may be in another process, which makes a mailbox by [`Mailbox::open`] (or inherits one
/// that was never used).
///
/// A wait spins for a few microseconds first where there is more than one CPU, then it sleeps.
#[derive(Debug)]
pub struct Mailbox {
    memory: SharedMemory,
    spin: bool,
    /// The locks of the roles that this process has taken: creator, writer, reader.
    roles: [OnceCell<File>; 3],
}

/// A message whose slot is still taken; dropping it frees the slot for the next one.
///
/// It is a private copy: the writer cannot change it any more.
#[derive(Debug)]
pub struct Message<'a> {
    bytes: Vec<u8>,
    mailbox: &'a Mailbox,
}

/// What the page of a mailbox starts with; the slot follows.
#[repr(C, align(64))]
struct Header {
    /// [`READY`] once the rest is initialised.
    ready: AtomicU32,
    /// The roles that were ever taken, a bit for each.
    attached: AtomicU32,
    length: AtomicU64,
    filled: RawSemaphore,
    empty: RawSemaphore,
}

/// Marks an initialised mailbox of this layout.
const READY: u32 = u32::from_be_bytes(*b"mbx1");

/// How long a wait spins before it sleeps: about what a sleep and its wake-up cost.
const SPIN: Duration = Duration::from_micros(5);

/// How long a wait sleeps before it looks whether the other side is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long an object may be unfinished; its creator needs microseconds.
const UNFINISHED: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
enum Role {
    Creator,
    Writer,
    Reader,
    /// Who removes what killed processes have left.
    Remover,
}

impl Mailbox {
    /// Makes a mailbox for messages of up to `capacity` bytes; see [`SharedMemory::create`].
    pub fn create(name: &str, capacity: usize) -> io::Result<Mailbox> {
        let size = size_of::<Header>().saturating_add(capacity);
        let mailbox = Mailbox::new(SharedMemory::create(name, size)?);
        let header = mailbox.header();
        header.filled.init(0).map_err(|e| mailbox.named("sem_init", e))?;
        header.empty.init(1).map_err(|e| mailbox.named("sem_init", e))?;
        mailbox.attach(Role::Creator)?;
        header.ready.store(READY, Ordering::Release);
        Ok(mailbox)
    }

    /// Opens a mailbox, and waits up to `timeout` (`None`: as long as it takes) for it to be created.
    ///
    /// Fails with `TimedOut` if it was not, and with `InvalidData` if what has that name is not
    /// a mailbox; otherwise as [`SharedMemory::open`] does.
    pub fn open(name: &str, timeout: Option<Duration>) -> io::Result<Mailbox> {
        let deadline = after(timeout);
        let mut seen_unfinished = None;
        loop {
            let opened = Mailbox::open_now(name);
            let now = Instant::now();
            match opened {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if deadline.is_some_and(|deadline| now >= deadline) {
                        let what = "nobody created it in time";
                        return Err(named("open", name, io::Error::new(ErrorKind::TimedOut, what)));
                    }
                    seen_unfinished = None;
                }
                // Perhaps its creator is about to finish it.
                Err(error)
                    if error.kind() == ErrorKind::InvalidData
                        && now - *seen_unfinished.get_or_insert(now) < UNFINISHED => {}
                opened => return opened,
            }
            // The kernel cannot wake us when a name appears: look again. (Not `sleep`: each
            // signal makes that a little longer.)
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Creates a mailbox, or opens it if another process has; for two that start in either order.
    ///
    /// What is left of a mailbox whose processes were all killed is replaced. (Not what is left
    /// of one whose creator was killed before it was finished: that is an error.) Fails as
    /// [`Mailbox::create`] and [`Mailbox::open`] do.
    pub fn create_or_open(name: &str, capacity: usize) -> io::Result<Mailbox> {
        loop {
            match Mailbox::create(name, capacity) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => return created,
            }
            let mailbox = match Mailbox::open(name, Some(Duration::ZERO)) {
                Err(error) if error.kind() == ErrorKind::TimedOut => continue, // just removed
                opened => opened?,
            };
            if mailbox.is_held(Role::Creator)?
                || mailbox.is_held(Role::Writer)?
                || mailbox.is_held(Role::Reader)?
            {
                return Ok(mailbox);
            }
            // Only who holds this lock unlinks, and only what still has the name: so two that
            // do this at the same time never unlink each other's new mailbox.
            let file = &mailbox.memory.file;
            if fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(Role::Remover))).is_ok() {
                drop(Unlink { name, file });
            }
        }
    }

    /// Opens what has this name, if it is a finished mailbox.
    fn open_now(name: &str) -> io::Result<Mailbox> {
        let not_a_mailbox =
            |why| Err(named("open", name, invalid(&format!("not a mailbox: {why}"))));
        let memory = SharedMemory::open(name)?;
        if memory.size() < size_of::<Header>() {
            return not_a_mailbox("it is too small");
        }
        let mailbox = Mailbox::new(memory);
        match mailbox.header().ready.load(Ordering::Acquire) {
            READY => Ok(mailbox),
            _ => not_a_mailbox("it does not start like one"),
        }
    }

    /// The longest message in bytes.
    pub fn capacity(&self) -> usize {
        self.memory.size() - size_of::<Header>()
    }

    /// Puts a message into the slot, and waits up to `timeout` for it to be free.
    ///
    /// If the slot is free it does not look for the reader: that the message was taken is what
    /// [`Mailbox::flush`] tells.
    ///
    /// Fails with `InvalidInput` if the message is longer than the capacity, with `TimedOut`,
    /// with `BrokenPipe` if it waits and the reader is gone, and with `AlreadyExists` if another is the writer.
    pub fn write(&self, message: &[u8], timeout: Option<Duration>) -> io::Result<()> {
        if message.len() > self.capacity() {
            let what = format!("{} bytes are more than {}", message.len(), self.capacity());
            return Err(self.named("write", io::Error::new(ErrorKind::InvalidInput, what)));
        }
        self.attach(Role::Writer)?;
        let header = self.header();
        self.wait("write", &header.empty, timeout, Role::Reader)?;
        // SAFETY: the slot has room for `capacity` bytes, and no part of `message` can be in
        // it, since nobody gets a reference into it. `empty` gave the turn to us alone. Not
        // covered: a process that writes there without waiting for its turn; it can garble
        // the message.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr(), self.slot(), message.len());
        }
        header.length.store(message.len() as u64, Ordering::Relaxed);
        header.filled.post();
        Ok(())
    }

    /// Waits up to `timeout` until the reader has taken the last message out of the slot.
    ///
    /// Fails as [`Mailbox::write`] does. Python's `mmap.flush()` is about a file on disk and
    /// does nothing of the kind.
    pub fn flush(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.attach(Role::Writer)?;
        let empty = &self.header().empty;
        self.wait("flush", empty, timeout, Role::Reader)?;
        empty.post();
        Ok(())
    }

    /// Takes the message out of the slot, and waits up to `timeout` for one to come.
    ///
    /// Fails with `TimedOut`, with `BrokenPipe` if the writer is gone and left no message, with
    /// `InvalidData` if the length in the page is impossible, and with `AlreadyExists` if
    /// another is the reader.
    pub fn read(&self, timeout: Option<Duration>) -> io::Result<Vec<u8>> {
        Ok(std::mem::take(&mut self.hold(timeout)?.bytes))
    }

    /// Like [`Mailbox::read`], but the slot stays taken until the message is dropped.
    ///
    /// So the writer's next `write` or `flush` waits until the reader is done with this message.
    pub fn hold(&self, timeout: Option<Duration>) -> io::Result<Message<'_>> {
        self.attach(Role::Reader)?;
        let header = self.header();
        self.wait("read", &header.filled, timeout, Role::Writer)?;
        // Read once: checked and then read again, it could have changed in between.
        let length = header.length.load(Ordering::Relaxed);
        let length = usize::try_from(length).ok().filter(|&length| length <= self.capacity());
        let Some(length) = length else {
            return Err(self.named("read", invalid("the length in the page is impossible")));
        };
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: `length` is at most the size of the slot and of the room in `bytes`, and all
        // of it is initialised by the copy. `filled` gave the turn to us alone. Not covered:
        // a process that writes without waiting for its turn; the copy may then be garbled.
        unsafe {
            std::ptr::copy_nonoverlapping(self.slot(), bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Ok(Message { bytes, mailbox: self })
    }

    fn new(memory: SharedMemory) -> Mailbox {
        Mailbox {
            memory,
            // On one CPU the other side cannot run while we spin.
            spin: std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1),
            roles: [const { OnceCell::new() }; 3],
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is at least as long as a header (checked in `create` and `open`),
        // starts at a page, and lives as long as `self`. Every field may change under a shared
        // reference: an atomic or a semaphore; any bytes are valid ones. Not covered: a
        // process that writes nonsense over a semaphore; waits may then end early or never.
        unsafe { &*self.memory.map.as_ptr().cast::<Header>() }
    }

    fn slot(&self) -> *mut u8 {
        // SAFETY: the mapping is at least as long as a header, so this stays within it.
        unsafe { self.memory.map.as_mut_ptr().add(size_of::<Header>()) }
    }

    /// Takes a role, once: from now on the kernel knows whether this process is alive.
    fn attach(&self, role: Role) -> io::Result<()> {
        let cell = &self.roles[role as usize];
        if cell.get().is_some() {
            return Ok(());
        }
        // A lock belongs to one open(2) of the file, and ends with it. A forked process shares
        // those of its parent, so the lock gets an open of its own.
        let path = format!("/proc/self/fd/{}", self.memory.file.as_raw_fd());
        let own = OpenOptions::new().read(true).write(true).open(path);
        let own = own.map_err(|e| self.named("open", e))?;
        let taken = match fcntl(&own, FcntlArg::F_OFD_SETLK(&lock_of(role))) {
            Ok(_) => {
                self.header().attached.fetch_or(role.bit(), Ordering::AcqRel) & role.bit() != 0
            }
            Err(Errno::EAGAIN | Errno::EACCES) => true,
            Err(errno) => return Err(self.named("fcntl F_OFD_SETLK", errno.into())),
        };
        if taken {
            let what = format!("it already has, or had, a {}", role.name());
            return Err(self.named("attach", io::Error::new(ErrorKind::AlreadyExists, what)));
        }
        let _ = cell.set(own);
        Ok(())
    }

    /// Whether a process had this role and has closed the mailbox, or was killed.
    fn is_gone(&self, role: Role) -> io::Result<bool> {
        let came = self.header().attached.load(Ordering::Acquire) & role.bit() != 0;
        Ok(came && !self.is_held(role)?)
    }

    /// Whether a living process has this role.
    fn is_held(&self, role: Role) -> io::Result<bool> {
        let mut lock = lock_of(role);
        fcntl(&self.memory.file, FcntlArg::F_OFD_GETLK(&mut lock))
            .map_err(|e| self.named("fcntl F_OFD_GETLK", e.into()))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }

    /// Waits for the semaphore, which `peer` will post.
    fn wait(
        &self,
        call: &str,
        semaphore: &RawSemaphore,
        timeout: Option<Duration>,
        peer: Role,
    ) -> io::Result<()> {
        if semaphore.try_wait() || (self.spin && semaphore.spin()) {
            return Ok(());
        }
        let deadline = after(timeout);
        loop {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => LOOK_AGAIN,
            };
            if semaphore.wait(left.min(LOOK_AGAIN)).map_err(|e| self.named("sem_timedwait", e))? {
                return Ok(());
            }
            if self.is_gone(peer)? {
                // It may have posted and left since.
                if semaphore.try_wait() {
                    return Ok(());
                }
                let (what, kind) = (format!("the {} is gone", peer.name()), ErrorKind::BrokenPipe);
                return Err(self.named(call, io::Error::new(kind, what)));
            }
            if left.is_zero() {
                let what = format!("the {} did not come in time", peer.name());
                return Err(self.named(call, io::Error::new(ErrorKind::TimedOut, what)));
            }
        }
    }

    fn named(&self, call: &str, error: io::Error) -> io::Error {
        named(call, &self.memory.name, error)
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
        self.mailbox.header().empty.post();
    }
}

impl Role {
    fn bit(self) -> u32 {
        1 << self as u32
    }

    fn name(self) -> &'static str {
        match self {
            Role::Creator => "creator",
            Role::Writer => "writer",
            Role::Reader => "reader",
            Role::Remover => "remover",
        }
    }
}

/// A counting semaphore that forked processes share: a sem_t in [`SharedMemory`].
///
/// With the value 1 it is a lock: wait, use what is shared, post. Unlike a [`Mailbox`] it
/// cannot tell that a process which should post was killed: give waits a timeout.
#[derive(Debug)]
pub struct Semaphore {
    memory: SharedMemory,
}

impl Semaphore {
    /// Makes a semaphore for the processes forked from now on; see [`SharedMemory::create`].
    pub fn create(name: &str, value: u32) -> io::Result<Semaphore> {
        let memory = SharedMemory::create(name, size_of::<RawSemaphore>())?;
        let semaphore = Semaphore { memory };
        semaphore.raw().init(value).map_err(|e| named("sem_init", name, e))?;
        Ok(semaphore)
    }

    /// Takes one, and waits up to `timeout` (`None`: as long as it takes) for it: sem_timedwait(3).
    ///
    /// Fails with `TimedOut`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let name = self.memory.name();
        let deadline = after(timeout);
        loop {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => LOOK_AGAIN,
            };
            if self.raw().wait(left.min(LOOK_AGAIN)).map_err(|e| named("sem_timedwait", name, e))? {
                return Ok(());
            }
            if left.is_zero() {
                let error = io::Error::new(ErrorKind::TimedOut, "nobody posted in time");
                return Err(named("sem_timedwait", name, error));
            }
        }
    }

    /// Gives one back, and wakes a process that waits for it: sem_post(3).
    pub fn post(&self) {
        self.raw().post();
    }

    fn raw(&self) -> &RawSemaphore {
        // SAFETY: the mapping has the size of a semaphore, starts at a page, lives as long as
        // `self`, and was initialised before anyone else got hold of it. Not covered: a
        // process that opens it by its name and writes nonsense over it.
        unsafe { &*self.memory.map.as_ptr().cast::<RawSemaphore>() }
    }
}

/// A semaphore in memory that several processes map: sem_t.
#[repr(transparent)]
struct RawSemaphore(UnsafeCell<libc::sem_t>);

impl RawSemaphore {
    /// sem_init(3) for several processes. Nobody else may use it yet.
    fn init(&self, value: u32) -> io::Result<()> {
        // SAFETY: the pointer is valid, and the memory not yet in use: `ready` is not set.
        // Not covered: a process that uses it without looking at `ready`.
        match unsafe { libc::sem_init(self.0.get(), 1, value) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// sem_post(3): adds one, and wakes a process that waits.
    fn post(&self) {
        // SAFETY: an initialised semaphore, which may be used by many at once. Not covered: it
        // fails when the count would overflow, which takes a process that breaks the protocol.
        unsafe { libc::sem_post(self.0.get()) };
    }

    /// sem_trywait(3): takes one if there is one. No system call.
    fn try_wait(&self) -> bool {
        // SAFETY: as for `post`; every error means that there was none to take.
        unsafe { libc::sem_trywait(self.0.get()) == 0 }
    }

    /// Takes one if there is one within [`SPIN`]. No system call.
    fn spin(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..20 {
                if self.try_wait() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// sem_timedwait(3): takes one, or returns false when none came in time or a signal did.
    ///
    /// It goes by the wall clock. If that is set back meanwhile, the wait gets longer.
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = now + timeout;
        let until = libc::timespec {
            tv_sec: until.as_secs() as libc::time_t,
            tv_nsec: until.subsec_nanos() as _,
        };
        // SAFETY: as for `post`; `until` outlives the call.
        match unsafe { libc::sem_timedwait(self.0.get(), &until) } {
            0 => Ok(true),
            _ => match Errno::last() {
                Errno::ETIMEDOUT | Errno::EINTR => Ok(false),
                errno => Err(errno.into()),
            },
        }
    }
}

/// Unlinks the name when dropped, if it still names this object.
struct Unlink<'a> {
    name: &'a str,
    file: &'a File,
}

impl Drop for Unlink<'_> {
    fn drop(&mut self) {
        // Somebody may have unlinked it and made another of that name, which is not ours.
        let there = shm_open(self.name, OFlag::O_RDONLY, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|there| File::from(there).metadata());
        if let (Ok(there), Ok(ours)) = (there, self.file.metadata()) {
            if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) {
                let _ = shm_unlink(self.name);
            }
        }
    }
}

fn map(name: &str, file: &File, size: usize) -> io::Result<MmapRaw> {
    let map = MmapOptions::new().len(size).map_raw(file);
    map.map_err(|e| named("mmap", name, e))
}

/// One byte of the object stands for each role; nothing is ever written to it for that.
fn lock_of(role: Role) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: role as libc::off_t,
        l_len: 1,
        l_pid: 0, // must be 0 for a lock that belongs to an open file
    }
}

/// The moment at which a timeout is over; `None` for never, or later than the clock can tell.
fn after(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// Calls again when a signal came in between.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn check_name(name: &str) -> io::Result<()> {
    match name.strip_prefix('/') {
        Some(rest) if (1..256).contains(&rest.len()) && !rest.contains('/') => Ok(()),
        _ => {
            let what = "a name is a slash, and up to 255 bytes without one";
            let error = io::Error::new(ErrorKind::InvalidInput, what);
            Err(named("shm_open", name, error))
        }
    }
}

/// Names the call that failed and its object.
fn named(call: &str, name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} {name}: {error}"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    const SOON: Option<Duration> = Some(Duration::from_millis(2));

    /// A name that no other test uses.
    fn unused() -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("/cnblogs-test-{}-{count}", std::process::id())
    }

    fn exists(name: &str) -> bool {
        Path::new("/dev/shm").join(&name[1..]).exists()
    }

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let name = unused();
        let created = SharedMemory::create(&name, 1024).unwrap();
        let opened = SharedMemory::open(&name).unwrap();
        assert_eq!((created.size(), opened.size()), (1024, 1024));
        assert_ne!(created.words().as_ptr(), opened.words().as_ptr());
        created.words()[0].store(1 << 40, Ordering::Relaxed);
        assert_eq!(opened.words()[0].load(Ordering::Relaxed), 1 << 40);
        assert_eq!(opened.words().len(), 128);
    }

    #[test]
    fn its_creator_unlinks_it_and_nobody_else() {
        use std::os::unix::fs::PermissionsExt;
        let name = unused();
        let created = SharedMemory::create(&name, 1).unwrap();
        let mode = created.file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(SharedMemory::open(&name).unwrap());
        assert!(exists(&name));
        drop(created);
        assert!(!exists(&name));

        // Not when somebody else has taken the name meanwhile.
        let first = SharedMemory::create(&name, 1).unwrap();
        shm_unlink(name.as_str()).unwrap();
        let second = SharedMemory::create(&name, 1).unwrap();
        drop(first);
        assert!(exists(&name));
        drop(second);
    }

    #[test]
    fn bad_names_and_sizes_are_errors_that_leave_nothing() {
        let long = format!("/{}", "x".repeat(256));
        for name in ["", "/", "cnblogs", "/cn/blogs", "//cnblogs", "/cn\0blogs", &long] {
            for error in [
                SharedMemory::create(name, 1024).unwrap_err(),
                SharedMemory::open(name).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
                assert!(error.to_string().starts_with("shm_open "), "{error}");
            }
        }
        let name = unused();
        for size in [0, usize::MAX] {
            let error = SharedMemory::create(&name, size).unwrap_err();
            let start = format!("posix_fallocate {name}: ");
            assert!(error.to_string().starts_with(&start), "{error}");
            assert!(!exists(&name));
        }
        let _there = SharedMemory::create(&name, 1).unwrap();
        let error = SharedMemory::create(&name, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(exists(&name));
    }

    #[test]
    fn what_is_not_a_mailbox_is_refused() {
        let name = unused();
        let error = Mailbox::open(&name, SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        for (size, why) in [(8, "it is too small"), (4096, "it does not start like one")] {
            let there = SharedMemory::create(&name, size).unwrap();
            there.words()[0].store(7, Ordering::Relaxed);
            let error = Mailbox::open(&name, None).unwrap_err();
            assert_eq!(error.to_string(), format!("open {name}: not a mailbox: {why}"));
            assert_eq!(there.words()[0].load(Ordering::Relaxed), 7);
        }
    }

    #[test]
    fn who_waits_for_a_mailbox_does_not_see_it_half_made() {
        let name = unused();
        let half_made = SharedMemory::create(&name, size_of::<Header>() + 16).unwrap();
        thread::scope(|scope| {
            let opened = scope.spawn(|| Mailbox::open(&name, None).unwrap());
            let mailbox = Mailbox::new(half_made);
            mailbox.header().filled.init(0).unwrap();
            mailbox.header().empty.init(1).unwrap();
            mailbox.header().ready.store(READY, Ordering::Release);
            assert_eq!(opened.join().unwrap().capacity(), 16);
        });
    }

    #[test]
    fn messages_go_through_one_by_one() {
        let name = unused();
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
        // SAFETY: one thread only writes and the other only reads, so each uses its own cell
        // and its own lock; the header is made to be shared. Not covered: more than two threads.
        unsafe impl Sync for Both {}
        let both = &Both(Mailbox::create(&unused(), 1024).unwrap());
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
        let name = unused();
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
    fn who_is_gone_is_noticed() {
        let (name, late) = (unused(), Some(Duration::from_secs(60)));
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
        // Like a pipe, the slot takes what nobody will read; but nobody waits for ever.
        writer.write(b"Anyone?", late).unwrap();
        let error = writer.flush(late).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(error.to_string(), format!("flush {name}: the reader is gone"));
    }

    #[test]
    fn each_role_is_taken_once() {
        let name = unused();
        let mailbox = Mailbox::create(&name, 16).unwrap();
        let other = Mailbox::open(&name, None).unwrap();
        mailbox.write(b"Hello", None).unwrap();
        let error = other.write(b"me too", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(mailbox.read(None).unwrap(), b"Hello"); // both roles, as a test may
    }

    #[test]
    fn either_side_may_come_first_and_a_dead_one_is_replaced() {
        let name = unused();
        let mut first = Mailbox::create_or_open(&name, 16).unwrap();
        let second = Mailbox::create_or_open(&name, 16).unwrap();
        first.write(b"Hello", None).unwrap();
        assert_eq!(second.read(None).unwrap(), b"Hello");

        // As when both are killed: the locks go, and nobody unlinks the name.
        first.memory.creator = None;
        drop((first, second));
        assert!(exists(&name));
        let third = Mailbox::create_or_open(&name, 16).unwrap();
        third.write(b"Hello again", SOON).unwrap();
        drop(third);
        assert!(!exists(&name));
    }

    #[test]
    fn a_semaphore_counts() {
        let semaphore = Semaphore::create(&unused(), 2).unwrap();
        semaphore.wait(None).unwrap();
        semaphore.wait(SOON).unwrap();
        assert_eq!(semaphore.wait(SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        semaphore.post();
        semaphore.wait(Some(Duration::ZERO)).unwrap();
    }

    #[test]
    fn a_length_in_the_page_is_not_believed() {
        let name = unused();
        let mailbox = Mailbox::create(&name, 16).unwrap();
        mailbox.write(b"Hello", None).unwrap();
        mailbox.header().length.store(17, Ordering::Relaxed);
        assert_eq!(mailbox.read(None).unwrap_err().kind(), ErrorKind::InvalidData);
        let error = mailbox.write(&[0; 17], None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
