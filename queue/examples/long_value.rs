//! A long value over ipc-channel: it lies in shared memory, and only its descriptor travels.
//!
//! ```text
//!  parent ── (8 MiB, reply) ──▶ worker
//!         ◀── sum ── reply ────
//! ```
//!
//! Run it with `cargo run -p queue --example long_value`. As bytes in the message it would be cut into packets, and a worker
//! that is killed in between would leave the sender hanging.

use anyhow::{Context, Result};
use common::{Process, print};
use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender, IpcSharedMemory};

/// The data, and where their sum goes.
type Job = (IpcSharedMemory, IpcSender<u64>);

fn main() -> Result<()> {
    let (jobs, inbox) = ipc::channel::<Job>()?;
    let (worker, jobs) = Process::spawn_with("worker", (jobs, inbox), work)?;
    // Copied once, into memory that both processes map.
    let data = IpcSharedMemory::from_bytes(&vec![1; 8 << 20]);
    let (reply, sums) = ipc::channel()?;
    let _ = jobs.send((data, reply)); // if the worker is gone, so is the sender for the reply
    // Not a hang if the worker dies: it alone has the sender for this reply.
    let sum = sums.recv().context("get the sum");
    drop(jobs); // the worker sees Disconnected
    worker.join()?; // how it ended tells more than our error
    print(&format!("the sum of {} bytes is {}\n", 8 << 20, sum?))
}

fn work(inbox: IpcReceiver<Job>) -> Result<()> {
    loop {
        let (data, reply) = match inbox.recv() {
            Err(IpcError::Disconnected) => return Ok(()),
            job => job?,
        };
        reply.send(data.iter().map(|&byte| u64::from(byte)).sum())?;
    }
}
