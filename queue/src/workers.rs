//! Workers: several processes share the work in one queue.
//!
//! ```text
//!                  ┌──▶ worker 1 ──┐
//!  boss ── jobs ───┼──▶ worker 2 ──┼── results ──▶ collector
//!                  └──▶ worker 3 ──┘
//! ```
//!
//! Nobody assigns jobs: each worker takes the next job when it is free.

use anyhow::{Result, ensure};
use common::{Process, say, supervise};
use queue::Queue;

const WORKERS: usize = 3;
const JOBS: u64 = 1000;

/// A job, or the end of the work for whoever gets it.
type Job = Option<u64>;

/// Which worker did which job, and what came out.
type Done = (usize, u64, u64);

pub fn run() -> Result<()> {
    let jobs: Queue<Job> = Queue::new(4)?;
    let results: Queue<Done> = Queue::new(4)?;

    // Two processes, to avoid a deadlock: one that did both could block putting a job while every worker blocks
    // putting a result that only it would get.
    let mut processes = vec![
        Process::spawn("boss", || boss(&jobs))?,
        Process::spawn("collector", || collector(&results))?,
    ];
    for number in 1..=WORKERS {
        let name = format!("worker {number}");
        processes.push(Process::spawn(&name, || worker(number, &jobs, &results))?);
    }
    supervise(processes)
}

fn boss(jobs: &Queue<Job>) -> Result<()> {
    say!("puts {JOBS} jobs, and an end for each of {WORKERS} workers")?;
    for job in 0..JOBS {
        jobs.put(Some(job))?;
    }
    // A queue has no EOF, so each worker gets its own end marker.
    Ok((0..WORKERS).try_for_each(|_| jobs.put(None))?)
}

fn worker(number: usize, jobs: &Queue<Job>, results: &Queue<Done>) -> Result<()> {
    while let Some(job) = jobs.get()? {
        results.put((number, job, job * job))?;
    }
    Ok(())
}

fn collector(results: &Queue<Done>) -> Result<()> {
    let mut done_by = [0; WORKERS];
    let mut seen = vec![false; JOBS as usize];
    for _ in 0..JOBS {
        let (number, job, square) = results.get()?;
        ensure!(square == job * job, "the square of {job} is not {square}");
        ensure!(!seen[job as usize], "job {job} was done twice");
        seen[job as usize] = true;
        done_by[number - 1] += 1;
    }
    for (index, count) in done_by.iter().enumerate() {
        say!("worker {} did {count} jobs", index + 1)?;
    }
    say!("all {JOBS} jobs done, each exactly once")
}
