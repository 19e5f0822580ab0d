//! Shared memory between strangers: a writer and a reader in two terminals.
//!
//! A mailbox is the story's memory with built-in turn-taking, under one name: each end notices when the other one
//! is gone.
//!
//! ```text
//!  terminal 1: cargo run -p shm writer      terminal 2: cargo run -p shm reader
//! ```

use anyhow::{Context, Result};
use common::{Process, block_signals, say, set_role, supervise};
use shm::{Reader, Writer};

use crate::SIZE;

/// Runs one role as a child, so that the parent can leave the mailbox however the child ends.
pub fn run(role: &str, name: &str) -> Result<()> {
    set_role(role);
    block_signals()?;
    // Whoever comes first makes it, and whoever leaves last removes it. The child uses a copy of this end.
    if role == "writer" {
        let mut end = Writer::open(name, SIZE)?;
        supervise([Process::spawn(role, || writer(name, &mut end))?])
    } else {
        let mut end = Reader::open(name, SIZE)?;
        supervise([Process::spawn(role, || reader(name, &mut end))?])
    }
}

fn writer(name: &str, end: &mut Writer) -> Result<()> {
    say!("opens {name}")?;
    for data in ["Hello", "Alpha_Panda", ""] {
        say!("write {data:?}")?;
        end.write(data.as_bytes(), None)?;
        // Without this we would say "write" again, or leave, before the reader has said "read".
        end.flush(None)?;
    }
    Ok(())
}

fn reader(name: &str, end: &mut Reader) -> Result<()> {
    say!("opens {name}")?;
    loop {
        // The slot stays taken until `data` is dropped, so the writer waits while we print.
        let data = end.read(None)?;
        say!("read  {:?}", std::str::from_utf8(&data).context("the text is not UTF-8")?)?;
        if data.is_empty() {
            return Ok(());
        }
    }
}
