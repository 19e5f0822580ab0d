//! A daemon that takes commands from any shell: `echo status > control`.
//!
//! ```text
//!  shell ── echo status ─┐
//!  shell ── echo reload ─┼─▶ control ──▶ daemon
//!  shell ── echo quit ───┘
//! ```
//!
//! Run it with `cargo run -p fifo --example control [DIRECTORY]`. One daemon at a time in a directory; a bad line is
//! reported and skipped; what is written while the daemon is busy waits in the FIFO. Asked to stop, it first handles what is
//! there, for up to a second, and reports what is left. Answers go to its stdout: to answer each shell, use a Unix-domain
//! socket. A FIFO that was made by hand it uses, and does not remove.
//!
//! In a script, when perhaps no daemon runs: `test -p control && timeout 1 sh -c 'echo status > control'`. It does not
//! wait forever, and makes a regular file only if the daemon ends in that very moment.

use std::collections::VecDeque;
use std::io::Read;
use std::mem::take;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::{log, stop_signals, stop_status};
use fifo::MAX_LINE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn main() -> Result<ExitCode> {
    let dir = std::env::args_os().nth(1).map_or(".".into(), PathBuf::from);
    let path = dir.join("control");
    let stop = stop_signals()?; // from here on Ctrl-C cannot skip the removal
    let fifo = fifo::collect(&path)?;
    log(&format!("waits for: echo status > {}", path.display()));
    let (mut daemon, mut deadline) = (Daemon::default(), None);
    let is_over = |deadline: Option<_>| deadline.is_some_and(|it| Instant::now() >= it);
    let mut bytes = vec![0; 1 << 16];
    while !daemon.has_quit && !is_over(deadline) {
        let mut fds = [fifo.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let is_idle = daemon.commands.is_empty() && deadline.is_none();
        let timeout = if is_idle { PollTimeout::NONE } else { PollTimeout::ZERO };
        let _ = poll(&mut fds, timeout); // if a signal comes that is not ours, nothing is ready
        if fds[1].any() == Some(true) {
            deadline.get_or_insert(Instant::now() + Duration::from_secs(1));
        }
        // One command a turn: so that a stop signal is seen even while many wait.
        if let Some(command) = daemon.commands.pop_front() {
            daemon.obey(&command);
        } else if fds[0].any() == Some(true) {
            let length = (&*fifo).read(&mut bytes).context("read control")?;
            daemon.take(&bytes[..length]);
        } else if deadline.is_some() {
            break;
        }
    }
    let left = fifo.remove();
    daemon.take(left.as_deref().unwrap_or_default()); // what came in the meantime
    while let Some(command) = daemon.commands.pop_front() {
        match daemon.has_quit || is_over(deadline) {
            true => log(&format!("not done: {command:?}")),
            false => daemon.obey(&command),
        }
    }
    if !daemon.line.is_empty() {
        log(&format!("without its end, not done: {:?}", String::from_utf8_lossy(&daemon.line)));
    }
    left?;
    if deadline.is_some() { stop_status(&stop) } else { Ok(ExitCode::SUCCESS) }
}

#[derive(Default)]
struct Daemon {
    /// What has come of a line that has no end yet.
    line: Vec<u8>,
    commands: VecDeque<String>,
    reloads: u32,
    has_quit: bool,
}

impl Daemon {
    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&part[..part.len().min(MAX_LINE + 1)]);
            if !part.ends_with(b"\n") {
                self.line.truncate(MAX_LINE + 1); // too long anyhow
                continue;
            }
            match fifo::read_line(&mut &*take(&mut self.line)) {
                Ok(command) => self.commands.push_back(command.unwrap_or_default()),
                // Not UTF-8, or too long: from somebody else, so no reason to end.
                Err(error) => log(&format!("skipped: {error}")),
            }
        }
    }

    fn obey(&mut self, command: &str) {
        match command.trim_end_matches('\r') {
            "status" => log(&format!("status: {} reloads", self.reloads)),
            "reload" => {
                self.reloads += 1;
                log("reload: done");
            }
            "save" => {
                sleep(Duration::from_millis(50)); // stands for work
                log("save: done");
            }
            "quit" => {
                self.has_quit = true;
                log("quit");
            }
            other => log(&format!("unknown command: {other:?}")),
        }
    }
}
