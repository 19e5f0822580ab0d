//! A forked worker reports its progress over a pipe, and then its result.
//!
//! ```text
//!  worker ── 10, 20, … 100, result ──▶ parent
//! ```
//!
//! Run it with `cargo run -p pipe --example progress`. On a terminal the progress stays on one line. If the worker
//! is killed in the middle, the error says so: its end of the pipe is closed then, whatever it died of.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, bail};
use common::{Process, print};
use pipe::{Receiver, Sender};

/// The primes below this number are counted.
const LIMIT: u32 = 200_000;

fn main() -> Result<()> {
    let (receiver, sender) = pipe::simplex()?;
    // The worker keeps only the sending end and we only the receiving one, so we see EOF when it dies.
    let (worker, receiver) = Process::spawn_with("worker", (receiver, sender), work)?;
    // EOF before the result: how the worker ended says why. An error of our own drops, and so kills, the worker.
    if !show(receiver)? {
        worker.join()?;
        bail!("the worker ended before its result");
    }
    worker.join()
}

fn work(mut sender: Sender) -> Result<()> {
    let mut primes = 0;
    for percent in (10..=100).step_by(10) {
        let range = LIMIT / 100 * (percent - 10)..LIMIT / 100 * percent;
        primes += range.filter(|&n| is_prime(n)).count();
        sender.send(format!("progress {percent}").as_bytes())?;
    }
    sender.send(format!("result {primes}").as_bytes())?;
    Ok(())
}

fn is_prime(n: u32) -> bool {
    n > 1 && (2..n).take_while(|d| d * d <= n).all(|d| n % d != 0)
}

/// Shows what comes, up to the result. False at EOF.
fn show(mut receiver: Receiver) -> Result<bool> {
    // Clears the line, and goes back to its start at the end: so whatever is printed next is written over it.
    let (start, end) = if io::stdout().is_terminal() { ("\x1b[K", "\r") } else { ("", "\n") };
    while let Some(message) = receiver.recv()? {
        let message = String::from_utf8(message)?;
        match message.split_once(' ').context("recv: not a message of ours")? {
            ("progress", number) => print(&format!("{start}{number:>3} %{end}"))?,
            (_, number) => {
                print(&format!("{start}{number} primes below {LIMIT}\n"))?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}
