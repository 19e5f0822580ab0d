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
//! - With a limit on the size of files (`ulimit -f`) making longer memory kills the process (SIGXFSZ).

#![expect(unsafe_code, reason = "raw memory that others write to")]

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{OFlag, posix_fallocate};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

/// Memory with a name that every process of this user can map: shm_open(3), mmap(2).
///
/// Dropping it unmaps it, and unlinks the name in the process that made it; existing mappings stay valid.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    pub(crate) file: File,
    name: String,
    /// The process whose drop unlinks the name.
    owner: Option<u32>,
}

impl SharedMemory {
    /// Makes `size` zero bytes under `name`, a new name such as "/cnblogs".
    ///
    /// Only this user can open it (mode 0600). Fails with `AlreadyExists` if the name exists (`O_EXCL`), with
    /// `StorageFull` if there is no memory left for it, and with `InvalidInput` for size 0 or an invalid name.
    pub fn create(name: &str, size: usize) -> io::Result<SharedMemory> {
        let file = open(name, OFlag::O_CREAT | OFlag::O_EXCL)?;
        let mut memory = SharedMemory::map(name, file, size as u64).inspect_err(|_| {
            let _ = shm_unlink(name);
        })?;
        memory.owner = Some(std::process::id());
        Ok(memory)
    }

    /// Maps the whole object that another process made under `name`.
    ///
    /// Fails with `NotFound` if there is nothing of that name, with `PermissionDenied` if it is another user's, and
    /// with `UnexpectedEof` if it is empty, as it is for a moment while it is being made.
    pub fn open(name: &str) -> io::Result<SharedMemory> {
        let file = open(name, OFlag::empty())?;
        let size = file.metadata()?.len();
        if size == 0 {
            let error = io::Error::new(ErrorKind::UnexpectedEof, "it is empty");
            return Err(named("mmap", name, error));
        }
        SharedMemory::map(name, file, size)
    }

    /// Unlinks `name`, which a killed creator left: shm_unlink(3). Existing mappings stay valid.
    pub fn remove(name: &str) -> io::Result<()> {
        shm_unlink(name).map_err(|errno| named("shm_unlink", name, errno.into()))
    }

    /// The name it was created or opened with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of bytes.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// Copies `bytes` to the start: `mem.seek(0)`, `mem.write(…)`. Zeros fill the last of their words of 8 bytes.
    ///
    /// A concurrent reader gets a mixture of old and new words. Fails with `InvalidInput` if they do not fit.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.size() {
            let what = format!("{} bytes are more than {}", bytes.len(), self.size());
            return Err(named("write", &self.name, io::Error::new(ErrorKind::InvalidInput, what)));
        }
        let (words, whole) = (self.words(), bytes.chunks_exact(8));
        let last = whole.remainder();
        if !last.is_empty() {
            let mut bytes = [0; 8];
            bytes[..last.len()].copy_from_slice(last);
            words[whole.len()].store(u64::from_ne_bytes(bytes), Relaxed);
        }
        for (word, bytes) in words.iter().zip(whole) {
            word.store(u64::from_ne_bytes(bytes.try_into().unwrap_or_default()), Relaxed);
        }
        Ok(())
    }

    /// Copies the first `length` bytes out, or all if there are fewer: `mem.seek(0)`, `mem.read(length)`.
    pub fn read(&self, length: usize) -> Vec<u8> {
        let length = length.min(self.size());
        let words = &self.words()[..length.div_ceil(8)];
        let bytes: Vec<_> = words.iter().map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        let mut bytes = bytes.into_flattened();
        bytes.truncate(length);
        bytes
    }

    /// The memory as 64-bit numbers, each read and written atomically. (The kernel gives whole pages, so the last one
    /// is there, too, if the size is not a multiple of 8.)
    ///
    /// That makes a race with another process harmless to Rust, but not to the data: if several numbers must be
    /// consistent with each other, use a semaphore.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page, lives as long as `self`, and consists of whole pages, so also of
        // whole words; the object was made or measured at that size. Atomics may change under a shared reference.
        // Not covered: a process that shrinks the object (SIGBUS), or writes to it other than by atomic whole
        // words.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.size().div_ceil(8)) }
    }

    /// Reserves and maps the first `size` bytes of an object.
    pub(crate) fn map(name: &str, file: File, size: u64) -> io::Result<SharedMemory> {
        // Unlike ftruncate(2) this reserves the memory: with none left it fails here, and not with SIGBUS at
        // the first touch.
        while let Err(errno) = posix_fallocate(&file, 0, size.try_into().unwrap_or(i64::MAX)) {
            if errno != Errno::EINTR {
                return Err(named("posix_fallocate", name, errno.into()));
            }
        }
        let map = MmapOptions::new().len(size as usize).map_raw(&file);
        let map = map.map_err(|error| named("mmap", name, error))?;
        Ok(SharedMemory { map, file, name: name.to_owned(), owner: None })
    }

    /// Whether there is still a name. (Another object may have got it, once this one has lost it.)
    pub(crate) fn has_name(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.nlink() > 0)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // A forked child has a copy of this value, but the name is not its own.
        if self.owner == Some(std::process::id()) && self.has_name() {
            let _ = shm_unlink(&*self.name);
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

/// Opens an object of this user, or with `O_CREAT` makes one, still without memory.
pub(crate) fn open(name: &str, flags: OFlag) -> io::Result<File> {
    let file = shm_open(name, flags | OFlag::O_RDWR, Mode::S_IRUSR | Mode::S_IWUSR);
    let file = File::from(file.map_err(|errno| named("shm_open", name, errno.into()))?);
    let owner = file.metadata()?.uid();
    if owner != geteuid().as_raw() {
        let error = io::Error::new(ErrorKind::PermissionDenied, format!("belongs to user {owner}"));
        return Err(named("shm_open", name, error));
    }
    Ok(file)
}

/// Names the call that failed and its object.
pub(crate) fn named(call: &str, name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
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
        assert_eq!(created.file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(SharedMemory::open(&name).unwrap());
        assert!(exists(&name));
        drop(created);
        assert!(!exists(&name));

        // Not when somebody else has taken the name meanwhile.
        let first = SharedMemory::create(&name, 1).unwrap();
        SharedMemory::remove(&name).unwrap();
        let second = SharedMemory::create(&name, 1).unwrap();
        drop(first);
        assert!(exists(&name));
        drop(second);
    }

    #[test]
    fn bad_names_and_sizes_are_errors_that_leave_nothing() {
        let long = format!("/{}", "x".repeat(256));
        for name in ["", "/", "/cn/blogs", "/cn\0blogs", &long] {
            for error in [
                SharedMemory::create(name, 1024).unwrap_err(),
                SharedMemory::open(name).unwrap_err(),
            ] {
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
        assert_eq!(opened.read(100), b"Alpha_Panda\0\0\0\0\0\0\0\0");
        // What a shorter text leaves of a longer one.
        created.write(b"Hello\0").unwrap();
        assert_eq!(opened.read(19), b"Hello\0\0\0nda\0\0\0\0\0\0\0\0");
        assert_eq!(opened.read(5), b"Hello");
        let error = created.write(&[b'x'; 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), format!("write {name}: 20 bytes are more than 19"));
        for length in 0..=19 {
            created.write(&[0; 19]).unwrap();
            created.write(&vec![b'x'; length]).unwrap();
            let expected = [vec![b'x'; length], vec![0; 19 - length]].concat();
            assert_eq!(opened.read(19), expected);
        }
    }

    /// As Python and truncate(1) make it.
    #[test]
    fn what_was_made_sparse_is_reserved() {
        let name = unique_name("/cnblogs");
        let file = open(&name, OFlag::O_CREAT | OFlag::O_EXCL).unwrap();
        ftruncate(&file, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        let opened = SharedMemory::open(&name).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, 1 << 20);
        assert_eq!(opened.read(1 << 20), vec![0; 1 << 20]);
        ftruncate(&file, 1 << 62).unwrap();
        SharedMemory::open(&name).unwrap_err();
        SharedMemory::remove(&name).unwrap();
        assert_eq!(SharedMemory::remove(&name).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(opened.size(), 1 << 20);
    }
}
