//! A service: requests and replies, a line of JSON each, over TCP or a Unix-domain socket.
//!
//! Run `cargo run -p socket --example service 127.0.0.1:9001` and, before or after it, in any number of other
//! terminals, `cargo run -p socket --example client 127.0.0.1:9001`. Each client has a thread. On Ctrl-C the server
//! answers the requests in progress, then ends. For an address of your own: `[::1]:9001`, `unix:/path`.

use std::io::{self, BufReader, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use serde_json::{Value, json};
use socket::{Stream, read_line, write_line};

/// How long a client may send nothing, and how long it may leave a reply unread.
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:9001".to_owned());
    // Before any thread, which inherits the mask: the signals are read here instead.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    let stop = SignalFd::new(&signals)?;
    let listener = socket::listen(&address)?;
    println!("listens on {}", listener.local_address()?);
    let mut clients = Vec::new();
    loop {
        let mut fds = [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            ready => ready?,
        };
        if fds[1].any() == Some(true) {
            break;
        }
        let stream = listener.accept()?;
        let served = stream.try_clone()?;
        let thread = thread::spawn(move || {
            answer_all(&served).unwrap_or_else(|error| eprintln!("a client: {error:#}"));
            let _ = served.shutdown(Shutdown::Both); // the copy in `clients` would keep it open
        });
        clients.push((stream, thread));
        clients.retain(|(_, thread)| !thread.is_finished());
    }
    drop(listener); // nobody is queued any more
    for (stream, thread) in clients {
        let _ = stream.shutdown(Shutdown::Read); // after the request in progress, it reads EOF
        let _ = thread.join();
    }
    println!("stops");
    Ok(())
}

fn answer_all(stream: &Stream) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut lines = BufReader::new(stream);
    loop {
        match read_line(&mut lines) {
            Ok(Some(line)) => write_line(&mut { stream }, &answer(&line).to_string())?,
            Ok(None) => return Ok(()),
            // Too long, or not UTF-8. Closing with bytes unread would reset the connection, and the answer be
            // lost: so shut down the writing side, and read on a little, until the client closes.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                write_line(&mut { stream }, &json!({ "error": error.to_string() }).to_string())?;
                stream.shutdown(Shutdown::Write)?;
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                io::copy(&mut lines.take(1 << 20), &mut io::sink())?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// `{"id": 1, "numbers": [1, 2]}` gives `{"id": 1, "sum": 3.0}`.
fn answer(line: &str) -> Value {
    let request: Value = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let numbers = request["numbers"].as_array().map(|all| all.iter().filter_map(Value::as_f64));
    match numbers {
        Some(numbers) => json!({ "id": request["id"], "sum": numbers.sum::<f64>() }),
        None => json!({ "id": request["id"], "error": "numbers: expected an array" }),
    }
}
