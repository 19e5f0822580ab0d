//! Ours against the bare system calls, side by side: what the benches of all five share.
//!
//! Two peer processes are forked: with one we talk through our library, with the other by bare
//! system calls. They take turns, a batch of ours and a batch of bare, so that whatever else
//! the machine does meets both alike. The ratio is the median of the ratios of such pairs.

// Each bench compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::hint::black_box;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::Process;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One side of a talk.
pub trait Link {
    /// Sends one message.
    fn send(&mut self, message: &str) -> Result<()>;
    /// Receives one message, of which the length is known.
    fn recv(&mut self, length: usize) -> Result<&[u8]>;
}

/// Bytes without a frame, by write(2) and read(2), or send(2) and recv(2).
pub struct Bytes<R, W> {
    read: R,
    write: W,
    message: Vec<u8>,
}

impl<R, W> Bytes<R, W> {
    /// Reads from one end, and writes to another.
    pub fn new((read, write): (R, W)) -> Bytes<R, W> {
        Bytes { read, write, message: Vec::new() }
    }
}

impl<R: Read, W: Write> Link for Bytes<R, W> {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.write.write_all(message.as_bytes())?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message.resize(length, 0); // once: the messages of a batch are equally long
        self.read.read_exact(&mut self.message)?;
        Ok(&self.message)
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message there, and one of the same size back.
    RoundTrip,
    /// Messages in one direction, and a short one back after the last.
    OneWay,
}

use Kind::{OneWay, RoundTrip};

/// What is measured for each mechanism, with the size of the messages in bytes.
pub const ALL: [(Kind, usize); 6] = [
    (RoundTrip, 64),
    (RoundTrip, 4 << 10),
    (RoundTrip, 64 << 10),
    (OneWay, 64),
    (OneWay, 64 << 10),
    (OneWay, 1 << 20),
];

/// What is measured where messages are lines.
pub const LINES: [(Kind, usize); 3] = [(RoundTrip, 64), (RoundTrip, 4 << 10), (OneWay, 64)];

/// How long a batch takes at least.
const BATCH: Duration = Duration::from_millis(8);

/// How many pairs of batches make a row of the table.
const PAIRS: usize = 51;

/// The length of an order to the peer: what it is to do next.
const ORDER: usize = 64;

/// A peer process, and our end of the link to it.
pub struct Peer<L> {
    link: L,
    message: String,
    /// Killed when dropped.
    process: Process,
}

impl<L: Link> Peer<L> {
    /// Forks the peer, which runs on `cpu` and has the second of the two ends.
    pub fn start(cpu: usize, [ours, theirs]: [L; 2]) -> Result<Peer<L>> {
        let (process, link) = Process::spawn_with("peer", (ours, theirs), |link| {
            pin(cpu)?;
            obey(link)
        })?;
        let peer = Peer { link, message: String::new(), process };
        peer.signal(Signal::SIGSTOP)?;
        Ok(peer)
    }

    /// Sends `count` messages, and returns how long that took.
    pub fn batch(&mut self, kind: Kind, size: usize, count: usize) -> Result<Duration> {
        let order = order(kind, size, count);
        if self.message.len() != size {
            self.message = "x".repeat(size);
        }
        // While it is not its turn it is stopped: it might wait by spinning.
        self.signal(Signal::SIGCONT)?;
        self.link.send(&order)?;
        self.link.recv(ORDER)?; // it has the order, and waits
        let start = Instant::now();
        for _ in 0..count {
            self.link.send(black_box(&self.message))?;
            if kind == RoundTrip {
                black_box(self.link.recv(size)?);
            }
        }
        if kind == OneWay {
            self.link.recv(ORDER)?;
        }
        let time = start.elapsed();
        self.signal(Signal::SIGSTOP)?;
        Ok(time)
    }

    /// The most memory that this process and the peer have had so far, in KiB.
    fn memory(&self) -> Result<u64> {
        let peak = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            Ok::<u64, anyhow::Error>(line.context("no VmHWM")?.replace("kB", "").trim().parse()?)
        };
        Ok(peak(std::process::id())? + peak(self.process.id())?)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.process.id() as i32), signal)?)
    }
}

/// What the peer does until it is killed.
fn obey<L: Link>(mut link: L) -> Result<()> {
    let mut message = String::new();
    loop {
        let order = String::from_utf8(link.recv(ORDER)?.to_vec())?;
        let mut numbers = order.split(' ').map(str::parse::<usize>);
        let mut number = || numbers.next().context("a short order")?.context("a bad order");
        let (round_trip, size, count) = (number()? == 1, number()?, number()?);
        if message.len() != size {
            message = "y".repeat(size);
        }
        let order = format!("{order:.<ORDER$}"); // a line has lost its end
        link.send(&order)?;
        for _ in 0..count {
            black_box(link.recv(size)?);
            if round_trip {
                link.send(black_box(&message))?;
            }
        }
        if !round_trip {
            link.send(&order)?;
        }
    }
}

/// What a peer is told to do, also one that is written in Python.
pub fn order(kind: Kind, size: usize, count: usize) -> String {
    let order = format!("{} {size} {count} ", (kind == RoundTrip) as u8);
    format!("{order:.<ORDER$}")
}

/// The CPUs that this process may run on.
pub fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::this())?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect())
}

/// Keeps this process, and those it forks from now on, on one CPU.
///
/// On two, what a hand-over costs depends on how deeply the other CPU sleeps.
pub fn pin(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    Ok(sched_setaffinity(Pid::this(), &one)?)
}

/// Prints the head of a table.
pub fn head(ours: &str, other: &str) {
    println!("{:<12} {:<18} {ours:>11} {other:>11} {:>6}", "mechanism", "message", "ratio");
}

/// Measures all sizes, and prints a row for each.
pub fn compare<A: Link, B: Link>(
    name: &str,
    rows: &[(Kind, usize)],
    ours: &mut Peer<A>,
    bare: &mut Peer<B>,
) -> Result<()> {
    for &(kind, size) in rows {
        row(name, kind, size, |n| ours.batch(kind, size, n), |n| bare.batch(kind, size, n))?;
    }
    Ok(())
}

/// Whether `cargo bench -- scaling` was asked for: how the cost grows with the work.
pub fn scaling_wanted() -> bool {
    std::env::args().any(|arg| arg == "scaling")
}

/// Prints what a byte costs in messages of more and more bytes, what a message costs among more
/// and more of them, and how much memory both processes had at most by then.
pub fn scaling<L: Link>(name: &str, peer: &mut Peer<L>) -> Result<()> {
    for size in [64 << 10, 1 << 20, 8 << 20, 64 << 20] {
        // The same number of bytes, whatever the size.
        let count = (256 << 20) / size;
        peer.batch(OneWay, size, count)?; // the first touch of memory is the machine's business
        let time = peer.batch(OneWay, size, count)?.as_secs_f64();
        let each = time / (size * count) as f64 * 1e9;
        let (size, memory) = (bytes(size), peer.memory()?);
        println!("{name:<12} {count:>8} of {size:<7} {each:>8.3} ns a byte {memory:>8} KiB");
    }
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let each = peer.batch(OneWay, 64, count)?.as_secs_f64() / count as f64 * 1e9;
        let memory = peer.memory()?;
        println!("{name:<12} {count:>8} of 64 B    {each:>8.0} ns each   {memory:>8} KiB");
    }
    Ok(())
}

/// Measures one size, and prints its row. Both closures send so many messages.
pub fn row(
    name: &str,
    kind: Kind,
    size: usize,
    mut ours: impl FnMut(usize) -> Result<Duration>,
    mut bare: impl FnMut(usize) -> Result<Duration>,
) -> Result<()> {
    let mut count = 1;
    while bare(count)? < BATCH {
        count *= 2;
    }
    let mut pairs = Vec::new();
    for turn in 0..PAIRS {
        // Now this one first, now that one.
        let (a, b) = if turn % 2 == 0 {
            let a = ours(count)?;
            (a, bare(count)?)
        } else {
            let b = bare(count)?;
            (ours(count)?, b)
        };
        pairs.push((a.as_secs_f64() / count as f64, b.as_secs_f64() / count as f64));
    }
    let ours = median(pairs.iter().map(|pair| pair.0));
    let bare = median(pairs.iter().map(|pair| pair.1));
    let slower = median(pairs.iter().map(|pair| pair.0 / pair.1));
    let (what, ours, bare, ratio) = match kind {
        RoundTrip => ("round trip", micros(ours), micros(bare), slower),
        OneWay => ("one way", rate(size, ours), rate(size, bare), 1.0 / slower),
    };
    let what = format!("{what} {}", bytes(size));
    println!("{name:<12} {what:<18} {ours:>11} {bare:>11} {ratio:>6.2}");
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn micros(seconds: f64) -> String {
    format!("{:.2} µs", seconds * 1e6)
}

fn rate(size: usize, seconds: f64) -> String {
    format!("{:.0} MB/s", size as f64 / seconds / 1e6)
}

fn bytes(size: usize) -> String {
    match size {
        size if size >= 1 << 20 => format!("{} MiB", size >> 20),
        size if size >= 1 << 10 => format!("{} KiB", size >> 10),
        size => format!("{size} B"),
    }
}
