//! FIFOs between strangers: a consumer and a producer in two terminals, or a shell.
//!
//! The article: 在任意进程间进行通信, between any processes.
//!
//! ```text
//!  terminal 1: cargo run -p fifo consumer      terminal 2: cargo run -p fifo producer
//!                                              or:         cat pipe.out &
//!                                                          echo 'msg 1' > pipe.in
//! ```
//!
//! The consumer makes the FIFOs, as in the article, and removes them. A producer that comes first waits for them.

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{Process, block_signals, say, set_role, supervise};
use fifo::Guard;

use crate::{REPLIES, REQUESTS, producer, read};

/// How often to look where the kernel has no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Runs one role as a child, so that the parent can clean up however the child ends.
pub fn run(role: &str, dir: &Path) -> Result<()> {
    set_role(role);
    block_signals()?;
    if role == "producer" {
        return supervise([Process::spawn(role, || {
            wait_for_a_consumer(dir)?;
            producer(dir)
        })?]);
    }
    let requests = fifo::collect(&dir.join(REQUESTS))?;
    let mut pipe_out = Guard::create(&dir.join(REPLIES))?;
    let result = supervise([Process::spawn(role, || consumer(&requests, dir))?]);
    // While pipe.in is locked: the next consumer makes its own.
    let replies = pipe_out.remove();
    let requests = requests.remove();
    let unread = requests.as_deref().unwrap_or_default();
    if !unread.is_empty() {
        say!("leaves {} bytes unread: {}", unread.len(), String::from_utf8_lossy(unread))?;
    }
    result.and(replies.and(requests).map(drop).map_err(Into::into))
}

fn wait_for_a_consumer(dir: &Path) -> Result<()> {
    say!("waits for a consumer at {REQUESTS} and {REPLIES}")?;
    let here = File::open(dir.join(".")).with_context(|| format!("open {}", dir.display()))?;
    while [REQUESTS, REPLIES].iter().any(|name| fs::symlink_metadata(dir.join(name)).is_err()) {
        ensure!(here.metadata()?.nlink() > 0, "the directory '{}' was removed", dir.display());
        sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The story's consumer, for any number of writers, until one of them says `exit`.
fn consumer(requests: &File, dir: &Path) -> Result<()> {
    // One byte at a time: what comes after `exit`, or after the line that a stop signal cuts short, stays in the FIFO, for the
    // report.
    let mut requests = BufReader::with_capacity(1, requests);
    say!("waits for a reader at {REPLIES}")?;
    let mut replies = fifo::open_writer(&dir.join(REPLIES))?;
    say!("echoes each line of {REQUESTS}")?;
    let mut message = read(&mut requests, REQUESTS)?;
    while message != "exit" {
        say!("read  {message} from {REQUESTS}, writes it to {REPLIES}")?;
        fifo::write_line(&mut replies, &message).context("write pipe.out")?;
        message = read(&mut requests, REQUESTS)?;
    }
    say!("read  exit  from {REQUESTS}")
}
