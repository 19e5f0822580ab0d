//! FIFOs between strangers: a consumer and a producer in two terminals, or a shell.
//!
//! The article: 在任意进程间进行通信, between any processes.
//!
//! ```text
//!  terminal 1: cargo run -p fifo consumer      terminal 2: cargo run -p fifo producer
//!                                              or:         cat pipe.out &
//!                                                          echo 'msg 1' > pipe.in
//! ```

use std::fs::File;
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{Process, say, set_role, supervise};

use crate::{REPLIES, REQUESTS, fifos, read};

/// How long the producer waits at a FIFO before it looks again which one has the name.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often it looks for a FIFO that does not exist yet: simpler than inotify(7), and enough.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Runs one role as a child, so that the parent can clean up however the child ends.
pub fn run(role: &str, dir: &Path) -> Result<()> {
    set_role(role);
    // Also for the producer: in a directory that does not exist it would wait forever.
    let here = dir.join(".");
    let here = File::open(&here).with_context(|| format!("open {}", here.display()))?;
    if role == "producer" {
        return supervise([Process::spawn(role, || producer(dir, &here))?]);
    }
    let _fifos = fifos::make(here, dir)?;
    supervise([Process::spawn(role, || consumer(dir))?])
}

/// The producer of the story, as soon as there is a consumer in `dir`, which is open as `here`.
fn producer(dir: &Path, here: &File) -> Result<()> {
    say!("waits for a consumer at {REQUESTS} and {REPLIES}")?;
    loop {
        ensure!(here.metadata()?.nlink() > 0, "the directory '{}' was removed", dir.display());
        let mut is_answered = false;
        let done = exchange(dir, &mut is_answered);
        let Err(error) = &done else {
            return done;
        };
        // No consumer, or one that is just leaving: begin again, with the FIFOs of the next one.
        let is_gone = match error.downcast_ref().map(io::Error::kind) {
            Some(kind) => {
                [ErrorKind::NotFound, ErrorKind::TimedOut, ErrorKind::BrokenPipe].contains(&kind)
            }
            None => true, // EOF
        };
        if is_answered || !is_gone {
            return done;
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

/// The story's producer, among strangers: it neither waits forever at names that may be gone, nor mistakes a reply
/// that a stopped producer left unread for its own.
fn exchange(dir: &Path, is_answered: &mut bool) -> Result<()> {
    let mut requests = fifo::open_writer(&dir.join(REQUESTS), Some(PATIENCE))?;
    let mut replies = BufReader::new(fifo::open_reader(&dir.join(REPLIES), Some(PATIENCE))?);
    for message in ["msg 1", "msg 2", "msg 3"] {
        say!("write {message} to {REQUESTS}")?;
        fifo::write_line(&mut requests, message).context("write pipe.in")?;
        while read(&mut replies, REPLIES)? != message {}
        *is_answered = true;
        say!("read  {message} from {REPLIES}")?;
    }
    say!("write exit  to {REQUESTS}")?;
    fifo::write_line(&mut requests, "exit").context("write pipe.in")?;
    drop(requests);
    // Stay until the consumer has read `exit`, and closes pipe.out.
    io::copy(&mut replies, &mut io::sink()).map(drop).context("read pipe.out")
}

/// Echoes lines from any writer until it reads `exit`. A reply that nobody took goes to the next reader.
fn consumer(dir: &Path) -> Result<()> {
    let (requests_path, replies_path) = (dir.join(REQUESTS), dir.join(REPLIES));
    say!("waits for a writer at {REQUESTS}")?;
    let mut requests = BufReader::new(fifo::open_reader(&requests_path, None)?);
    // Hold a writing end that we never use: without it we would see EOF after each `echo`, and
    // opening again could miss what was written in between.
    let _never_eof = fifo::open_writer(&requests_path, None)?;
    say!("waits for a reader at {REPLIES}")?;
    let mut replies = fifo::open_writer(&replies_path, None)?;
    say!("echoes each line")?;
    let mut message = read(&mut requests, REQUESTS)?;
    while message != "exit" {
        say!("read  {message} from {REQUESTS}, writes it to {REPLIES}")?;
        while let Err(error) = fifo::write_line(&mut replies, &message) {
            if error.kind() != ErrorKind::BrokenPipe {
                return Err(error).context("write pipe.out");
            }
            say!("the last reader has left, waits for another at {REPLIES}")?;
            replies = fifo::open_writer(&replies_path, None)?;
        }
        message = read(&mut requests, REQUESTS)?;
    }
    say!("read  exit  from {REQUESTS}")
}
