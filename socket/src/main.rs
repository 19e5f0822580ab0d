//! Socket: a client and a server, which could be on two hosts.
//!
//! The article's section socket通信. It has no code there, only a flow chart, and each step of
//! the chart is named in this program's output.
//!
//! ```text
//!  server: socket, bind, listen ─▶ accept ─▶ recv ─▶ send ─▶ recv ─▶ close
//!                                    ▲         ▲       │       ▲
//!  client: socket ──────────────▶ connect ─▶ send ─▶ recv ─▶ close
//! ```

mod client;
mod server;

use std::io::BufReader;

use anyhow::{Context, Result, ensure};
use common::{Process, say, supervise, usage};
use socket::{Listener, read_line, write_line};

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
        _ => usage(HELP),
    })
}

fn story() -> Result<()> {
    // Before the fork, so that the client cannot connect too early, and knows the port: any free one.
    let listener = socket::listen("127.0.0.1:0")?;
    let address = listener.local_address()?;
    say!("socket, bind, listen: on a free port of 127.0.0.1")?;

    // Moved into the server: that closes the parent's copy, with which a client could still connect after
    // the server has died. (A listener with a socket file must stay here: dropping it removes the file.)
    let server = Process::spawn("server", move || server(&listener))?;
    let client = Process::spawn("client", || client(&address))?;
    supervise([server, client])
}

fn server(listener: &Listener) -> Result<()> {
    let stream = listener.accept()?;
    let mut reader = BufReader::new(&stream);
    let message = read_line(&mut reader)?.context("recv: the client closed")?;
    // accept here and connect there return in no defined order. Only now that the message is here is the
    // client known to be past its connect, so only now is this printed.
    say!("accept: a client")?;
    say!("recv:   {message}")?;
    say!("send:   {message}")?;
    write_line(&mut &stream, &message).context("send")?;

    ensure!(read_line(&mut reader)?.is_none(), "recv: expected EOF");
    say!("recv:   EOF")?;
    drop(stream);
    say!("close")
}

fn client(address: &str) -> Result<()> {
    let stream = socket::connect(address, None)?;
    say!("socket, connect")?;
    say!("send:   Hello")?;
    write_line(&mut &stream, "Hello").context("send")?;
    let reply = read_line(&mut BufReader::new(&stream))?.context("recv: the server closed")?;
    say!("recv:   {reply}")?;
    ensure!(reply == "Hello", "sent Hello, got {reply:?} back");
    // Print, then close: that lets the server proceed.
    say!("close")?;
    drop(stream);
    Ok(())
}
