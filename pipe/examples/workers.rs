//! Several workers, each with a pipe of its own, asked and answered in turn. One leaves, the others go on.
//!
//! ```text
//!            ┌── job ──▶ worker 1
//!  parent ◀──┼─ result ─ worker 2
//!            └────────── worker 3
//! ```
//!
//! Run it with `cargo run -p pipe --example workers`. The trap: a fork copies every descriptor, so each worker
//! inherits the parent's ends to those that were started before. Unless it closes them, worker 1 never sees EOF.

use anyhow::{Context, Result};
use common::Process;
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
    for job in ["Orange", "Apple"] {
        ask_all(&mut team, job)?;
    }
    // Closing our end is EOF for this worker. If another one had a copy of it, this join would block forever.
    let (worker, end) = team.remove(1);
    drop(end);
    worker.join()?;
    println!("worker 2 has left");

    ask_all(&mut team, "Pear")?;
    for (worker, end) in team {
        drop(end);
        worker.join()?;
    }
    Ok(())
}

/// What each worker does until EOF.
fn work(mut parent: Connection) -> Result<()> {
    while let Some(job) = parent.recv()? {
        let result = String::from_utf8(job)?.to_uppercase();
        parent.send(result.as_bytes())?;
    }
    Ok(())
}

fn ask_all(team: &mut Vec<Member>, job: &str) -> Result<()> {
    for index in 0..team.len() {
        let (worker, end) = &mut team[index];
        match ask(end, job) {
            Ok(result) => println!("{}: {job} -> {result}", worker.name()),
            Err(error) => {
                // Its end tells more than our error: killed, failed, or panicked.
                let (worker, end) = team.remove(index);
                return worker.run_then_join(|| {
                    drop(end);
                    Err(error)
                });
            }
        }
    }
    Ok(())
}

fn ask(worker: &mut Connection, job: &str) -> Result<String> {
    worker.send(job.as_bytes()).context("send a job")?;
    let result = worker.recv()?.context("receive a result: the worker is gone")?;
    Ok(String::from_utf8(result)?)
}
