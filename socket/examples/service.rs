//! A service: requests and replies, a line of JSON each, over TCP or a Unix-domain socket.
//!
//! Run `cargo run -p socket --example service 127.0.0.1:9001` and, before or after it, in any number of other
//! terminals, `cargo run -p socket --example client 127.0.0.1:9001`. Each client has a thread. On Ctrl-C the service
//! answers the requests in progress, and ends within a second; on a second one, at once. For an address of your own:
//! `[::1]:9001`, `unix:/path`.

use std::io::{self, BufReader, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Once, Weak, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use common::{log, stop_signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use serde_json::{Value, json};
use socket::{MAX_LINE, Stream, read_line, write_line};

/// How long a client may send nothing, and how long it may leave a reply unread.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long the clients have at the end.
const GRACE: Duration = Duration::from_secs(1);

static IS_STOPPING: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:9001".to_owned());
    let stop = stop_signals()?; // before any thread
    let listener = socket::listen(&address)?;
    log(&format!("listens on {}", listener.local_address()?));
    let (running, ended) = mpsc::channel();
    let (mut clients, said) = (Vec::new(), Once::new());
    loop {
        let mut fds = [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::NONE); // if a signal comes that is not ours, nothing is ready
        if fds[1].any() == Some(true) {
            break;
        }
        if fds[0].any() == Some(true) {
            match listener.accept().and_then(|stream| start(stream, running.clone())) {
                Ok(client) => clients.push(client),
                // No file, no thread, a client that has gone: no reason to end. The next one may be luckier.
                Err(error) => {
                    said.call_once(|| log(&format!("cannot serve a client: {error}")));
                    thread::sleep(Duration::from_millis(100)); // there is no event for a free descriptor
                }
            }
            clients.retain(|client: &Weak<Stream>| client.strong_count() > 0);
        }
    }
    stop.read_signal()?;
    drop((listener, running)); // nobody can connect any more, and a socket file is gone
    SigSet::all().thread_unblock()?; // a second signal ends us at once
    IS_STOPPING.store(true, SeqCst);
    for client in clients.iter().filter_map(Weak::upgrade) {
        let _ = client.shutdown(Shutdown::Read); // whoever waits for a request reads EOF
    }
    let _ = ended.recv_timeout(GRACE); // or until all threads have dropped their `running`
    log("stops");
    Ok(())
}

/// Starts the thread of a client. It alone owns the stream, and so closes it.
fn start(stream: Stream, running: mpsc::Sender<()>) -> io::Result<Weak<Stream>> {
    let stream = Arc::new(stream);
    let client = Arc::downgrade(&stream);
    thread::Builder::new().spawn(move || {
        let _running = running;
        answer_all(&stream).unwrap_or_else(|error| log(&format!("a client: {error}")));
    })?;
    Ok(client)
}

fn answer_all(stream: &Stream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut lines = BufReader::new(stream);
    while !IS_STOPPING.load(SeqCst) {
        match read_line(&mut lines) {
            Ok(Some(line)) => write_line(&mut { stream }, &answer(&line))?,
            Ok(None) => return Ok(()),
            // Too long, or not UTF-8.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                write_line(&mut { stream }, &json!({ "error": error.to_string() }).to_string())?;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    // Closing with bytes unread would reset the connection, and the last reply might be lost. So shut down the writing
    // side, and read on a little, until the client closes.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(GRACE))?;
    io::copy(&mut lines.take(1 << 20), &mut io::sink()).map(drop)
}

fn answer(line: &str) -> String {
    let reply = match serde_json::from_str::<Value>(line) {
        Err(error) => json!({ "error": error.to_string() }),
        Ok(request) => match sum(&request) {
            Err(error) => json!({ "id": request["id"], "error": error.to_string() }),
            Ok(sum) => json!({ "id": request["id"], "sum": sum }),
        },
    };
    let reply = reply.to_string();
    if reply.len() < MAX_LINE { reply } else { json!({ "error": "too long a reply" }).to_string() }
}

/// The work: `{"id": 1, "numbers": [1, 2]}` gives `{"id": 1, "sum": 3.0}`.
fn sum(request: &Value) -> serde_json::Result<f64> {
    let numbers: Vec<f64> = serde_json::from_value(request["numbers"].clone())?;
    Ok(numbers.iter().fold(0.0, |sum, number| sum + number)) // `sum()` of none is -0.0
}
