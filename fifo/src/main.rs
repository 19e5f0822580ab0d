//! FIFO: a pipe with a name, so that strangers can meet.
//!
//! The article's section 具名管道. A pipe is handed from parent to child; a FIFO has a
//! path, and any process that knows the path can open it. Each carries one direction.
//!
//! ```text
//!  producer ──  pipe.in  ──▶ consumer
//!           ◀── pipe.out ──
//! ```

mod terminals;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use common::{Process, expected, hold_signals, say, supervise};
use fifo::PrivateDir;

const REQUESTS: &str = "pipe.in";
const REPLIES: &str = "pipe.out";

const HELP: &str = "\
A producer and a consumer talk over two FIFOs (os.mkfifo).

Usage: cargo run -p fifo                    both, in a directory of their own
       cargo run -p fifo consumer [DIR]     the consumer, until it reads 'exit'
       cargo run -p fifo producer [DIR]     the producer: msg 1 to msg 3, exit

Start consumer and producer in two terminals, in either order. They meet at
pipe.in and pipe.out in DIR (default: the current directory). One pair for each
DIR: a second consumer or producer would take what is meant for the first.
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        ["consumer"] => terminals::consumer(Path::new("")),
        ["consumer", dir] => terminals::consumer(Path::new(dir)),
        ["producer"] => terminals::producer(Path::new("")),
        ["producer", dir] => terminals::producer(Path::new(dir)),
        _ => expected(args, "nothing, 'consumer [DIR]' or 'producer [DIR]'"),
    })
}

fn both() -> Result<()> {
    // From here on Ctrl-C waits for `supervise`, so that it cannot skip the clean-up.
    hold_signals()?;
    // Both FIFOs exist before either process does, so neither can come too early.
    let dir = PrivateDir::new()?;
    fifo::create(&dir.join(REQUESTS))?;
    fifo::create(&dir.join(REPLIES))?;

    let consumer = Process::spawn("consumer", || consumer(dir.path()))?;
    let producer = Process::spawn("producer", || producer(dir.path()))?;
    supervise([consumer, producer])
}

fn consumer(dir: &Path) -> Result<()> {
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
        fifo::write_line(&mut replies, &message).context("write pipe.out")?;
    }
}

fn producer(dir: &Path) -> Result<()> {
    let mut requests = fifo::open_writer(&dir.join(REQUESTS), None)?;
    let mut replies = BufReader::new(fifo::open_reader(&dir.join(REPLIES), None)?);
    for i in 1..=3 {
        let message = format!("msg {i}");
        say!("write {message} to {REQUESTS}");
        fifo::write_line(&mut requests, &message).context("write pipe.in")?;
        let reply = read(&mut replies, REPLIES)?;
        say!("read  {reply} from {REPLIES}");
        ensure!(reply == message, "wrote '{message}', read '{reply}' back");
    }
    say!("write exit  to {REQUESTS}");
    fifo::write_line(&mut requests, "exit").context("write pipe.in")
}

/// Reads one message. At the end of the stream the article's consumer sleeps and reads again,
/// for ever; here it means that the other side is gone.
fn read(fifo: &mut BufReader<File>, name: &str) -> Result<String> {
    let message = fifo::read_line(fifo).with_context(|| format!("read {name}"))?;
    message.with_context(|| format!("read {name}: the other side closed it"))
}
