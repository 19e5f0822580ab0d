//! No fork: a `std::process::Command` starts the child, here this program itself with an argument.
//!
//! ```text
//!  parent ── requests ──▶ stdin   child
//!         ◀── replies ──          stdout is free
//! ```
//!
//! Run it with `cargo run -p pipe --example command`. Use this in a program with threads, which must not fork, or for
//! a child that is another program. Both directions share one socket pair, one end of which is the child's stdin: so
//! its stdout is free for printing, and no other program started meanwhile inherits an end. Each side makes a
//! `Sender` and a `Receiver` of its end. (A pipe for one direction is `Stdio::from(OwnedFd::from(receiver))`.)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use pipe::{Receiver, Sender};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("child") => child(),
        _ => parent(),
    }
}

fn parent() -> Result<()> {
    // Such a program has threads.
    let thread = std::thread::spawn(|| 6 * 7);
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("child")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .context("start the child")?;
    // The command is gone, and with it our copy of the child's end: so we see EOF when the child dies.
    let exchanged = exchange(ends(ours.into())?);
    // Our ends are closed by now, which is EOF for the child.
    let status = child.wait()?;
    // If the child was killed, that is why the exchange broke.
    ensure!(status.success(), "the child: {status}");
    exchanged?;
    println!("parent: the thread says {}", thread.join().unwrap_or_default());
    Ok(())
}

fn exchange((mut requests, mut replies): (Sender, Receiver)) -> Result<()> {
    for request in ["Orange", "Apple"] {
        requests.send(request.as_bytes()).context("send a request")?;
        let reply = replies.recv()?.context("receive a reply: the child is gone")?;
        println!("parent: {request} -> {}", String::from_utf8(reply)?);
    }
    Ok(())
}

fn child() -> Result<()> {
    let (mut replies, mut requests) = ends(io::stdin().as_fd().try_clone_to_owned()?)?;
    while let Some(request) = requests.recv()? {
        let request = String::from_utf8(request)?;
        println!("child:  got {request}");
        replies.send(request.to_uppercase().as_bytes())?;
    }
    Ok(())
}

/// Both directions of a socket.
fn ends(socket: OwnedFd) -> Result<(Sender, Receiver)> {
    Ok((Sender::from(socket.try_clone()?), Receiver::from(socket)))
}
