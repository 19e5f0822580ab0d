//! Several workers, each with a pipe of its own: the parent takes whichever result comes first. One leaves, the others
//! go on.
//!
//! ```text
//!            ┌── job ──▶ worker 1
//!  parent ◀──┼─ result ─ worker 2
//!            └────────── worker 3
//! ```
//!
//! Run it with `cargo run -p pipe --example workers`. The trap: a fork copies every descriptor, so each worker
//! inherits the parent's ends to those that were started before. Unless it closes them, worker 1 never sees EOF.
//! The parent waits for all of them at once by poll(2), as `multiprocessing.connection.wait` does.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use common::{Process, print};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pipe::Connection;

/// A worker, and our end of the pipe to it.
type Member = (Process, Connection);

fn main() -> Result<()> {
    let mut team: Vec<Member> = Vec::new();
    for name in ["worker 1", "worker 2", "worker 3"] {
        let (worker, end) = Process::spawn_with(name, pipe::duplex()?, |theirs| {
            // Only in the child: its copies of the ends to the others. The parent keeps its own.
            team.clear();
            work(theirs)
        })?;
        team.push((worker, end));
    }
    give_all(&mut team, &["Orange", "Apple", "Pear", "Plum", "Fig", "Kiwi"])?;
    // Closing our end is EOF for this worker. If another one had a copy of it, this join would block forever.
    let (worker, end) = team.remove(1);
    drop(end);
    worker.join()?;
    print("worker 2 has left\n")?;
    give_all(&mut team, &["Grape", "Lemon", "Mango"])?;
    for (worker, end) in team {
        drop(end);
        worker.join()?;
    }
    Ok(())
}

/// What each worker does until EOF.
fn work(mut parent: Connection) -> Result<()> {
    while let Some(job) = parent.recv()? {
        std::thread::sleep(Duration::from_millis(job.len() as u64)); // stands for work
        let result = String::from_utf8(job)?.to_uppercase();
        parent.send(result.as_bytes())?;
    }
    Ok(())
}

/// Gives each worker a job, and the next one when its result has come.
fn give_all(team: &mut Vec<Member>, jobs: &[&str]) -> Result<()> {
    let (at_once, later) = jobs.split_at(jobs.len().min(team.len()));
    for (index, job) in at_once.iter().enumerate() {
        exchange(team, index, |(_, end)| Ok(end.send(job.as_bytes())?))?;
    }
    let mut later = later.iter();
    for _ in jobs {
        let ready = wait(team)?;
        exchange(team, ready, |(worker, end)| {
            let result = end.recv()?.context("receive a result: the worker is gone")?;
            print(&format!("{}: {}\n", worker.name(), String::from_utf8(result)?))?;
            Ok(later.next().map_or(Ok(()), |job| end.send(job.as_bytes()))?)
        })?;
    }
    Ok(())
}

/// Our part of an exchange with one of them. Where it fails, how the worker ended may tell more: killed, failed, panicked.
fn exchange(
    team: &mut Vec<Member>,
    index: usize,
    part: impl FnOnce(&mut Member) -> Result<()>,
) -> Result<()> {
    part(&mut team[index]).or_else(|error| {
        let (worker, end) = team.remove(index);
        drop(end); // so that it ends
        worker.join_after(Err(error))
    })
}

/// The first that has something to receive, or EOF.
fn wait(team: &mut [Member]) -> Result<usize> {
    loop {
        // First what is in a buffer already, which the kernel does not know of.
        for (index, (_, end)) in team.iter_mut().enumerate() {
            if end.poll(Some(Duration::ZERO))? {
                return Ok(index);
            }
        }
        let fds = team.iter().map(|(_, end)| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds.collect::<Vec<_>>(), PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            ready => ready.map(drop)?,
        }
    }
}
