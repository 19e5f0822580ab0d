//! A server in a terminal of its own: it echoes lines, to any number of clients, on any host.
//!
//! Its log must be read: a pipe as stdout that nobody drains is full after some 900 clients, and then blocks it.
//!
//! The article: 可以跨主机的进程间通信, between hosts, and 在同一主机的不同进程间进行通信, between processes of one host.
//!
//! ```text
//!  terminal 1: cargo run -p socket server      terminal 2: cargo run -p socket client
//!                                              or:         nc 127.0.0.1 9000
//! ```

use std::io::{self, BufReader, ErrorKind, Read};
use std::net::Shutdown;
use std::thread::{self, Builder};
use std::time::Duration;

use anyhow::{Context, Result};
use common::{Process, block_signals, say, set_role, supervise};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket::{Listener, Stream, read_line, write_line};

/// How long a client may send nothing, and how long it may leave a reply unread.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Back-off after a failed accept(2), such as EMFILE: the client stays in the queue, so calling again at once would
/// fail again, and there is no event for a free descriptor. Likewise when no thread can be started; that client is lost.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the server until it is stopped.
pub fn run(address: &str) -> Result<()> {
    // A child serves, so that the parent can remove a socket file however the child ends.
    set_role("server");
    block_signals()?;
    let listener = socket::listen(address)?;
    supervise([Process::spawn("server", || serve(&listener))?])
}

fn serve(listener: &Listener) -> Result<()> {
    say!("listens on {}", listener.local_address()?)?;
    let mut number = 0;
    loop {
        number += 1;
        // Each client has a thread of its own, so none has to wait for another.
        let served = listener.accept().and_then(|stream| {
            Builder::new().spawn(move || {
                note(say!("client {number}: connected{}", peer(&stream)));
                match echo(&stream) {
                    Ok(()) => note(say!("client {number}: closed")),
                    Err(error) => note(say!("client {number}: {error}")),
                }
            })
        });
        if let Err(error) = served {
            note(say!("cannot serve a client: {error}"));
            thread::sleep(PAUSE);
        }
    }
}

/// A log that cannot be written (a full disk) is no reason to drop a client.
fn note(said: Result<()>) {
    common::note(said.context("server"));
}

/// Who the client is, on a Unix-domain socket, as the kernel knows: `SO_PEERCRED`.
fn peer(stream: &Stream) -> String {
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) if peer.pid() != 0 => format!(", user {}, process {}", peer.uid(), peer.pid()),
        _ => String::new(), // over TCP nobody knows
    }
}

/// Sends each line back, until the client closes.
fn echo(stream: &Stream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut lines = BufReader::new(stream);
    let mut replies = stream;
    loop {
        match read_line(&mut lines) {
            Ok(Some(line)) => write_line(&mut replies, &line)?,
            Ok(None) => return Ok(()),
            Err(error) => {
                if error.kind() == ErrorKind::InvalidData {
                    write_line(&mut replies, &format!("error: {error}"))?;
                    // Closing with bytes unread would reset the connection, and the client might
                    // never see the line above. So read on a little, until it closes.
                    stream.shutdown(Shutdown::Write)?;
                    stream.set_read_timeout(Some(WRITE_TIMEOUT))?;
                    io::copy(&mut lines.take(1 << 20), &mut io::sink())?;
                }
                return Err(error);
            }
        }
    }
}
