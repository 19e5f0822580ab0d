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

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{Process, block_signals, say, supervise, usage};

const REQUESTS: &str = "pipe.in";
const REPLIES: &str = "pipe.out";

const HELP: &str = "\
A producer and a consumer exchange lines over two FIFOs (os.mkfifo).

Usage: cargo run -p fifo                            both, in a directory of their own
       cargo run -p fifo consumer|producer [DIR]    one of two that meet in DIR (default: here)
";

fn main() -> std::process::ExitCode {
    common::main(HELP, |args| match args {
        [] => story(),
        [role @ ("consumer" | "producer")] => terminals::run(role, Path::new("")),
        [role @ ("consumer" | "producer"), dir] => terminals::run(role, Path::new(dir)),
        args => usage(HELP, args),
    })
}

fn story() -> Result<()> {
    // From here on Ctrl-C waits for `supervise`, so that it cannot skip the clean-up.
    block_signals()?;
    // Both FIFOs exist before either process does, so neither can come too early, and no sleep is needed.
    // (The article's consumer creates them in the current directory, deleting whatever has their names.)
    let private = PermissionsExt::from_mode(0o700);
    let dir = tempfile::Builder::new().prefix("cnblogs-").permissions(private).tempdir();
    let dir = dir.context("make a directory for the FIFOs")?;
    fifo::create(&dir.path().join(REQUESTS))?;
    fifo::create(&dir.path().join(REPLIES))?;

    // In `|| consumer(…)` the name still means the function; the variable exists only after this line.
    let consumer = Process::spawn("consumer", || consumer(dir.path()))?;
    let producer = Process::spawn("producer", || producer(dir.path()))?;
    // Joins both; if one fails, the other is stopped. At the end of the scope `dir` is removed.
    supervise([consumer, producer])
}

fn consumer(dir: &Path) -> Result<()> {
    // Each open blocks until the other side opens, too. Both sides open in the same order: in opposite
    // orders each would block in its first open forever. (The article opens for writing with O_RDWR,
    // which does not block; with O_CREAT, which makes a regular file if the producer comes first; and
    // with O_SYNC, which does nothing for a FIFO.)
    let mut requests = BufReader::new(fifo::open_reader(&dir.join(REQUESTS))?);
    let mut replies = fifo::open_writer(&dir.join(REPLIES))?;
    let mut message = read(&mut requests, REQUESTS)?;
    // The whole line; the article looks for "exit" anywhere in what it has read.
    while message != "exit" {
        say!("read  {message} from {REQUESTS}, writes it to {REPLIES}")?;
        fifo::write_line(&mut replies, &message).context("write pipe.out")?;
        message = read(&mut requests, REQUESTS)?;
    }
    say!("read  exit  from {REQUESTS}")
}

/// Unlike the article's, it opens both FIFOs before it writes, and prints before it hands over.
fn producer(dir: &Path) -> Result<()> {
    let mut requests = fifo::open_writer(&dir.join(REQUESTS))?;
    let mut replies = BufReader::new(fifo::open_reader(&dir.join(REPLIES))?);
    for i in 1..=3 {
        let message = format!("msg {i}");
        say!("write {message} to {REQUESTS}")?;
        fifo::write_line(&mut requests, &message).context("write pipe.in")?;
        let reply = read(&mut replies, REPLIES)?;
        say!("read  {reply} from {REPLIES}")?;
        ensure!(reply == message, "wrote {message}, read {reply}: another producer's");
    }
    say!("write exit  to {REQUESTS}")?;
    fifo::write_line(&mut requests, "exit").context("write pipe.in")
}

/// Reads one message: a line, where the article takes whatever one read returns. At EOF the article's consumer
/// sleeps and reads again, forever, and its producer leaves its loop, as if all were well; here EOF means that the
/// other side is gone. Nobody closes explicitly: a file is closed at the end of its scope.
fn read(fifo: &mut impl BufRead, name: &str) -> Result<String> {
    let message = fifo::read_line(fifo).with_context(|| format!("read {name}"))?;
    message.with_context(|| format!("read {name}: the other side closed it"))
}
