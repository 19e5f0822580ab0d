//! Shared memory between strangers: a writer and a reader in two terminals.
//!
//! ```text
//!  terminal 1: cargo run -p shm writer      terminal 2: cargo run -p shm reader
//! ```

use anyhow::Result;
use common::{Process, hold_signals, say, supervise};
use shm::Mailbox;

use crate::SIZE;

/// Runs the writer of the story against a reader in another terminal.
pub fn writer(name: &str) -> Result<()> {
    alone("writer", name, |mailbox| {
        crate::writer(mailbox)?;
        // Not to leave before the reader has the last message.
        Ok(mailbox.flush(None)?)
    })
}

/// Runs the reader of the story against a writer in another terminal.
pub fn reader(name: &str) -> Result<()> {
    alone("reader", name, crate::reader)
}

/// Runs one role as a child, so that the parent can clean up whatever happens to it.
fn alone(role: &str, name: &str, body: fn(&Mailbox) -> Result<()>) -> Result<()> {
    hold_signals()?;
    // Whoever comes first creates it, and whoever created it unlinks it.
    let mailbox = Mailbox::create_or_open(name, SIZE)?;
    supervise([Process::spawn(role, || {
        say!("waits for the other side at {name}");
        body(&mailbox)
    })?])
}
