//! POSIX shared memory: one physical page in the address spaces of several processes.
//!
//! shm_open(3) and mmap(2); what the article's `mmap.mmap(-1, 1024, tagname=…)` is on Windows. This file
//! needs no other: copy it with `memmap2` and `nix`. It provides no synchronisation.
//!
//! # Hazards
//!
//! - Never look at shared memory through `&[u8]` or `&mut [u8]`: another process may change it
//!   at any time, and the compiler relies on it not changing. Copy bytes out, or use atomics.
//! - Touching a page that the object does not have kills the process (SIGBUS). So its
//!   size is checked before mapping, and its memory reserved when it is made or opened.
//! - The name outlives every process until it is unlinked. Dropping the creator's value does that; after a
//!   `kill -9` of the creator it stays in /dev/shm, until [`SharedMemory::remove`].

#![expect(unsafe_code, reason = "raw memory that others write to")]

use std::fs::{self, File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{OFlag, posix_fallocate};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

/// Memory with a name that every process of this user can map: shm_open(3), mmap(2).
///
/// Dropping it unmaps it, and unlinks the name in the process that made it; existing mappings stay valid.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    pub(crate) object: Object,
}

/// Where glibc and musl keep the objects.
const DIRECTORY: &str = "/dev/shm";

/// A file in /dev/shm.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) file: File,
    /// The process whose drop unlinks the name.
    pub(crate) owner: Option<u32>,
}

/// The mode of memory that only its own protocol may touch: a mailbox. The sticky bit means nothing on a file,
/// so it serves as a mark, set atomically at creation.
pub(crate) const RESERVED: Mode = Mode::S_ISVTX;

impl SharedMemory {
    /// Makes `size` zero bytes under `name`, a new name such as "/cnblogs".
    ///
    /// Only this user can open it (mode 0600). Fails with `AlreadyExists` if the name exists (`O_EXCL`), with
    /// `StorageFull` if there is no memory left for it, and with `InvalidInput` for size 0 or an invalid name.
    pub fn create(name: &str, size: usize) -> io::Result<SharedMemory> {
        let mut object = Object::open(name, OFlag::O_CREAT | OFlag::O_EXCL, Mode::empty())?;
        object.owner = Some(std::process::id());
        object.reserve(size as u64)?;
        object.map(size as u64)
    }

    /// Maps the whole object that another process made under `name`, and reserves any memory that it did not.
    ///
    /// Fails with `NotFound` if there is nothing of that name, with `PermissionDenied` if it is
    /// another user's, with `InvalidData` if it is empty (also for a moment while it is being made) or
    /// belongs to a mailbox, and with `StorageFull` if it was made sparse (ftruncate(2)), and there is no
    /// memory left for the rest.
    pub fn open(name: &str) -> io::Result<SharedMemory> {
        let object = Object::open(name, OFlag::empty(), Mode::empty())?;
        let there = object.metadata()?;
        if there.mode() & RESERVED.bits() != 0 {
            return Err(failed("shm_open", name, ErrorKind::InvalidData, "it is not plain memory"));
        }
        if there.blocks() * 512 < there.len() {
            object.reserve(there.len())?;
        }
        object.map(there.len())
    }

    /// Unlinks `name`, which a killed or stopped creator left: shm_unlink(3). Existing mappings stay valid.
    ///
    /// Fails with `NotFound` if there is nothing of that name, and with `PermissionDenied` if it is another
    /// user's.
    pub fn remove(name: &str) -> io::Result<()> {
        check_name(name)?;
        shm_unlink(name).map_err(|errno| named("shm_unlink", name, errno.into()))
    }

    /// The name it was created or opened with.
    pub fn name(&self) -> &str {
        &self.object.name
    }

    /// The number of bytes.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// Copies `bytes` to the start: `mem.seek(0)`, `mem.write(…)`. What follows them stays.
    ///
    /// Word by word, atomically: a concurrent reader gets a mixture of old and new. Fails with `InvalidInput` if
    /// they do not fit.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.size() {
            let what = format!("{} bytes are more than {}", bytes.len(), self.size());
            return Err(failed("write", self.name(), ErrorKind::InvalidInput, &what));
        }
        let whole = bytes.chunks_exact(8);
        let (rest, last) = (whole.remainder(), self.all_words().get(whole.len()));
        for (there, bytes) in self.all_words().iter().zip(whole) {
            there.store(word(0, bytes), Relaxed);
        }
        if let Some(last) = last.filter(|_| !rest.is_empty()) {
            let _ = last.fetch_update(Relaxed, Relaxed, |old| Some(word(old, rest)));
        }
        Ok(())
    }

    /// Copies all of it out: `mem.seek(0)`, `mem.read()`. Mind the NULs after what was written.
    pub fn read(&self) -> Vec<u8> {
        let words = self.all_words().iter();
        let mut bytes: Vec<u8> = words.flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        bytes.truncate(self.size());
        bytes
    }

    /// The memory as 64-bit numbers, each read and written atomically; a trailing remainder of up to
    /// seven bytes is excluded.
    ///
    /// That makes a race with another process harmless to Rust, but not to the data: if several numbers must be
    /// consistent with each other, use a semaphore.
    pub fn words(&self) -> &[AtomicU64] {
        &self.all_words()[..self.size() / 8]
    }

    /// Likewise with the remainder, and what follows it in its word.
    fn all_words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page, lives as long as `self`, and consists of whole pages, so also of
        // whole words; the object was made or measured at that size. Atomics may change under a shared reference.
        // Not covered: a process that shrinks the object (SIGBUS), or writes to it other than by atomic whole
        // words.
        unsafe { std::slice::from_raw_parts(self.pointer().cast(), self.size().div_ceil(8)) }
    }

    /// Where it is mapped: at the start of a page.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }
}

impl Object {
    /// Opens an object of this user, or with `O_CREAT` makes one of this mode, still without memory.
    pub(crate) fn open(name: &str, flags: OFlag, mode: Mode) -> io::Result<Object> {
        check_name(name)?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR | mode;
        let file = shm_open(name, flags | OFlag::O_RDWR, mode).map_err(|errno| match errno {
            // Not "no such name yet": whoever retries on that would wait forever.
            Errno::ENOENT if !Path::new(DIRECTORY).is_dir() => Errno::ENOSYS,
            errno => errno,
        });
        let file = file.map_err(|errno| named("shm_open", name, errno.into()))?.into();
        let object = Object { name: name.to_owned(), file, owner: None };
        let owner = object.metadata()?.uid();
        if owner != geteuid().as_raw() {
            let what = format!("belongs to user {owner}");
            return Err(failed("shm_open", name, ErrorKind::PermissionDenied, &what));
        }
        Ok(object)
    }

    /// What it is like now: fstat(2).
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata().map_err(|error| named("fstat", &self.name, error))
    }

    /// Gives the first `size` bytes their memory, and makes the object at least as long.
    pub(crate) fn reserve(&self, size: u64) -> io::Result<()> {
        loop {
            // Unlike ftruncate(2) this reserves the memory: with none left it fails here, and not
            // with SIGBUS at the first touch.
            match within_limit(size).and_then(|size| posix_fallocate(&self.file, 0, size)) {
                Err(Errno::EINTR) => {}
                done => return done.map_err(|e| named("posix_fallocate", &self.name, e.into())),
            }
        }
    }

    /// Maps all `size` bytes of it.
    pub(crate) fn map(self, size: u64) -> io::Result<SharedMemory> {
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(failed("mmap", &self.name, ErrorKind::InvalidData, "it is empty"));
        }
        let map = MmapOptions::new().len(length).map_raw(&self.file);
        let map = map.map_err(|e| named("mmap", &self.name, e))?;
        Ok(SharedMemory { map, object: self })
    }

    /// Unlinks the name, unless somebody has unlinked it before and made another.
    pub(crate) fn unlink(&self) {
        // stat rather than open: there may be no descriptor left.
        let there = fs::symlink_metadata(Path::new(DIRECTORY).join(&self.name[1..]));
        let id = |file: io::Result<Metadata>| file.map(|file| (file.dev(), file.ino())).ok();
        if id(there).is_some_and(|there| id(self.metadata()) == Some(there)) {
            let _ = shm_unlink(&*self.name);
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // A forked child has a copy of this value, but the name is not its own.
        if self.owner == Some(std::process::id()) {
            self.unlink();
        }
    }
}

/// A name that nobody can guess, since all users of a machine share one namespace: "/cnblogs" gives
/// "/cnblogs-0123456789abcdef". It creates no object.
pub fn unique_name(prefix: &str) -> String {
    // A forked child has a copy of its parent's random numbers, but not its process id.
    let id = RandomState::new().hash_one((std::process::id(), SystemTime::now()));
    format!("{prefix}-{id:016x}")
}

/// A word that starts with `bytes`, and goes on as `old` does.
fn word(old: u64, bytes: &[u8]) -> u64 {
    let mut word = old.to_ne_bytes();
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

fn check_name(name: &str) -> io::Result<()> {
    let rest = name.strip_prefix('/').unwrap_or_default();
    if !(1..256).contains(&rest.len()) || rest.contains(['/', '\0']) {
        let what = "a name is a slash, and up to 255 bytes without one";
        return Err(failed("shm_open", name, ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// Beyond the limit on files (`ulimit -f`), making a file longer would kill this process with SIGXFSZ.
pub(crate) fn within_limit(size: u64) -> nix::Result<i64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    i64::try_from(size).ok().filter(|_| size <= limit).ok_or(Errno::EFBIG)
}

/// Names the call that failed and its object.
pub(crate) fn named(call: &str, name: &str, error: io::Error) -> io::Error {
    failed(call, name, error.kind(), &error.to_string())
}

/// An error of our own, likewise.
pub(crate) fn failed(call: &str, name: &str, kind: ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, format!("{call} {name}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    use nix::unistd::ftruncate;

    fn exists(name: &str) -> bool {
        Path::new("/dev/shm").join(&name[1..]).exists()
    }

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let name = unique_name("/cnblogs");
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
        let name = unique_name("/cnblogs");
        let created = SharedMemory::create(&name, 1).unwrap();
        let mode = created.object.file.metadata().unwrap().permissions().mode();
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
        let name = unique_name("/cnblogs");
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
    fn text_is_written_at_the_start_and_read_up_to_the_nul() {
        let name = unique_name("/cnblogs");
        let created = SharedMemory::create(&name, 19).unwrap();
        let opened = SharedMemory::open(&name).unwrap();
        created.write(b"Alpha_Panda\0").unwrap();
        assert_eq!(opened.read(), b"Alpha_Panda\0\0\0\0\0\0\0\0");
        // What a shorter text leaves of a longer one.
        created.write(b"Hello\0").unwrap();
        assert_eq!(opened.read(), b"Hello\0Panda\0\0\0\0\0\0\0\0");
        let error = created.write(&[b'x'; 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("write {name}: 20 bytes are more than 19"));
        for length in 0..=19 {
            created.write(&[0; 19]).unwrap();
            created.write(&vec![b'x'; length]).unwrap();
            let expected = [vec![b'x'; length], vec![0; 19 - length]].concat();
            assert_eq!(opened.read(), expected);
        }
    }

    /// As Python and truncate(1) make it.
    #[test]
    fn what_was_made_sparse_is_reserved() {
        let name = unique_name("/cnblogs");
        let object = Object::open(&name, OFlag::O_CREAT | OFlag::O_EXCL, Mode::empty()).unwrap();
        ftruncate(&object.file, 1 << 20).unwrap();
        assert_eq!(object.metadata().unwrap().blocks(), 0);
        let opened = SharedMemory::open(&name).unwrap();
        assert_eq!(object.metadata().unwrap().blocks() * 512, 1 << 20);
        assert_eq!(opened.read(), vec![0; 1 << 20]);
        ftruncate(&object.file, 1 << 62).unwrap();
        SharedMemory::open(&name).unwrap_err();
        SharedMemory::remove(&name).unwrap();
        assert_eq!(SharedMemory::remove(&name).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(SharedMemory::remove("x").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(opened.size(), 1 << 20);
    }
}
