//! Sockets between strangers: a server and its clients in several terminals, or on several hosts.
//!
//! The article: 可以跨主机的进程间通信, and 在同一主机的不同进程间进行通信 as well.
//!
//! ```text
//!  terminal 1: cargo run -p socket server      terminal 2: cargo run -p socket client
//!                                              or:         nc 127.0.0.1 9000
//! ```

use std::io::{self, BufReader, ErrorKind, Read};
use std::net::Shutdown;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::{Process, hold_signals, say, set_role, supervise};
use socket::{Address, Listener, Stream, read_line, write_line};

/// The loopback interface: nobody else on the network can connect.
pub const DEFAULT: &str = "127.0.0.1:9000";

/// How long a client may say nothing, and how long it may take no answer.
const IDLE: Duration = Duration::from_secs(600);
const STUCK: Duration = Duration::from_secs(10);

/// How long a server may take to be reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the server until it is stopped.
pub fn server(address: &str) -> Result<()> {
    let address: Address = parse(address)?;
    // A child serves, so that the parent can remove a socket file whatever happens to it.
    hold_signals()?;
    let listener = socket::listen(&address)?;
    supervise([Process::spawn("server", || serve(&listener))?])
}

/// Connects, sends each message (without any: each line of stdin), and shows the answers.
pub fn client(address: &str, messages: &[&str]) -> Result<()> {
    let address: Address = parse(address)?;
    set_role("client");
    let stream = &socket::connect(&address, Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::new(stream);
    let mut ask = |message: &str| {
        say!("send:   {message}");
        write_line(&mut { stream }, message).context("send")?;
        let reply = read_line(&mut replies).context("recv")?;
        say!("recv:   {}", reply.context("recv: the server closed")?);
        anyhow::Ok(())
    };
    for message in messages {
        ask(message)?;
    }
    if messages.is_empty() {
        for message in io::stdin().lines() {
            ask(&message.context("read stdin")?)?;
        }
    }
    Ok(())
}

fn parse(address: &str) -> Result<Address> {
    address.parse().map_err(|error: io::Error| common::Usage(error.to_string()).into())
}

fn serve(listener: &Listener) -> Result<()> {
    say!("listens on {}", listener.local_address()?);
    let clients = Clients::default();
    // Each client has a thread of its own, so none has to wait for another.
    thread::scope(|scope| {
        for number in 1.. {
            let left = clients.lock().left;
            let stream = match listener.accept() {
                Ok(stream) => stream,
                // Too many open files, for instance. Accepting again at once would fail again; a
                // client that leaves makes room.
                Err(error) if clients.wait_until_more_than(left) => {
                    say!("{error}: waited until a client left");
                    continue;
                }
                Err(error) => bail!(error),
            };
            let client = clients.enter();
            let talk = move || {
                // In this order, so that the stream is closed before the client is counted out.
                let (_client, stream) = (client, stream);
                say!("client {number}: connected");
                match echo(&stream) {
                    Ok(()) => say!("client {number}: closed"),
                    Err(error) => say!("client {number}: {error}"),
                }
            };
            if let Err(error) = Builder::new().spawn_scoped(scope, talk) {
                say!("client {number}: refused, no thread for it: {error}");
            }
        }
        Ok(())
    })
}

/// Sends each line back, until the client closes.
fn echo(stream: &Stream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(STUCK))?;
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
                    stream.set_read_timeout(Some(STUCK))?;
                    io::copy(&mut lines.take(1 << 20), &mut io::sink())?;
                }
                return Err(error);
            }
        }
    }
}

/// The clients, to wait for one to leave.
#[derive(Default)]
struct Clients {
    counts: Mutex<Counts>,
    one_left: Condvar,
}

#[derive(Default)]
struct Counts {
    here: usize,
    left: usize,
}

/// A client; dropping it counts it out.
struct Client<'a>(&'a Clients);

impl Clients {
    fn enter(&self) -> Client<'_> {
        self.lock().here += 1;
        Client(self)
    }

    /// Waits until more than so many have left; false if there is none who could.
    fn wait_until_more_than(&self, left: usize) -> bool {
        let mut counts = self.lock();
        while counts.left == left && counts.here > 0 {
            counts = self.one_left.wait(counts).unwrap_or_else(PoisonError::into_inner);
        }
        counts.left > left
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        counts.here -= 1;
        counts.left += 1;
        self.0.one_left.notify_one();
    }
}
