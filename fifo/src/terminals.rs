//! FIFOs between strangers: a consumer and a producer in two terminals, or a shell.
//!
//! The article: 在任意进程间进行通信, between any processes.
//!
//! ```text
//!  terminal 1: cargo run -p fifo consumer      terminal 2: cargo run -p fifo producer
//!                                              or:         cat pipe.out &
//!                                                          echo 'msg 1' > pipe.in
//! ```

use std::fs::{self, Metadata};
use std::io::{BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::{Process, hold_signals, say, supervise};

use crate::{REPLIES, REQUESTS, read};

/// Runs the consumer: echoes lines, whoever writes them, until one is `exit`.
pub fn consumer(dir: &Path) -> Result<()> {
    alone("consumer", dir, || serve(dir))
}

/// Runs the producer of the story against a consumer in another terminal.
pub fn producer(dir: &Path) -> Result<()> {
    alone("producer", dir, || {
        say!("waits for a consumer at {REQUESTS} and {REPLIES}");
        crate::producer(dir)
    })
}

/// Runs one role as a child, so that the parent can clean up whatever happens to it.
fn alone(role: &str, dir: &Path, body: impl FnOnce() -> Result<()>) -> Result<()> {
    hold_signals()?;
    // Whoever comes first makes the FIFOs, and whoever made them removes them.
    let _requests = Fifo::new(dir.join(REQUESTS))?;
    let _replies = Fifo::new(dir.join(REPLIES))?;
    supervise([Process::spawn(role, body)?])
}

fn serve(dir: &Path) -> Result<()> {
    let (requests_path, replies_path) = (dir.join(REQUESTS), dir.join(REPLIES));
    say!("waits for a writer at {REQUESTS}");
    let mut requests = BufReader::new(fifo::open_reader(&requests_path, None)?);
    // A writer of our own, which never writes: without it the end of each `echo` would be the
    // end of the stream, and to open again could miss what was written in between.
    let _never_the_last_writer = fifo::open_writer(&requests_path, None)?;
    say!("waits for a reader at {REPLIES}");
    let mut replies = fifo::open_writer(&replies_path, None)?;
    say!("echoes each line");
    loop {
        let message = read(&mut requests, REQUESTS)?;
        if message == "exit" {
            say!("read  exit  from {REQUESTS}");
            return Ok(());
        }
        say!("read  {message} from {REQUESTS}, writes it to {REPLIES}");
        while let Err(error) = fifo::write_line(&mut replies, &message) {
            if error.kind() != ErrorKind::BrokenPipe {
                return Err(error).context("write pipe.out");
            }
            say!("the last reader has left, waits for another at {REPLIES}");
            replies = fifo::open_writer(&replies_path, None)?;
        }
    }
}

/// A FIFO; dropping it removes it, unless it was there before.
struct Fifo {
    path: PathBuf,
    ours: Option<Metadata>,
}

impl Fifo {
    fn new(path: PathBuf) -> Result<Fifo> {
        let there = path.exists();
        fifo::create(&path)?;
        let ours = match there {
            true => None,
            false => Some(fs::symlink_metadata(&path).context("stat")?),
        };
        Ok(Fifo { path, ours })
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let same = |there: Metadata| {
            let ours = self.ours.as_ref();
            ours.is_some_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        };
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
