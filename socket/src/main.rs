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

mod terminals;

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use common::{Process, expected, say, supervise};
use socket::{Address, read_line, write_line};

const HELP: &str = "\
A server and a client talk over a stream socket: TCP, or a Unix-domain socket.

Usage: cargo run -p socket                                both, over TCP
       cargo run -p socket server [ADDRESS]               echoes lines, to any number of clients
       cargo run -p socket client [ADDRESS] [MESSAGE…]    sends each MESSAGE, or each line of stdin

ADDRESS is HOST:PORT, [IPV6]:PORT or unix:/PATH (default: 127.0.0.1:9000).
With port 0 the server takes any free one, and says which.

       cargo run -p socket server unix:/tmp/echo
       cargo run -p socket client unix:/tmp/echo Hello Alpha_Panda
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        ["server"] => terminals::server(terminals::DEFAULT),
        ["server", address] => terminals::server(address),
        ["client"] => terminals::client(terminals::DEFAULT, &[]),
        ["client", address, messages @ ..] => terminals::client(address, messages),
        _ => expected(args, "nothing, 'server [ADDRESS]' or 'client [ADDRESS] [MESSAGE…]'"),
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
    write_line(&mut tell, &listener.local_address()?.to_string()).context("tell the port")?;

    let stream = listener.accept()?;
    let mut reader = BufReader::new(&stream);
    let message = read_line(&mut reader).context("recv")?;
    let message = message.context("recv: the client closed")?;
    // The client's connect came back before this accept did, and what it did since has no order
    // with ours: so this is told now that its message is here.
    say!("accept: a client");
    say!("recv:   {message}");
    say!("send:   {message}");
    write_line(&mut &stream, &message).context("send")?;

    let end = read_line(&mut reader).context("recv")?;
    ensure!(end.is_none(), "recv: expected the end of the stream, got {end:?}");
    say!("recv:   the end of the stream");
    say!("close");
    Ok(())
}

fn client(told: UnixStream) -> Result<()> {
    let address = read_line(&mut BufReader::new(told)).context("learn the port")?;
    let address: Address = address.context("learn the port: the server closed")?.parse()?;

    let stream = socket::connect(&address, None)?;
    say!("socket, connect");
    say!("send:   Hello");
    write_line(&mut &stream, "Hello").context("send")?;
    let reply = read_line(&mut BufReader::new(&stream)).context("recv")?;
    let reply = reply.context("recv: the server closed")?;
    say!("recv:   {reply}");
    ensure!(reply == "Hello", "sent Hello, got {reply:?} back");
    say!("close");
    Ok(())
}
