//! A pool of workers: the parent puts jobs and collects the results in order, here hashes of the files of a directory.
//!
//! ```text
//!           ┌──▶ worker 1 ──┐
//!  parent ──┼──▶ worker 2 ──┼──▶ parent
//!    jobs   └──▶ worker 3 ──┘ results
//! ```
//!
//! Run it with `cargo run -p queue --example pool [DIRECTORY]`. A job that fails is a result; a worker that panics or is
//! killed ends the run with its name.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::Process;
use queue::{GetError, PutError, Queue};

const WORKERS: usize = 3;

/// The number of a job and the file, or the end of the work.
type Job = Option<(usize, PathBuf)>;

/// The number of the job, and what came out.
type Done = (usize, Result<u64, String>);

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map_or(".".into(), PathBuf::from);
    let entries = std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();

    // Before the fork, so that all inherit both queues.
    let (jobs, results) = (Queue::<Job>::new(16)?, Queue::<Done>::new(16)?);
    let mut workers = (1..=WORKERS)
        .map(|number| Process::spawn(&format!("worker {number}"), || work(&jobs, &results)))
        .collect::<Result<Vec<_>>>()?;

    let (mut put, mut shown, mut done) = (0, 0, vec![None; files.len()]);
    while shown < files.len() {
        // Never blocks: the workers may all be waiting for us to take a result.
        while put < files.len() {
            match jobs.try_put(Some((put, files[put].clone()))) {
                Err(PutError::Full(_)) => break,
                result => result?,
            }
            put += 1;
        }
        match results.get_timeout(Duration::from_millis(100)) {
            Ok((number, result)) => done[number] = Some(result),
            // There is no EOF, so look whether they live. An error drops, and so kills, the others.
            Err(GetError::Empty) => {
                for worker in &mut workers {
                    if worker.try_wait()? {
                        bail!("{} has left", worker.name());
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        while let Some(Some(result)) = done.get(shown) {
            match result {
                Ok(hash) => println!("{hash:016x}  {}", files[shown].display()),
                Err(error) => println!("{error:16}  {}", files[shown].display()),
            }
            shown += 1;
        }
    }
    workers.iter().try_for_each(|_| jobs.put(None))?;
    workers.into_iter().try_for_each(Process::join)
}

fn work(jobs: &Queue<Job>, results: &Queue<Done>) -> Result<()> {
    while let Some((number, file)) = jobs.get()? {
        // FNV-1a; a real program takes a crate, such as sha2.
        let hash = |bytes: Vec<u8>| {
            let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
        };
        let result = std::fs::read(file).map(hash).map_err(|error| error.kind().to_string());
        results.put((number, result))?;
    }
    Ok(())
}
