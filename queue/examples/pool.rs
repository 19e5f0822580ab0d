//! A pool of workers: the parent puts jobs and collects the results in order, here hashes of the files of a directory.
//!
//! ```text
//!           ┌──▶ worker 1 ──┐
//!  parent ──┼──▶ worker 2 ──┼──▶ parent
//!    jobs   └──▶ worker 3 ──┘ results
//! ```
//!
//! Run it with `cargo run -p queue --example pool [DIRECTORY]`. A job that fails is a result; a worker that panics or is
//! killed ends the run, within 100 ms, with its name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use common::{Process, print};
use nix::fcntl::OFlag;
use queue::{GetError, PutError, Queue};

const WORKERS: usize = 3;

/// How many jobs are under way at most: the results of later ones wait in memory until the earlier are shown.
const WINDOW: usize = 64;

/// How often to look whether the workers live.
const LOOK: Duration = Duration::from_millis(100);

/// The number of a file, or the end of the work. (The files themselves are known to the workers by the fork.)
type Job = Option<usize>;

/// The number of the file, and what came out.
type Done = (usize, Result<u64, String>);

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map_or(".".into(), PathBuf::from);
    let entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();

    // Before the fork, so that all inherit both queues.
    let (jobs, results) = (Queue::<Job>::new(16)?, Queue::<Done>::new(16)?);
    let mut workers = (1..=WORKERS)
        .map(|number| Process::spawn(&format!("worker {number}"), || work(&files, &jobs, &results)))
        .collect::<Result<Vec<_>>>()?;

    let (mut put, mut shown, mut done) = (0, 0, vec![None; files.len()]);
    let mut look = Instant::now() + LOOK;
    while shown < files.len() {
        // Never blocks: the workers may all be waiting for us to take a result.
        while put < files.len().min(shown + WINDOW) {
            match jobs.try_put(Some(put)) {
                Err(PutError::Full(_)) => break,
                result => result?,
            }
            put += 1;
        }
        match results.get_timeout(look.saturating_duration_since(Instant::now())) {
            Ok((number, result)) => done[number] = Some(result),
            Err(GetError::Empty) => {}
            Err(error) => return Err(error.into()),
        }
        // There is no EOF, so look whether they live, also while results come. An error drops, and so kills, the others.
        if Instant::now() >= look {
            look = Instant::now() + LOOK;
            for worker in &mut workers {
                if worker.try_wait()? {
                    bail!("{} has left", worker.name());
                }
            }
        }
        while let Some(result) = done.get_mut(shown).and_then(Option::take) {
            let result = result.map_or_else(|error| error, |hash| format!("{hash:016x}"));
            print(&format!("{result:16}  {}\n", files[shown].display()))?;
            shown += 1;
        }
    }
    workers.iter().try_for_each(|_| jobs.put(None))?;
    workers.into_iter().try_for_each(Process::join)
}

fn work(files: &[PathBuf], jobs: &Queue<Job>, results: &Queue<Done>) -> Result<()> {
    while let Some(number) = jobs.get()? {
        let result = hash(&files[number]).map_err(|error| error.to_string());
        results.put((number, result))?;
    }
    Ok(())
}

/// FNV-1a; a real program takes a crate, such as sha2.
fn hash(file: &Path) -> io::Result<u64> {
    // Opening a FIFO would wait for a writer, or take what is meant for its reader. O_NONBLOCK: should it become one now.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let options = &mut File::options();
    let mut file = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file)?;
    let (mut hash, mut bytes) = (0xcbf2_9ce4_8422_2325, vec![0; 1 << 16]);
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hash),
            length => {
                let step =
                    |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                hash = bytes[..length].iter().fold(hash, step);
            }
        }
    }
}
