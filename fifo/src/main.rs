//! FIFO: a pipe with a name, so that strangers can meet.
//!
//! The article's section 具名管道. A pipe is handed from parent to child; a FIFO has a
//! path, and any process that knows the path can open it. Each carries one direction.
//!
//! ```text
//!  producer ──  pipe.in  ──▶ consumer
//!           ◀── pipe.out ──
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use common::{Process, expected, hold_signals, say, supervise};
use fifo::PrivateDir;

const REQUESTS: &str = "pipe.in";
const REPLIES: &str = "pipe.out";

const HELP: &str = "\
A producer and a consumer talk over two FIFOs (os.mkfifo).

Usage: cargo run -p fifo
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        _ => expected(args, "no arguments"),
    })
}

fn both() -> Result<()> {
    // From here on Ctrl-C waits for `supervise`, so that it cannot skip the clean-up.
    hold_signals()?;
    // Both FIFOs exist before either process does, so neither can come too early.
    let dir = PrivateDir::new()?;
    fifo::create(&dir.join(REQUESTS))?;
    fifo::create(&dir.join(REPLIES))?;

    let consumer = Process::spawn("consumer", || consumer(&dir))?;
    let producer = Process::spawn("producer", || producer(&dir))?;
    supervise([consumer, producer])
}

fn consumer(dir: &PrivateDir) -> Result<()> {
    // Each open waits for the other side's. Both sides open in the same order: crossed, each
    // would wait in its first open for ever.
    let mut requests = BufReader::new(fifo::open_reader(&dir.join(REQUESTS), None)?);
    let mut replies = fifo::open_writer(&dir.join(REPLIES), None)?;
    loop {
        let message = read(&mut requests, REQUESTS)?;
        if message == "exit" {
            say!("read  exit  from {REQUESTS}");
            return Ok(());
        }
        say!("read  {message} from {REQUESTS}, writes it to {REPLIES}");
        write(&mut replies, REPLIES, &message)?;
    }
}

fn producer(dir: &PrivateDir) -> Result<()> {
    let mut requests = fifo::open_writer(&dir.join(REQUESTS), None)?;
    let mut replies = BufReader::new(fifo::open_reader(&dir.join(REPLIES), None)?);
    for i in 1..=3 {
        let message = format!("msg {i}");
        say!("write {message} to {REQUESTS}");
        write(&mut requests, REQUESTS, &message)?;
        let reply = read(&mut replies, REPLIES)?;
        say!("read  {reply} from {REPLIES}");
        ensure!(reply == message, "sent '{message}', got '{reply}' back");
    }
    say!("write exit  to {REQUESTS}");
    write(&mut requests, REQUESTS, "exit")
}

/// Reads one message. A FIFO keeps no boundaries, so each message is a line.
fn read(fifo: &mut BufReader<File>, name: &str) -> Result<String> {
    let mut line = String::new();
    fifo.read_line(&mut line)
        .with_context(|| format!("read {name}"))?;
    // A read of 0 bytes means that the other side is gone. The article's consumer sleeps and
    // reads again there, for ever.
    let message = line.strip_suffix('\n');
    let message = message.with_context(|| format!("read {name}: the other side closed it"))?;
    Ok(message.to_owned())
}

/// Writes one message in one piece: `writeln!` on a File would be two writes.
fn write(fifo: &mut File, name: &str, message: &str) -> Result<()> {
    fifo.write_all(format!("{message}\n").as_bytes())
        .with_context(|| format!("write {name}"))
}
