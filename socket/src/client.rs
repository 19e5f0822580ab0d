//! A client in a terminal of its own: it sends lines, and shows what comes back.

use std::io::{self, BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{say, set_role};
use socket::{MAX_LINE, Stream, read_line, write_line};

/// How long a server may take to be reached, and to send each reply.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects, sends each message (without any: each line of stdin), and shows the answers.
pub fn run(address: &str, messages: &[&str]) -> Result<()> {
    set_role("client");
    let stream = &socket::connect(address, Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut replies = BufReader::new(Until { stream, deadline: Instant::now() });
    let mut exchange = |message: &str| {
        say!("send:   {message}")?;
        write_line(&mut { stream }, message).context("send")?;
        replies.get_mut().deadline = Instant::now() + TIMEOUT;
        let reply = read_line(&mut replies).context("recv")?;
        say!("recv:   {}", reply.context("recv: the server closed")?)
    };
    for message in messages {
        exchange(message)?;
    }
    if messages.is_empty() {
        let mut stdin = io::stdin().lock();
        while let Some(message) = next_line(&mut stdin).context("read stdin")? {
            exchange(&message)?;
        }
    }
    Ok(())
}

/// The next line, the last one also without its newline. No more is kept than can be sent.
fn next_line(stdin: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    stdin.take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    let is_whole = line.ends_with(b"\n");
    line.truncate(line.len() - usize::from(is_whole));
    ensure!(is_whole || line.len() < MAX_LINE, "a line is longer than {MAX_LINE} bytes");
    Ok(if is_whole || !line.is_empty() { Some(String::from_utf8(line)?) } else { None })
}

/// A stream that ends at the deadline: a read timeout alone begins anew with each byte.
struct Until<'a> {
    stream: &'a Stream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(Some(left.max(Duration::from_micros(1))))?; // 0 is no limit
        self.stream.read(buffer)
    }
}
