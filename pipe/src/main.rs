//! Pipe: a parent and its child talk over a pair of connections.
//!
//! The article's section 管道. A pipe has no name, so only processes that inherit it can use
//! it: it is made before the fork, and each process keeps one end.
//!
//! ```text
//!  parent (conn1) ── Data@parentprocess ──▶ subprocess (conn2)
//!                 ◀── Data@subprocess ─────
//! ```

mod half_duplex;

use std::process::ExitCode;

use anyhow::{Context, Result};
use common::{Process, expected, say};
use pipe::Connection;

const HELP: &str = "\
A parent and its child talk over a pipe (multiprocessing.Pipe).

Usage: cargo run -p pipe                both send and receive, Pipe(True)
       cargo run -p pipe half-duplex    one sends, one receives, Pipe(False)
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        ["half-duplex"] => half_duplex::both(),
        _ => expected(args, "nothing or 'half-duplex'"),
    })
}

fn both() -> Result<()> {
    let (conn1, conn2) = pipe::duplex()?;
    // The fork copies both ends into the child. Each process must close the one that is not
    // its own: while the parent held a copy of conn2, its recv would never see the end of the
    // stream, and would wait for ever for a child that was killed.
    let (subprocess, conn1) = Process::spawn_with("subprocess", (conn1, conn2), subprocess)?;
    subprocess.join_after(|| parent(conn1))
}

fn parent(mut conn1: Connection) -> Result<()> {
    let message = recv(&mut conn1)?;
    say!("received {message}");
    say!("sends    Data@parentprocess");
    conn1.send(b"Data@parentprocess")?;
    Ok(())
}

fn subprocess(mut conn2: Connection) -> Result<()> {
    // Print, then hand over: so the lines of both processes always come in this order.
    say!("sends    Data@subprocess");
    conn2.send(b"Data@subprocess")?;
    let message = recv(&mut conn2)?;
    say!("received {message}");
    Ok(())
}

/// Receives a text. The end of the stream is an error here, since both are promised a message.
fn recv(connection: &mut Connection) -> Result<String> {
    let message = connection.recv()?.context("recv: the other side closed the pipe")?;
    String::from_utf8(message).context("recv: the message is not UTF-8")
}
