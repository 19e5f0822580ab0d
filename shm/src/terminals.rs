//! Shared memory between strangers: a writer and a reader in two terminals.
//!
//! A [`Mailbox`] combines the memory and the two semaphores of the story under one name, and detects a dead
//! peer.
//!
//! ```text
//!  terminal 1: cargo run -p shm writer      terminal 2: cargo run -p shm reader
//! ```

use anyhow::{Context, Result};
use common::{Process, block_signals, say, supervise};
use shm::Mailbox;

use crate::SIZE;

/// Runs one role as a child, so that the parent can clean up however it ends.
pub fn run(role: &str, name: &str) -> Result<()> {
    block_signals()?;
    // Whoever comes first makes it, and whoever leaves last removes it.
    let mailbox = Mailbox::create_or_open(name, SIZE)?;
    supervise([Process::spawn(role, || {
        say!("opens {name}")?;
        if role == "writer" { writer(&mailbox) } else { reader(&mailbox) }
    })?])
}

fn writer(mailbox: &Mailbox) -> Result<()> {
    for data in ["Hello", "Alpha_Panda", ""] {
        say!("write {data:?}")?;
        mailbox.write(data.as_bytes(), None)?;
        // Without this we would say "write" again, or leave, before the reader has said "read".
        mailbox.flush(None)?;
    }
    Ok(())
}

fn reader(mailbox: &Mailbox) -> Result<()> {
    loop {
        // The slot stays taken until `data` is dropped, so the writer waits while we print.
        let data = mailbox.hold(None)?;
        say!("read  {:?}", std::str::from_utf8(&data).context("the text is not UTF-8")?)?;
        if data.is_empty() {
            return Ok(());
        }
    }
}
