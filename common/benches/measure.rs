//! Ours against the bare system calls and against Python, side by side: what the benches share.
//!
//! Peer processes are forked: with one we exchange messages through our library, with another by bare
//! system calls. One more pair of processes runs Python. They take turns, a batch each, so that
//! whatever else the machine does meets all alike. A ratio is the median of the ratios of such turns.

// Each bench compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::Process;
use nix::fcntl::OFlag;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

/// One side of an exchange.
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

/// Two bare pipes: for each side the end it reads from, and the one it writes to.
pub fn pipes() -> Result<[Bytes<File, File>; 2]> {
    let (here, to_here) = pipe2(OFlag::O_CLOEXEC)?;
    let (there, to_there) = pipe2(OFlag::O_CLOEXEC)?;
    let bytes = |(read, write): (OwnedFd, OwnedFd)| Bytes::new((read.into(), write.into()));
    Ok([(here, to_there), (there, to_here)].map(bytes))
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

/// How many turns make a row of the table.
const TURNS: usize = 25;

/// The length of an order to the peer: what it is to do next.
const ORDER: usize = 64;

/// What takes part in a comparison.
pub trait Contender {
    /// Exchanges `count` messages, and returns how long that took.
    fn batch(&mut self, kind: Kind, size: usize, count: usize) -> Result<Duration>;
}

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

impl<L: Link> Contender for Peer<L> {
    fn batch(&mut self, kind: Kind, size: usize, count: usize) -> Result<Duration> {
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
fn order(kind: Kind, size: usize, count: usize) -> String {
    let order = format!("{} {size} {count} ", (kind == RoundTrip) as u8);
    format!("{order:.<ORDER$}")
}

/// Where the two processes run: both on one CPU, and, where there are two, on a CPU each.
pub fn places() -> Result<Vec<[usize; 2]>> {
    let allowed = sched_getaffinity(Pid::this())?;
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let first = cpus.next().context("no CPU")?;
    Ok([first].into_iter().chain(cpus.next()).map(|second| [first, second]).collect())
}

/// Keeps this process, and those it forks from now on, on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    Ok(sched_setaffinity(Pid::this(), &one)?)
}

/// Prints the head of the table, with the names of those that it is compared with, or of what
/// [`scaling`] prints.
pub fn head(others: &[&str]) {
    if scaling_wanted() {
        println!(
            "{:<9} {:>8}    {:<7} {:>13}   peak memory",
            "one way", "messages", "size", "time"
        );
        return;
    }
    print!("{:<11} {:<17} {:>4} {:>11}", "mechanism", "message", "CPUs", "here");
    others.iter().for_each(|name| print!(" {name:>11} {:>5}", "ratio"));
    println!();
}

/// Measures all sizes, and prints a row for each.
///
/// The first contender is the mechanism here, the others are those that [`head`] has named.
pub fn compare(
    name: &str,
    rows: &[(Kind, usize)],
    place: [usize; 2],
    contenders: &mut [&mut dyn Contender],
) -> Result<()> {
    rows.iter().try_for_each(|&(kind, size)| row(name, kind, size, place, contenders))
}

/// Whether `cargo bench -- scaling` was asked for: how the cost grows with the work.
pub fn scaling_wanted() -> bool {
    std::env::args().any(|arg| arg == "scaling")
}

/// Prints the cost of a byte in longer and longer messages, the cost of a message among more and more of them, and
/// the peak memory of both processes so far.
pub fn scaling<L: Link>(name: &str, peer: &mut Peer<L>) -> Result<()> {
    for size in [64 << 10, 1 << 20, 8 << 20, 64 << 20] {
        // The same number of bytes, whatever the size.
        let count = (256 << 20) / size;
        peer.batch(OneWay, size, count)?; // the first touch of memory is the machine's business
        let time = peer.batch(OneWay, size, count)?.as_secs_f64();
        let each = time / (size * count) as f64 * 1e9;
        let (size, memory) = (bytes(size), peer.memory()?);
        println!("{name:<9} {count:>8} of {size:<7} {each:>7.3} ns a byte {memory:>7} KiB");
    }
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let each = peer.batch(OneWay, 64, count)?.as_secs_f64() / count as f64 * 1e9;
        let memory = peer.memory()?;
        println!("{name:<9} {count:>8} of 64 B    {each:>7.0} ns each   {memory:>7} KiB");
    }
    Ok(())
}

/// Measures one size, and prints its row.
fn row(
    name: &str,
    kind: Kind,
    size: usize,
    place: [usize; 2],
    contenders: &mut [&mut dyn Contender],
) -> Result<()> {
    let mut counts = Vec::new();
    for contender in contenders.iter_mut() {
        let mut count = 1;
        while contender.batch(kind, size, count)? < BATCH {
            count *= 2;
        }
        counts.push(count);
    }
    // For each turn, how long each took for a message.
    let mut turns = vec![vec![0.0; contenders.len()]; TURNS];
    for (turn, times) in turns.iter_mut().enumerate() {
        for position in 0..contenders.len() {
            let which = (turn + position) % contenders.len(); // now this one first, now that one
            let time = contenders[which].batch(kind, size, counts[which])?;
            times[which] = time.as_secs_f64() / counts[which] as f64;
        }
    }
    let show = |seconds: f64| match kind {
        RoundTrip => format!("{:.2} µs", seconds * 1e6),
        OneWay => format!("{:.0} MB/s", size as f64 / seconds / 1e6),
    };
    let way = if kind == RoundTrip { "round trip" } else { "one way" };
    let cpus = if place[0] == place[1] { 1 } else { 2 };
    let what = format!("{way} {}", bytes(size));
    print!(
        "{name:<11} {what:<17} {cpus:>4} {:>11}",
        show(median(turns.iter().map(|turn| turn[0])))
    );
    for other in 1..contenders.len() {
        let time = median(turns.iter().map(|turn| turn[other]));
        let slower = median(turns.iter().map(|turn| turn[0] / turn[other]));
        let ratio = if kind == RoundTrip { slower } else { 1.0 / slower };
        print!(" {:>11} {ratio:>5.2}", show(time));
    }
    println!();
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bytes(size: usize) -> String {
    match size {
        size if size >= 1 << 20 => format!("{} MiB", size >> 20),
        size if size >= 1 << 10 => format!("{} KiB", size >> 10),
        size => format!("{size} B"),
    }
}

/// Two Python processes that exchange messages as ours do.
pub struct Python {
    child: Child,
    times: BufReader<ChildStdout>,
}

/// Plays both sides, the peer being a `multiprocessing.Process`. Before it comes what defines `ends`: for each
/// side, what sends a message, and what receives one of a length.
const SCRIPT: &str = "
import os, sys, time
from multiprocessing import Process

def words(order):
    round_trip, size, count = (int(word) for word in order.split()[:3])
    return round_trip, size, range(count)

def obey(send, recv):
    os.sched_setaffinity(0, [int(sys.argv[2])])
    while True:
        order = recv(64)
        round_trip, size, count = words(order)
        message = b'y' * size
        send(order)
        for _ in count:
            recv(size)
            if round_trip:
                send(message)
        if not round_trip:
            send(order)

os.sched_setaffinity(0, [int(sys.argv[1])])
(send, recv), theirs = ends
Process(target=obey, args=theirs, daemon=True).start()
for order in sys.stdin.buffer:
    order = order[:64]
    round_trip, size, count = words(order)
    message = b'x' * size
    send(order)
    recv(64)
    start = time.perf_counter()
    for _ in count:
        send(message)
        if round_trip:
            recv(size)
    if not round_trip:
        recv(64)
    print(time.perf_counter() - start, flush=True)
";

impl Python {
    /// Starts the two; `None` where there is no python3.
    pub fn start(ends: &str, place: [usize; 2]) -> Result<Option<Python>> {
        let script = format!("{ends}{SCRIPT}");
        let cpus = place.map(|cpu| cpu.to_string());
        let mut python = Command::new("python3");
        python.args(["-c", &script]).args(cpus).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = python.spawn() else {
            return Ok(None);
        };
        let times = BufReader::new(child.stdout.take().context("its stdout")?);
        Ok(Some(Python { child, times }))
    }
}

impl Contender for Python {
    fn batch(&mut self, kind: Kind, size: usize, count: usize) -> Result<Duration> {
        let mut stdin = self.child.stdin.as_ref().context("its stdin")?;
        writeln!(stdin, "{}", order(kind, size, count))?;
        let mut seconds = String::new();
        self.times.read_line(&mut seconds)?;
        Ok(Duration::from_secs_f64(seconds.trim().parse()?))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // This closes its stdin, and so it ends; its own child is a daemon and ends with it.
        let _ = self.child.wait();
    }
}
