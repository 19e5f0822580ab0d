//! Our sockets against bare ones: send(2), recv(2), over TCP and over Unix-domain sockets.
//!
//! All have TCP_NODELAY set: without it the kernel would gather small messages. A line costs
//! more than its bytes: `write_line` and `read_line` look for its end and check that it is text.

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use measure::{ALL, Bytes, LINES, Link, Peer, compare, head, pin, places, scaling, scaling_wanted};
use socket::Stream;

fn main() -> Result<()> {
    head(&["bare"]);
    let path = std::env::temp_dir().join(format!("socket-bench-{}", std::process::id()));
    for place @ [here, there] in places()? {
        pin(here)?;
        let tcp = "127.0.0.1:0";
        let mut ours = Peer::start(there, bytes(our_pair(tcp)?, Stream::try_clone)?)?;
        if scaling_wanted() {
            scaling("TCP", &mut ours)?;
            return clients();
        }
        let mut lines = Peer::start(there, our_pair(tcp)?.map(Lines::new))?;
        let mut bare = Peer::start(there, bytes(tcp_pair()?, TcpStream::try_clone)?)?;
        compare("TCP", &ALL, place, &mut [&mut ours, &mut bare])?;
        compare("TCP, lines", &LINES, place, &mut [&mut lines, &mut bare])?;

        let unix = format!("unix:{}", path.display());
        let mut ours = Peer::start(there, bytes(our_pair(&unix)?, Stream::try_clone)?)?;
        let mut lines = Peer::start(there, our_pair(&unix)?.map(Lines::new))?;
        let pair = UnixStream::pair()?.into();
        let mut bare = Peer::start(there, bytes(pair, UnixStream::try_clone)?)?;
        compare("Unix", &ALL, place, &mut [&mut ours, &mut bare])?;
        compare("Unix, lines", &LINES, place, &mut [&mut lines, &mut bare])?;
    }
    Ok(())
}

/// Prints what a line there and back costs with more and more clients of the server program: each
/// in turn, and all at once.
fn clients() -> Result<()> {
    let mut server = Command::new(env!("CARGO_BIN_EXE_socket"))
        .args(["server", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(server.stdout.take().context("its stdout")?);
    let mut says = String::new();
    stdout.read_line(&mut says)?;
    let address = says.trim().rsplit(' ').next().context("its address")?;
    let mut clients: Vec<Lines> = Vec::new();
    println!("a line of 64 B to the server and back, by the number of clients");
    for count in [1, 10, 100, 500] {
        while clients.len() < count {
            clients.push(Lines::new(socket::connect(address, None)?));
        }
        let message = "x".repeat(64);
        let rounds = 20_000 / count;
        let start = Instant::now();
        for turn in 0..rounds * count {
            let client = &mut clients[turn % count];
            client.send(&message)?;
            client.recv(64)?;
        }
        let in_turn = start.elapsed().as_secs_f64() / (rounds * count) as f64 * 1e6;
        let start = Instant::now();
        for _ in 0..rounds {
            clients.iter_mut().try_for_each(|client| client.send(&message))?;
            clients.iter_mut().try_for_each(|client| client.recv(64).map(drop))?;
        }
        let at_once = start.elapsed().as_secs_f64() / (rounds * count) as f64 * 1e6;
        println!("{count:>3} clients   {in_turn:>6.2} µs in turn {at_once:>6.2} µs all at once");
    }
    server.kill()?;
    server.wait()?;
    Ok(())
}

fn our_pair(address: &str) -> Result<[Stream; 2]> {
    // Closed at the end of this function, and with it the file of a Unix socket goes.
    let listener = socket::listen(address)?;
    let client = socket::connect(&listener.local_address()?, None)?;
    Ok([client, listener.accept()?])
}

fn tcp_pair() -> Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok([client, server])
}

/// Both ends, each as a link that reads from and writes to the same socket.
fn bytes<S: Read + Write>(
    [one, two]: [S; 2],
    clone: fn(&S) -> io::Result<S>,
) -> Result<[Bytes<S, S>; 2]> {
    Ok([Bytes::new((clone(&one)?, one)), Bytes::new((clone(&two)?, two))])
}

struct Lines {
    stream: BufReader<Stream>,
    message: String,
}

impl Lines {
    fn new(stream: Stream) -> Lines {
        Lines { stream: BufReader::new(stream), message: String::new() }
    }
}

impl Link for Lines {
    fn send(&mut self, message: &str) -> Result<()> {
        // The line's end is one of the bytes.
        Ok(socket::write_line(self.stream.get_mut(), &message[..message.len() - 1])?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = String::new(); // the last one is done with
        self.message = socket::read_line(&mut self.stream)?.context("the other side closed")?;
        ensure!(self.message.len() == length - 1);
        Ok(self.message.as_bytes())
    }
}
