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
//! children that are other programs. Ctrl-C ends all (but not while a child is in the middle of a message); the error names
//! the child that failed first. (For requests as well, hand one end of a `UnixStream::pair()` down as stdin, and make a
//! `Sender` and a `Receiver` of each end.)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::{print, stop_signals, stop_status, unblock_signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pipe::{Receiver, Sender};

fn main() -> Result<ExitCode> {
    match std::env::args().nth(1) {
        Some(product) => child(&product).map(|()| ExitCode::SUCCESS),
        None => parent(),
    }
}

fn parent() -> Result<ExitCode> {
    let stop = stop_signals()?; // before any thread
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let ended = SignalFd::with_flags(&Signal::SIGCHLD.into(), flags)?; // blocked, as the stop signals are
    let thread = std::thread::spawn(|| 6 * 7);
    let started = ["Orange", "Apple", "Pear"].into_iter().map(Started::new);
    let mut team = started.collect::<Result<Vec<_>>>()?;
    while !team.is_empty() {
        team.rotate_left(1); // a busy child leaves the others, and a stop signal, their turn
        let ready = team.iter_mut().position(Started::is_ready);
        let ends = team.iter().filter_map(|child| Some(child.messages.as_ref()?.as_fd()));
        let mut fds: Vec<_> = ends
            .chain([ended.as_fd(), stop.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let timeout = if ready.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let _ = poll(&mut fds, timeout); // if a signal comes that is not ours, nothing is ready
        if fds.last().and_then(PollFd::any) == Some(true) {
            return stop_status(&stop); // which drops, and so ends, all
        }
        while ended.read_signal()?.is_some() {}
        if let Some(ready) = ready {
            team[ready].show()?;
        }
        while let Some(gone) = team.iter_mut().position(Started::is_gone) {
            team.remove(gone).check()?;
        }
    }
    print(&format!("the thread says {}\n", thread.join().unwrap_or_default()))?;
    Ok(ExitCode::SUCCESS)
}

/// A started program. Dropping it kills and reaps it.
struct Started {
    name: String,
    child: Child,
    /// Until EOF.
    messages: Option<Receiver>,
}

impl Started {
    fn new(name: &str) -> Result<Started> {
        let (messages, theirs) = pipe::simplex()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).stdout(Stdio::from(OwnedFd::from(theirs)));
        let child =
            unblock_signals(&mut command).spawn().with_context(|| format!("start {name}"))?;
        // The command goes, and with it our copy of the sending end: so we see EOF when the child ends.
        Ok(Started { name: name.to_owned(), child, messages: Some(messages) })
    }

    /// Whether something has come: also what is in the buffer, which the kernel does not know of. `show` tells of an error.
    fn is_ready(&mut self) -> bool {
        self.messages.as_mut().is_some_and(|it| it.poll(Some(Duration::ZERO)).unwrap_or(true))
    }

    /// Shows one message, or takes note of EOF.
    fn show(&mut self) -> Result<()> {
        let name = &self.name;
        let Some(messages) = &mut self.messages else { return Ok(()) };
        let Some(message) = messages.recv().with_context(|| format!("receive from {name}"))? else {
            self.messages = None;
            return Ok(());
        };
        print(&format!("{name}: {}\n", String::from_utf8(message)?))
    }

    /// Whether it has ended, too: it may have only closed its stdout.
    fn is_gone(&mut self) -> bool {
        self.messages.is_none() && !matches!(self.child.try_wait(), Ok(None))
    }

    /// An error if it failed.
    fn check(mut self) -> Result<()> {
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
