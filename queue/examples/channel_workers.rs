//! Several workers on one ipc-channel receiver. All end when the boss has dropped its sender.
//!
//! ```text
//!           ┌──▶ worker 1 ──┐
//!  boss ────┼──▶ worker 2 ──┼──▶ parent
//!    jobs   └──▶ worker 3 ──┘ results
//! ```
//!
//! Run it with `cargo run -p queue --example channel_workers`. No end marker is sent: a channel ends when its last
//! sender is closed. So each process first closes the ends that are not its own.

use anyhow::{Context, Result, ensure};
use common::{Process, print};
use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};

const JOBS: u64 = 1000;

/// Who did a job, which one, and what came out.
type Done = (String, u64, u64);

fn main() -> Result<()> {
    let (jobs, inbox) = ipc::channel::<u64>()?;
    let (done, results) = ipc::channel::<Done>()?;
    // In Options, so that each child can drop its copies of what it does not use.
    let (mut jobs, mut results) = (Some(jobs), Some(results));

    let mut processes = Vec::new();
    for number in 1..=3 {
        let name = format!("worker {number}");
        processes.push(Process::spawn(&name, || {
            drop((jobs.take(), results.take()));
            work(&name, &inbox, &done)
        })?);
    }
    drop((inbox, done));
    // A process of its own: one that sent all jobs and then took the results would block, once both channels
    // are full.
    let jobs = jobs.context("only the children drop it")?;
    processes.push(Process::spawn("boss", move || send_all(&jobs))?);

    let mut count = 0;
    let results = results.context("only the children drop it")?;
    // This channel, too, ends when the last worker has left, even by a kill.
    while let Some((worker, job, square)) = end(results.recv())? {
        ensure!(square == job * job, "{worker}: the square of {job} is not {square}");
        count += 1;
    }
    processes.into_iter().try_for_each(Process::join)?;
    print(&format!("{count} of {JOBS} jobs done, and all have left\n"))
}

fn send_all(jobs: &IpcSender<u64>) -> Result<()> {
    Ok((0..JOBS).try_for_each(|job| jobs.send(job))?)
}

fn work(name: &str, inbox: &IpcReceiver<u64>, done: &IpcSender<Done>) -> Result<()> {
    // Only recv: try_recv would make the receiver non-blocking for all three.
    while let Some(job) = end(inbox.recv())? {
        done.send((name.to_owned(), job, job * job))?;
    }
    Ok(())
}

/// `None` at the end of a channel.
fn end<T>(received: Result<T, IpcError>) -> Result<Option<T>> {
    match received {
        Err(IpcError::Disconnected) => Ok(None),
        result => Ok(Some(result?)),
    }
}
