//! Who makes and removes the FIFOs when the two roles are strangers: the consumer, as in the article.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::{block_signals, say};
use nix::fcntl::{Flock, FlockArg};

use crate::{REPLIES, REQUESTS};

/// A FIFO that this process made; dropping it removes it, and nothing else that has its name by then.
pub struct Made {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for Made {
    fn drop(&mut self) {
        if file_id(&self.path).ok() == Some(self.id) {
            let _ = fifo::remove(&self.path);
        }
    }
}

/// Which file is at a path: its device and inode.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}

/// Creates the consumer's two FIFOs in `dir`; `here` is that directory, opened.
///
/// An exclusive lock on the directory admits one consumer at a time, the next one blocks; a killed process
/// loses it. The FIFOs are made anew, so that nobody is still connected from before: a producer whose consumer has
/// gone sees EOF, and not the next consumer.
pub fn make(here: File, dir: &Path) -> Result<([Made; 2], Flock<File>)> {
    let lock = Flock::lock(here, FlockArg::LockExclusiveNonblock).or_else(|(here, _)| {
        say!("waits for another consumer to leave")?;
        Flock::lock(here, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("flock")
    })?;
    block_signals()?; // not before: Ctrl-C may end that wait
    // Remove those of a killed consumer, both before making any: a producer that has opened one finds no second.
    for path in [REPLIES, REQUESTS].map(|name| dir.join(name)) {
        // Only if it exists: one made just to be removed would unblock whoever opened it, with no peer there.
        if path.symlink_metadata().is_ok() {
            fifo::create(&path)?; // refuses anything that is not a FIFO of ours
            fifo::remove(&path)?;
        }
    }
    let make = |name| {
        let path = dir.join(name);
        fifo::create(&path)?;
        let id = file_id(&path)?;
        anyhow::Ok(Made { path, id })
    };
    Ok(([make(REQUESTS)?, make(REPLIES)?], lock)) // dropped in this order
}
