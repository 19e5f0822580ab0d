//! `queue::Queue` against two bare `ipc_channel` channels, and against Python's `Queue`.
//!
//! All carry bytes: `serde_bytes::ByteBuf` here, `bytes` in Python. Queues have room for one value in
//! round trips, as in the article, and for 16 one way.

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipc_channel::ipc::{IpcReceiver, IpcSender, channel};
use measure::{
    ALL, Kind, Link, Peer, compare, cpus, head, order, pin, row, scaling, scaling_wanted,
};
use queue::Queue;
use serde_bytes::ByteBuf;

fn main() -> Result<()> {
    let cpu = cpus()?[0];
    pin(cpu)?;
    let (round_trips, one_way) = ALL.split_at(3);
    let mut one = Peer::start(cpu, our_pair(1)?)?;
    let mut many = Peer::start(cpu, our_pair(16)?)?;
    if scaling_wanted() {
        return scaling("queue", &mut many);
    }
    let mut bare = Peer::start(cpu, bare_pair()?)?;
    head("ours", "bare");
    compare("queue", round_trips, &mut one, &mut bare)?;
    compare("queue", one_way, &mut many, &mut bare)?;

    let Ok(mut python_one) = Python::start(1) else {
        println!("no python3 here to compare with");
        return Ok(());
    };
    let mut python_many = Python::start(16)?;
    head("ours", "Python");
    for (rows, mut ours, python) in
        [(round_trips, one, &mut python_one), (one_way, many, &mut python_many)]
    {
        for &(kind, size) in rows {
            let python = |count| python.batch(kind, size, count);
            row("queue", kind, size, |count| ours.batch(kind, size, count), python)?;
        }
    }
    Ok(())
}

/// Both processes have both queues.
struct Ours {
    to: Rc<Queue<ByteBuf>>,
    from: Rc<Queue<ByteBuf>>,
    message: ByteBuf,
}

fn our_pair(capacity: usize) -> Result<[Ours; 2]> {
    let (one, two) = (Rc::new(Queue::new(capacity)?), Rc::new(Queue::new(capacity)?));
    let ours = |(to, from)| Ours { to, from, message: ByteBuf::new() };
    Ok([(one.clone(), two.clone()), (two, one)].map(ours))
}

impl Link for Ours {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.to.put(ByteBuf::from(message))?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = ByteBuf::new(); // the last one is done with
        self.message = self.from.get()?;
        ensure!(self.message.len() == length);
        Ok(&self.message)
    }
}

struct Bare {
    to: IpcSender<ByteBuf>,
    from: IpcReceiver<ByteBuf>,
    message: ByteBuf,
}

fn bare_pair() -> Result<[Bare; 2]> {
    let (to_there, there) = channel()?;
    let (to_here, here) = channel()?;
    let bare = |(to, from)| Bare { to, from, message: ByteBuf::new() };
    Ok([(to_there, here), (to_here, there)].map(bare))
}

impl Link for Bare {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.to.send(ByteBuf::from(message))?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = ByteBuf::new();
        self.message = self.from.recv()?;
        ensure!(self.message.len() == length);
        Ok(&self.message)
    }
}

/// A Python process that plays both sides, the peer being a `multiprocessing.Process`.
struct Python {
    child: Child,
    times: BufReader<ChildStdout>,
}

const SCRIPT: &str = "
import sys, time
from multiprocessing import Process, Queue

def obey(a, b):
    while True:
        order = a.get()
        round_trip, size, count = (int(word) for word in order.split()[:3])
        message = b'y' * size
        b.put(order)
        for _ in range(count):
            a.get()
            if round_trip:
                b.put(message)
        if not round_trip:
            b.put(order)

a, b = Queue(int(sys.argv[1])), Queue(int(sys.argv[1]))
Process(target=obey, args=(a, b), daemon=True).start()
for order in sys.stdin:
    round_trip, size, count = (int(word) for word in order.split()[:3])
    message = b'x' * size
    a.put(order)
    b.get()
    start = time.perf_counter()
    for _ in range(count):
        a.put(message)
        if round_trip:
            b.get()
    if not round_trip:
        b.get()
    print(time.perf_counter() - start, flush=True)
";

impl Python {
    fn start(capacity: usize) -> Result<Python> {
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT, &capacity.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let times = BufReader::new(child.stdout.take().context("its stdout")?);
        Ok(Python { child, times })
    }

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
