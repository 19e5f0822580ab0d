//! No fork: a program with threads starts three others by `std::process::Command`, here itself with an argument, and takes
//! whichever message comes first.
//!
//! ```text
//!            ┌── stdout ── child 1
//!  parent ◀──┼── stdout ── child 2
//!            └── stdout ── child 3
//! ```
//!
//! Run it with `cargo run -p pipe --example command`. Use this in a program with threads, which must not fork, or for
//! children that are other programs. Ctrl-C ends all; the error names the child that failed first. (For requests as well,
//! hand one end of a `UnixStream::pair()` down as stdin, and make a `Sender` and a `Receiver` of each end.)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{print, stop_signals, unblock_signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pipe::{Receiver, Sender};

fn main() -> Result<ExitCode> {
    match std::env::args().nth(1) {
        Some(product) => child(&product).map(|()| ExitCode::SUCCESS),
        None => parent(),
    }
}

fn parent() -> Result<ExitCode> {
    let stop = stop_signals()?; // before any thread
    let thread = std::thread::spawn(|| 6 * 7);
    let started = ["Orange", "Apple", "Pear"].into_iter().map(Started::new);
    let mut team = started.collect::<Result<Vec<_>>>()?;
    while !team.is_empty() {
        team.rotate_left(1); // a busy child leaves the others, and a stop signal, their turn
        let ready = team.iter_mut().position(Started::is_ready);
        let ends = team.iter().map(|child| child.messages.as_fd()).chain([stop.as_fd()]);
        let mut fds: Vec<_> = ends.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = if ready.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let _ = poll(&mut fds, timeout); // if a signal comes that is not ours, nothing is ready
        if fds.last().and_then(PollFd::any) == Some(true) {
            let signal = stop.read_signal()?.context("read signalfd")?;
            return Ok(ExitCode::from(128 + signal.ssi_signo as u8)); // which drops, and so ends, all
        }
        if let Some(ready) = ready {
            let shown = team[ready].show();
            if !matches!(shown, Ok(true)) {
                team.remove(ready).join().and(shown)?; // how it ended tells more than our error
            }
        }
    }
    print(&format!("the thread says {}\n", thread.join().unwrap_or_default()))?;
    Ok(ExitCode::SUCCESS)
}

/// A started program. Dropping it kills and reaps it.
struct Started {
    name: String,
    child: Child,
    messages: Receiver,
}

impl Started {
    fn new(name: &str) -> Result<Started> {
        let (messages, theirs) = pipe::simplex()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).stdout(Stdio::from(OwnedFd::from(theirs)));
        let child =
            unblock_signals(&mut command).spawn().with_context(|| format!("start {name}"))?;
        // The command goes, and with it our copy of the sending end: so we see EOF when the child ends.
        Ok(Started { name: name.to_owned(), child, messages })
    }

    /// Whether something has come: also what is in the buffer, which the kernel does not know of. `show` tells of an error.
    fn is_ready(&mut self) -> bool {
        self.messages.poll(Some(Duration::ZERO)).unwrap_or(true)
    }

    /// Shows one message. False at EOF.
    fn show(&mut self) -> Result<bool> {
        let Some(message) = self.messages.recv()? else { return Ok(false) };
        print(&format!("{}: {}\n", self.name, String::from_utf8(message)?))?;
        Ok(true)
    }

    /// Waits for its end, also if it has only closed its stdout.
    fn join(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}", self.name);
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Its stdout carries messages, and only those: what it prints goes to stderr.
fn child(product: &str) -> Result<()> {
    let mut parent = Sender::from(io::stdout().as_fd().try_clone_to_owned()?);
    for step in ["peeled", "cut", "eaten"] {
        std::thread::sleep(Duration::from_millis(product.len() as u64)); // stands for work
        parent.send(step.as_bytes())?;
    }
    Ok(())
}
