//! Who makes and removes the FIFOs when the two roles are strangers: the consumer, as in the article.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::{block_signals, say};
use nix::fcntl::{Flock, FlockArg};

use crate::{REPLIES, REQUESTS};

/// The two FIFOs of a consumer. Dropping it removes them.
///
/// One consumer in each directory has them, by an exclusive lock on the directory, which a killed process
/// loses. It makes them anew, so that nobody is still connected from before: a producer whose consumer has
/// gone sees EOF, and not the next consumer.
pub struct Fifos {
    made: Vec<PathBuf>,
    _lock: Flock<File>,
}

impl Fifos {
    /// Blocks while another consumer is there.
    pub fn make(here: File, dir: &Path) -> Result<Fifos> {
        let lock = Flock::lock(here, FlockArg::LockExclusiveNonblock).or_else(|(here, _)| {
            say!("waits for another consumer to leave")?;
            Flock::lock(here, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("flock")
        })?;
        block_signals()?; // not before: Ctrl-C may end that wait
        let mut fifos = Fifos { made: Vec::new(), _lock: lock };
        for path in [REQUESTS, REPLIES].map(|name| dir.join(name)) {
            // Not made only to be removed: whoever opened that one would wait at it forever.
            if path.symlink_metadata().is_ok() {
                fifo::create(&path)?; // refuses anything that is not a FIFO of ours
                fs::remove_file(&path)?;
            }
            fifo::create(&path)?;
            fifos.made.push(path);
        }
        Ok(fifos)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = fs::remove_file(path);
        }
    }
}
