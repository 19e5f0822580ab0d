//! Pipe: a parent and its child exchange messages over a pair of connections.
//!
//! The article's section 管道. A pipe has no name, so only processes that inherit it can use
//! it: it is made before the fork, and each process keeps one end. (Each direction is a pipe of its own.)
//!
//! ```text
//!  parent (conn1) ── Data@parentprocess ──▶ subprocess (conn2)
//!                 ◀── Data@subprocess ─────
//! ```

mod half_duplex;

use anyhow::{Context, Result};
use common::{Process, say, usage};
use pipe::Connection;

const HELP: &str = "\
A parent and its child exchange messages over a pipe (multiprocessing.Pipe).

Usage: cargo run -p pipe                both send and receive, Pipe(True)
       cargo run -p pipe half-duplex    one sends, one receives, Pipe(False)
";

fn main() -> std::process::ExitCode {
    common::main(HELP, |args| match args {
        [] => story(),
        ["half-duplex"] => half_duplex::run(),
        args => usage(HELP, args),
    })
}

fn story() -> Result<()> {
    let (conn1, conn2) = pipe::duplex()?;
    // The fork copies both ends into the child, and each process must close the end that it does not use:
    // spawn_with closes conn2 here and conn1 there. If the parent kept conn2 open, as the article does, its
    // recv would block forever instead of seeing EOF when the child dies.
    // (Process(…) and start() in one: the process runs when this returns.)
    let (subprocess, conn1) = Process::spawn_with("subprocess", (conn1, conn2), subprocess)?;
    let part = parent(conn1);
    // Unlike Python's, this is an error when the child failed. It may have failed because of our part, or our part because
    // of it: if both did, the error says both.
    subprocess.join_after(part)
}

fn parent(mut conn1: Connection) -> Result<()> {
    let message = recv(&mut conn1)?;
    say!("received {message}")?;
    say!("sends    Data@parentprocess")?;
    // Bytes, as `send_bytes` takes them: the article's `send` pickles any Python object.
    conn1.send(b"Data@parentprocess")?;
    Ok(())
}

/// The article's `pstart`; its first argument, the name, is printed as a prefix of each line here.
fn subprocess(mut conn2: Connection) -> Result<()> {
    // Print, then hand over: so the lines of both processes always come in this order.
    say!("sends    Data@subprocess")?;
    conn2.send(b"Data@subprocess")?;
    let message = recv(&mut conn2)?;
    say!("received {message}")
}

/// Receives a text. EOF is an error here: each side expects exactly one message.
fn recv(connection: &mut Connection) -> Result<String> {
    let message = connection.recv()?.context("recv: the other side closed the pipe")?;
    String::from_utf8(message).context("recv: the message is not UTF-8")
}
