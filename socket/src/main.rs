//! Socket: a client and a server, who could be on two hosts.
//!
//! The article's section socket通信. It has no code there, only a flow chart, and each step of
//! the chart is one line of this program's output.
//!
//! ```text
//!  server: socket, bind, listen ─▶ accept ─▶ recv ─▶ send ─▶ recv ─▶ close
//!                                    ▲         ▲       │       ▲
//!  client: socket ──────────────▶ connect ─▶ send ─▶ recv ─▶ close
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use common::{Process, expected, say, supervise};
use socket::Address;

const HELP: &str = "\
A server and a client talk over TCP, step by step as in the article's flow chart.

Usage: cargo run -p socket
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        _ => expected(args, "no arguments"),
    })
}

fn both() -> Result<()> {
    // The kernel picks a free port, so the server must tell the client which. A client that
    // came before the server listens would be refused, and this makes it wait, too.
    let (told, tell) = UnixStream::pair().context("socketpair")?;
    let (server, told) = Process::spawn_with("server", (told, tell), server)?;
    let client = Process::spawn("client", || client(told))?;
    supervise([server, client])
}

fn server(mut tell: UnixStream) -> Result<()> {
    let address: Address = "127.0.0.1:0".parse()?;
    let listener = socket::listen(&address)?;
    say!("socket, bind, listen: on a free port of 127.0.0.1");
    let address = format!("{}\n", listener.local_address()?);
    tell.write_all(address.as_bytes())
        .context("tell the client the port")?;

    let mut stream = listener.accept()?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let message = lines.next().context("recv: the client closed")??;
    // The client's connect came back before this accept did, and what it did since has no order
    // with ours: so this is told now that its message is here.
    say!("accept: a client");
    say!("recv:   {message}");
    say!("send:   {message}");
    stream
        .write_all(format!("{message}\n").as_bytes())
        .context("send")?;

    ensure!(
        lines.next().is_none(),
        "recv: expected the end of the stream"
    );
    say!("recv:   the end of the stream");
    say!("close");
    Ok(())
}

fn client(told: UnixStream) -> Result<()> {
    let mut address = String::new();
    BufReader::new(told)
        .read_line(&mut address)
        .context("learn the port")?;
    ensure!(!address.is_empty(), "learn the port: the server closed");
    let address: Address = address.trim_end().parse()?;

    let mut stream = socket::connect(&address, None)?;
    say!("socket, connect");
    say!("send:   Hello");
    stream.write_all(b"Hello\n").context("send")?;
    let mut reply = String::new();
    BufReader::new(&mut stream)
        .read_line(&mut reply)
        .context("recv")?;
    say!("recv:   {}", reply.trim_end());
    ensure!(reply == "Hello\n", "sent Hello, got {reply:?} back");
    say!("close");
    Ok(())
}
