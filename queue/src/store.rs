//! Storage for the values of a queue that are too long for its socket: one file in memory, memfd_create(2).
//!
//! This file needs no other. The store has a block for each slot of the queue, so holding a slot
//! guarantees a free block. A block keeps its pages for the next value: fresh pages cost more than the
//! copy.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::pipe2;

/// Up to this size a buffer, or a block, keeps its memory for the next value.
pub const MAX_RETAINED: usize = 4 * 1024 * 1024;

/// The most blocks: their numbers must fit in the smallest of pipes, or [`Overflow::new`] would block.
pub const MAX_BLOCKS: usize = 4096 / size_of::<u32>();

/// How far apart the blocks start, if nothing limits the file. What is not written takes no memory.
const STRIDE: u64 = 1 << 40;

thread_local! {
    /// Scratch buffer of this thread, reused: fresh pages cost more than the copy.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Blocks for long values, shared by forked processes.
#[derive(Debug)]
pub struct Overflow {
    file: File,
    stride: u64,
    /// A pipe with the numbers of the free blocks in it.
    free: File,
    freed: File,
}

impl Overflow {
    /// Makes a store of up to [`MAX_BLOCKS`] blocks.
    pub fn new(blocks: u32) -> io::Result<Overflow> {
        let file = memfd_create("queue", MFdFlags::MFD_CLOEXEC);
        let (free, freed) = pipe2(OFlag::O_CLOEXEC).map_err(|e| named("pipe2", e.into()))?;
        // Writing past the limit (ulimit -f) would kill the process with SIGXFSZ.
        let (limit, _) =
            getrlimit(Resource::RLIMIT_FSIZE).map_err(|e| named("getrlimit", e.into()))?;
        let store = Overflow {
            file: file.map_err(|e| named("memfd_create", e.into()))?.into(),
            stride: STRIDE.min(limit / u64::from(blocks)),
            free: free.into(),
            freed: freed.into(),
        };
        (0..blocks).try_for_each(|block| (&store.freed).write_all(&block.to_ne_bytes()))?;
        Ok(store)
    }

    /// Writes to a free block, and returns its number: pwrite(2).
    pub fn write(&self, value: &[u8]) -> io::Result<u32> {
        if value.len() as u64 > self.stride {
            let what = format!("{} bytes are more than the limit on files leaves", value.len());
            return Err(named("pwrite", io::Error::new(ErrorKind::FileTooLarge, what)));
        }
        let mut block = [0; 4];
        (&self.free).read_exact(&mut block).map_err(|e| named("read", e))?;
        let block = u32::from_ne_bytes(block);
        if let Err(error) = self.file.write_all_at(value, self.start(block)) {
            self.release(block, value.len())?;
            return Err(named("pwrite", error));
        }
        Ok(block)
    }

    /// Reads from a block: pread(2).
    pub fn read(&self, block: u32, len: usize) -> io::Result<Vec<u8>> {
        let mut value = scratch();
        value.resize(len, 0);
        let read = self.file.read_exact_at(&mut value, self.start(block));
        read.map(|()| value).map_err(|e| named("pread", e))
    }

    /// Makes a block free again, in which a value of this length was.
    pub fn release(&self, block: u32, len: usize) -> io::Result<()> {
        if len > MAX_RETAINED {
            // Gives the memory back. If that fails, the next value reuses it.
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, self.start(block) as i64, len as i64);
        }
        (&self.freed).write_all(&block.to_ne_bytes()).map_err(|e| named("write", e))
    }

    fn start(&self, block: u32) -> u64 {
        u64::from(block) * self.stride
    }
}

/// The scratch buffer of this thread, empty; [`recycle`] gives it back.
pub fn scratch() -> Vec<u8> {
    let mut buffer = SCRATCH.take();
    buffer.clear();
    buffer
}

/// Keeps a buffer as the scratch buffer of this thread, unless it has a larger one.
pub fn recycle(buffer: Vec<u8>) {
    let kept = SCRATCH.take();
    let larger = (kept.capacity()..=MAX_RETAINED).contains(&buffer.capacity());
    SCRATCH.set(if larger { buffer } else { kept });
}

/// Names the call that failed.
fn named(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} (store): {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_very_long_value_gives_its_memory_back() {
        let store = Overflow::new(2).unwrap();
        for length in [MAX_RETAINED / 2, 3 * MAX_RETAINED] {
            let value: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let blocks = [store.write(&value).unwrap(), store.write(&value).unwrap()];
            for block in blocks {
                assert!(store.read(block, length).unwrap() == value, "{length}");
                store.release(block, length).unwrap();
            }
            // In blocks of 512 bytes.
            let held = store.file.metadata().unwrap().blocks() * 512;
            assert!(held <= 2 * MAX_RETAINED as u64, "{length}: {held} bytes");
        }
    }
}
