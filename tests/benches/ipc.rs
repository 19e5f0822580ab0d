//! What a message costs: 64 bytes there and back, 64 KiB and 1 MiB one way, with both processes on one CPU and on two.
//!
//! `cargo bench` prints the table of the first README. All take turns, five times, and a cell is the median: times differ
//! from machine to machine, and from minute to minute, so compare rows of one run. The first is two bare pipes.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use common::Process;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use nix::fcntl::OFlag;
use nix::mqueue::{MQ_OFlag, MqAttr, mq_open, mq_receive, mq_send, mq_unlink};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpid, pipe2};
use queue::Queue;
use serde_bytes::ByteBuf;
use shm::{Semaphore, SharedMemory};

/// What is measured: the size of a message, whether each is answered, and how many there are.
const EXCHANGES: [(usize, bool, usize); 3] =
    [(64, true, 4000), (64 << 10, false, 1000), (1 << 20, false, 100)];

/// How many messages come before those that are timed.
const WARM: usize = 100;

const TURNS: usize = 5;

type Send = Box<dyn FnMut(&[u8]) -> Result<()>>;
type Recv = Box<dyn FnMut(usize) -> Result<()>>;

/// How one side sends a message, and how it receives one of a known length.
struct End {
    send: Send,
    recv: Recv,
}

/// Both ends, for messages of up to so many bytes.
type Open = fn(usize) -> Result<[End; 2]>;

const MECHANISMS: [(&str, Open); 9] = [
    ("bare pipe", |_| Ok(crossed(bare_pipe()?, bare_pipe()?))),
    ("pipe", |_| {
        let (one, two) = pipe::duplex()?;
        let end = |connection: pipe::Connection| {
            let (mut receiver, mut sender) = connection.into_parts();
            End {
                send: Box::new(move |message| Ok(sender.send(message)?)),
                recv: Box::new(move |_| receiver.recv()?.map(drop).context("EOF")),
            }
        };
        Ok([end(one), end(two)])
    }),
    ("FIFO", |_| Ok(crossed(bare_fifo()?, bare_fifo()?))),
    ("queue", |_| {
        let [there, back] = [(); 2].map(|()| Queue::<ByteBuf>::new(16).map(Rc::new));
        let (there, back) = (there?, back?);
        let end = |to: Rc<Queue<ByteBuf>>, from: Rc<Queue<ByteBuf>>| End {
            send: Box::new(move |message| Ok(to.put(ByteBuf::from(message))?)),
            recv: Box::new(move |_| Ok(from.get().map(drop)?)),
        };
        Ok([end(there.clone(), back.clone()), end(back, there)])
    }),
    ("ipc-channel", |_| {
        let ((to, there), (back, from)) = (ipc::channel()?, ipc::channel()?);
        let end = |to: IpcSender<ByteBuf>, from: IpcReceiver<ByteBuf>| End {
            send: Box::new(move |message| Ok(to.send(ByteBuf::from(message))?)),
            recv: Box::new(move |_| Ok(from.recv().map(drop)?)),
        };
        Ok([end(to, from), end(back, there)])
    }),
    ("mq", |_| {
        let open = |which| {
            let name = format!("/ipc-bench-{}-{which}", getpid());
            let (flags, mode) = (MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR, Mode::S_IRWXU);
            let queue = mq_open(&*name, flags, mode, Some(&MqAttr::new(0, 10, 8192, 0)))?;
            mq_unlink(&*name)?;
            anyhow::Ok(Rc::new(queue))
        };
        let (there, back) = (open("there")?, open("back")?);
        let end = |to: Rc<_>, from: Rc<_>| End {
            send: Box::new(move |message| Ok(mq_send(&to, message, 0)?)),
            recv: Box::new(move |_| Ok(mq_receive(&from, &mut [0; 8192], &mut 0).map(drop)?)),
        };
        Ok([end(there.clone(), back.clone()), end(back, there)])
    }),
    ("shm", |size| {
        // A page, and the two semaphores of the story behind it.
        let page = || {
            let memory = SharedMemory::create(&shm::unique_name("/cnblogs"), size + 16)?;
            SharedMemory::remove(memory.name())?;
            turns(&memory)[1].post();
            anyhow::Ok(Rc::new(memory))
        };
        let end = |to: Rc<SharedMemory>, from: Rc<SharedMemory>| End {
            send: Box::new(move |message| {
                let [filled, taken] = turns(&to);
                taken.wait(None)?;
                to.write(message)?;
                filled.post();
                Ok(())
            }),
            recv: Box::new(move |length| {
                let [filled, taken] = turns(&from);
                filled.wait(None)?;
                drop(from.read(length));
                taken.post();
                Ok(())
            }),
        };
        let (there, back) = (page()?, page()?);
        Ok([end(there.clone(), back.clone()), end(back, there)])
    }),
    ("socket, TCP", |_| sockets("127.0.0.1:0")),
    ("socket, Unix", |_| {
        let dir = tests::temp_dir();
        sockets(&format!("unix:{}", dir.path().join("socket").display()))
    }),
];

/// The same by Python's own, where there is a python3: `ends` makes, for each side, what sends and what receives.
const PYTHON: [(&str, &str); 3] = [
    (
        "Python Pipe",
        "(a, b) = Pipe(); ends = [(a.send_bytes, a.recv_bytes), (b.send_bytes, b.recv_bytes)]",
    ),
    ("Python Queue", "a, b = Queue(16), Queue(16); ends = [(a.put, b.get), (b.put, a.get)]"),
    (
        "Python mmap",
        "
def slot():
    memory, filled, taken = mmap.mmap(-1, 1 << 20), Semaphore(0), Semaphore(1)
    def send(message):
        taken.acquire(); memory.seek(0); memory.write(message); filled.release()
    def recv():
        filled.acquire(); memory.seek(0); message = memory.read(size); taken.release()
        return message
    return send, recv
(a, b), (c, d) = slot(), slot(); ends = [(a, d), (c, b)]",
    ),
];

const SCRIPT: &str = "
import mmap, os, sys, time
from multiprocessing import Pipe, Process, Queue, Semaphore
here, there, size, back, warm, count = map(int, sys.argv[1:])
ENDS
def peer(send, recv):
    os.sched_setaffinity(0, [there])
    for i in range(1, warm + count + 1):
        recv()
        if back or i in (warm, warm + count): send(b'y' * size)
os.sched_setaffinity(0, [here])
Process(target=peer, args=ends[1], daemon=True).start()
send, recv = ends[0]
for i in range(1, warm + count + 1):
    send(b'x' * size)
    if back or i in (warm, warm + count): recv()
    if i == warm: start = time.perf_counter()
print((time.perf_counter() - start) / count)
";

fn main() -> Result<()> {
    let cpus = sched_getaffinity(Pid::this())?;
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).collect();
    let places = [[cpus[0]; 2], [cpus[0], *cpus.get(1).unwrap_or(&cpus[0])]];
    let names: Vec<_> = MECHANISMS.iter().map(|row| row.0).chain(PYTHON.map(|row| row.0)).collect();
    // For each row and each column the times, in seconds a message.
    let mut times = vec![vec![Vec::new(); 6]; names.len()];
    for turn in 1..=TURNS {
        eprintln!("turn {turn} of {TURNS}");
        for (column, (exchange, place)) in
            EXCHANGES.into_iter().flat_map(|e| places.map(|place| (e, place))).enumerate()
        {
            // mq takes no message above 8 KiB.
            let rows = MECHANISMS.iter().map(|(name, open)| match *name {
                "mq" if exchange.0 > 8192 => Err(anyhow!("too long")),
                _ => measure_anew(*open, place, exchange),
            });
            let rows = rows.chain(PYTHON.iter().map(|(_, ends)| python(ends, place, exchange)));
            rows.enumerate().for_each(|(row, time)| times[row][column].extend(time));
        }
    }
    for times in times.iter_mut().flatten() {
        times.sort_by(f64::total_cmp);
    }
    let median = |row: usize, column: usize| times[row][column].get(TURNS / 2).copied();
    println!(
        "{:<12} {:>24} {:>25} {:>25} {:>10} {:>8}",
        "", "64 B there and back", "64 KiB one way", "1 MiB one way", "64 B,", "64 B,"
    );
    let cpus = format!("{:>11} {:>12} ", "1 CPU", "2 CPUs").repeat(3);
    println!("{:<12} {cpus:<77} {:>8} {:>8}", "", "× bare", "× Python");
    for (row, name) in names.iter().enumerate() {
        let mut line = format!("{name:<12}");
        for column in 0..6 {
            let size = EXCHANGES[column / 2].0 as f64;
            let cell = median(row, column).map(|time| match column {
                0 | 1 => format!("{:.2} µs", 1e6 * time),
                _ => format!("{:.0} MB/s", size / time / 1e6),
            });
            line += &format!(" {:>12}", cell.unwrap_or_default());
        }
        // On one CPU, beside the bare pipes and beside Python's own.
        let python = [("pipe", "Python Pipe"), ("queue", "Python Queue"), ("shm", "Python mmap")];
        let python = python.iter().find(|(ours, _)| ours == name).map(|(_, python)| *python);
        for other in [Some("bare pipe"), python] {
            let other = names.iter().position(|name| Some(*name) == other);
            let ratio = other.and_then(|other| Some(median(row, 0)? / median(other, 0)?));
            line +=
                &format!(" {:>8}", ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")));
        }
        println!("{}", line.trim_end());
    }
    Ok(())
}

/// Seconds a message, measured in a process of its own: one that has waited before has learned whether spinning pays.
fn measure_anew(open: Open, place: [usize; 2], exchange: (usize, bool, usize)) -> Result<f64> {
    let (process, mut time) = Process::spawn_with("bench", pipe::simplex()?, |mut time| {
        Ok(time.send(&measure(open, place, exchange)?.to_ne_bytes())?)
    })?;
    let seconds = time.recv()?.context("it has failed")?;
    process.join()?;
    Ok(f64::from_ne_bytes(seconds[..].try_into()?))
}

/// Exchanges messages with a process on another CPU, or the same.
fn measure(
    open: Open,
    [here, there]: [usize; 2],
    (size, back, count): (usize, bool, usize),
) -> Result<f64> {
    let [ours, theirs] = open(size)?;
    let is_answered = move |number: usize| back || [WARM, WARM + count].contains(&number);
    let (peer, mut ours) = Process::spawn_with("peer", (ours, theirs), |mut end| {
        pin(there)?;
        let answer = vec![b'y'; size];
        for number in 1..=WARM + count {
            (end.recv)(size)?;
            if is_answered(number) {
                (end.send)(&answer)?;
            }
        }
        Ok(())
    })?;
    pin(here)?;
    let (message, mut start) = (vec![b'x'; size], Instant::now());
    for number in 1..=WARM + count {
        (ours.send)(&message)?;
        if is_answered(number) {
            (ours.recv)(size)?;
        }
        if number == WARM {
            start = Instant::now();
        }
    }
    let time = start.elapsed().as_secs_f64() / count as f64;
    peer.join()?;
    Ok(time)
}

fn python(
    ends: &str,
    [here, there]: [usize; 2],
    (size, back, count): (usize, bool, usize),
) -> Result<f64> {
    let script = SCRIPT.replace("ENDS", ends);
    let args = [here, there, size, back.into(), WARM, count].map(|number| number.to_string());
    let output = Command::new("python3").args(["-c", &script]).args(args).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Two directions, each with the end to read from and the end to write to.
fn crossed((there, to_there): (File, File), (here, to_here): (File, File)) -> [End; 2] {
    [bytes(here, to_there), bytes(there, to_here)]
}

fn bytes(mut from: impl Read + 'static, mut to: impl Write + 'static) -> End {
    let mut buffer = Vec::new();
    End {
        send: Box::new(move |message| Ok(to.write_all(message)?)),
        recv: Box::new(move |length| {
            buffer.resize(length, 0);
            Ok(from.read_exact(&mut buffer)?)
        }),
    }
}

fn bare_pipe() -> Result<(File, File)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((read.into(), write.into()))
}

fn bare_fifo() -> Result<(File, File)> {
    let dir = tests::temp_dir();
    let path = dir.path().join("pipe.in");
    fifo::create(&path)?;
    // An end of its own lets the other two open.
    let collector = fifo::open_collector(&path)?;
    let ends = (fifo::open_reader(&path)?, fifo::open_writer(&path)?);
    drop(collector);
    Ok(ends)
}

fn turns(memory: &SharedMemory) -> [Semaphore<'_>; 2] {
    let words = memory.words();
    [&words[words.len() - 2], &words[words.len() - 1]].map(Semaphore::new)
}

fn sockets(address: &str) -> Result<[End; 2]> {
    let listener = socket::listen(address)?;
    let client = socket::connect(&listener.local_address()?, None)?;
    let server = listener.accept()?;
    Ok([bytes(client.try_clone()?, client), bytes(server.try_clone()?, server)])
}

fn pin(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    Ok(sched_setaffinity(Pid::this(), &one)?)
}
