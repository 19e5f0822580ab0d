//! Half-duplex: a pipe with one direction, `Pipe(False)`.
//!
//! The article only quotes the manual here: conn1 can only be used for receiving messages and
//! conn2 can only be used for sending messages. In Rust they are two types, so that the wrong
//! direction does not even compile.
//!
//! ```text
//!  parent (conn1: Receiver) ◀── Data@subprocess ── subprocess (conn2: Sender)
//! ```

use anyhow::{Context, Result, ensure};
use common::{Process, say};
use pipe::{Receiver, Sender};

pub fn run() -> Result<()> {
    let (conn1, conn2) = pipe::simplex()?;
    let (subprocess, conn1) = Process::spawn_with("subprocess", (conn1, conn2), subprocess)?;
    let part = parent(conn1);
    subprocess.join_after(part)
}

fn parent(mut conn1: Receiver) -> Result<()> {
    let message = conn1.recv()?.context("recv: the other side closed the pipe")?;
    say!("received {}", String::from_utf8_lossy(&message))?;
    // EOF arrives only because this process has closed its copy of conn2.
    ensure!(conn1.recv()?.is_none(), "recv: expected EOF");
    say!("received EOF")
}

fn subprocess(mut conn2: Sender) -> Result<()> {
    say!("sends    Data@subprocess")?;
    conn2.send(b"Data@subprocess")?;
    Ok(())
}
