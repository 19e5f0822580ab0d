//! A client in a terminal of its own: it sends lines, and shows what comes back.

use std::io::{self, BufReader};
use std::time::Duration;

use anyhow::{Context, Result};
use common::{say, set_role};
use socket::{read_line, write_line};

/// How long a server may take to be reached, and to send each reply.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects, sends each message (without any: each line of stdin), and shows the answers.
pub fn run(address: &str, messages: &[&str]) -> Result<()> {
    set_role("client");
    let stream = &socket::connect(address, Some(CONNECT_TIMEOUT))?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    let mut replies = BufReader::new(stream);
    let mut exchange = |message: &str| {
        say!("send:   {message}")?;
        write_line(&mut { stream }, message).context("send")?;
        let reply = read_line(&mut replies).context("recv")?;
        say!("recv:   {}", reply.context("recv: the server closed")?)
    };
    for message in messages {
        exchange(message)?;
    }
    if messages.is_empty() {
        for message in io::stdin().lines() {
            exchange(&message.context("read stdin")?)?;
        }
    }
    Ok(())
}
