//! A client of the service in `service.rs`: it waits for a server that starts later.
//!
//! Run it with `cargo run -p socket --example client 127.0.0.1:9001`, before the server or after it.

use std::io::{BufReader, ErrorKind};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::print;
use serde_json::json;
use socket::{Stream, read_line, write_line};

/// How long the server may take to be there, and then to send each byte of a reply.
const TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:9001".to_owned());
    let stream = connect(&address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut replies = BufReader::new(&stream);
    for id in 1..=3 {
        let request = json!({ "id": id, "numbers": [id, 2 * id] }).to_string();
        write_line(&mut &stream, &request).context("send")?;
        let reply = read_line(&mut replies).context("recv")?.context("recv: the server closed")?;
        print(&format!("{request} -> {reply}\n"))?;
    }
    Ok(())
}

/// Connects as soon as there is a server. There is no event for that, so it looks again.
fn connect(address: &str) -> Result<Stream> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match socket::connect(address, Some(TIMEOUT)) {
            Err(error)
                if [ErrorKind::ConnectionRefused, ErrorKind::NotFound].contains(&error.kind())
                    && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            connected => return Ok(connected?),
        }
    }
}
