//! A daemon that takes commands from any shell: `echo status > control`.
//!
//! ```text
//!  shell ── echo status ─┐
//!  shell ── echo reload ─┼─▶ control ──▶ daemon
//!  shell ── echo quit ───┘
//! ```
//!
//! Run it with `cargo run -p fifo --example control [DIRECTORY]`. One daemon at a time in a directory; a bad line is
//! reported and skipped; what is written while the daemon is busy waits in the FIFO. Answers go to its stdout: to
//! answer each shell, use a Unix-domain socket.

use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use common::{Process, block_signals, supervise};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    if let Some(signal) = error.downcast_ref::<Signal>() {
        return ExitCode::from(128 + *signal as u8); // Ctrl-C is no error
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    let dir = std::env::args_os().nth(1).map_or(".".into(), PathBuf::from);
    let path = dir.join("control");
    // Two daemons would share the lines silently. The kernel unlocks the directory when we die.
    let here = File::open(&dir).with_context(|| format!("open {}", dir.display()))?;
    let lock = Flock::lock(here, FlockArg::LockExclusiveNonblock);
    let _lock = lock.ok().context("another daemon runs here")?;
    // From here on Ctrl-C waits for `supervise`: it must not skip the removal.
    block_signals()?;
    fifo::create(&path)?; // one that a killed daemon left is used again
    let _remove = Remove(&path);
    supervise([Process::spawn("daemon", || serve(&path))?])
}

/// Removes the FIFO at the end, and unblocks a shell that waits in open.
struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        let _ = fifo::remove(self.0);
    }
}

fn serve(path: &Path) -> Result<()> {
    println!("waits for: echo status > {}", path.display());
    let mut commands = BufReader::new(fifo::open_reader(path, None)?);
    // Without a writer of our own we would see EOF after each shell, and lose what comes before the next open.
    let _never_eof = fifo::open_writer(path, None)?;
    let mut reloads = 0;
    loop {
        let command = match fifo::read_line(&mut commands) {
            // Not UTF-8, or too long: from somebody else, so no reason to end.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                println!("skipped: {error}");
                continue;
            }
            line => line.context("read a command")?.context("EOF, although we hold a writer")?,
        };
        match command.as_str() {
            "status" => println!("status: {reloads} reloads"),
            "reload" => {
                reloads += 1;
                println!("reload: done");
            }
            "quit" => {
                println!("quit");
                return Ok(());
            }
            other => println!("unknown command: {other:?}"),
        }
    }
}
