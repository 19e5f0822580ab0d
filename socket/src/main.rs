//! Socket: a client and a server, which could be on two hosts.
//!
//! The article's section socket通信. It has only a flow chart, no code: here each box of the chart is a call, and a
//! line of output. A program of your own calls `socket::listen` and `socket::connect` instead, which also take
//! names, IPv6 and Unix-domain sockets.
//!
//! ```text
//!  server: socket, bind, listen ─▶ accept ─▶ recv ─▶ send ─▶ recv ─▶ close
//!                                    ▲         ▲       │       ▲
//!  client: socket ──────────────▶ connect ─▶ send ─▶ recv ─▶ close
//! ```

mod client;
mod server;

use std::io::{BufReader, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use common::{Process, say, supervise, usage};
use socket::read_line;
use socket2::{Domain, SockAddr, Socket, Type};

/// The default address, on the loopback interface: nobody else on the network can connect.
const ADDRESS: &str = "127.0.0.1:9000";

const HELP: &str = "\
A server and a client exchange lines over a stream socket: TCP, or a Unix-domain socket.

Usage: cargo run -p socket                                both, over TCP
       cargo run -p socket server [ADDRESS]               echoes lines, to any number of clients
       cargo run -p socket client [ADDRESS [MESSAGE…]]    sends each MESSAGE, or each line of stdin

ADDRESS is HOST:PORT, [IPV6]:PORT or unix:/PATH (default: 127.0.0.1:9000); port 0 is any free one.
";

fn main() -> std::process::ExitCode {
    common::main(HELP, |args| match args {
        [] => story(),
        ["server"] => server::run(ADDRESS),
        ["server", address] => server::run(address),
        ["client"] => client::run(ADDRESS, &[]),
        ["client", address, messages @ ..] => client::run(address, messages),
        args => usage(HELP, args),
    })
}

fn story() -> Result<()> {
    // Before the fork, so that the client cannot connect too early, and knows the port.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    say!("socket")?;
    // Port 0 is any free one. (For one that a server has just used, set_reuse_address comes first.)
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).context("bind")?;
    say!("bind:   127.0.0.1, any free port")?;
    listener.listen(128).context("listen")?;
    say!("listen")?;
    let address = listener.local_addr()?;

    // Moved into the server: that closes the parent's copy, with which a client could still connect after
    // the server has died.
    let server = Process::spawn("server", move || server(&listener))?;
    let client = Process::spawn("client", || client(&address))?;
    supervise([server, client])
}

fn server(listener: &Socket) -> Result<()> {
    let (stream, _) = listener.accept().context("accept")?;
    // recv returns what has come: a part of a message, or several. Read up to the end of the line, which ends
    // a message here.
    let mut lines = BufReader::new(&stream);
    let message = read_line(&mut lines)?.context("recv: the client closed")?;
    // `accept` and the client's `connect` may return in either order. Only now is the client known to have
    // connected, so only now is this printed.
    say!("accept: a client")?;
    say!("recv:   {message}")?;
    say!("send:   {message}")?;
    // send may take a part only: write_all calls it again with the rest.
    (&stream).write_all(format!("{message}\n").as_bytes()).context("send")?;

    ensure!(read_line(&mut lines)?.is_none(), "recv: expected EOF");
    say!("recv:   EOF")?;
    drop(stream);
    say!("close")
}

fn client(address: &SockAddr) -> Result<()> {
    let stream = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    say!("socket")?;
    stream.connect(address).context("connect")?;
    say!("connect")?;
    say!("send:   Hello")?;
    (&stream).write_all(b"Hello\n").context("send")?;
    let reply = read_line(&mut BufReader::new(&stream))?.context("recv: the server closed")?;
    say!("recv:   {reply}")?;
    ensure!(reply == "Hello", "sent Hello, got {reply:?} back");
    // Print, then close: that lets the server proceed.
    say!("close")?;
    drop(stream);
    Ok(())
}
