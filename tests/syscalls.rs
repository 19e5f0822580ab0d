//! What a message costs in system calls, counted with strace.
//!
//! This program runs itself in strace, once for each mechanism. One process is both sides, so
//! nobody ever waits, and the number is exact. (It is not a libtest: its threads would be counted.)

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::BufReader;
use std::os::unix::process::parent_id;
use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};
use shm::{Pair, Semaphore, SharedMemory, Side};
use tests::{can_trace, run_checks, skip, temp_dir};

/// How many messages are sent and received.
const MESSAGES: usize = 100;

/// Set in the process that is traced: which mechanism it is to use.
const TRACED: &str = "IPC_TRACED";

const MESSAGE: &str = "Data@subprocess";

/// Sends and receives one message.
type Exchange = Box<dyn FnMut() -> Result<()>>;

/// Makes both ends.
type Start = fn() -> Result<Exchange>;

/// System calls, and how many of each.
type Calls = &'static [(&'static str, usize)];

/// What is counted, how to start, and what sending and receiving one message takes.
const COUNTED: [(&str, Start, Calls); 6] = [
    ("pipe", pipe, &[("read", 1), ("write", 1)]),
    ("fifo", fifo, &[("read", 1), ("write", 1)]),
    // put: take a slot, write there, pass it on. get: take a slot, read it, free it.
    ("queue", queue, &[("pread64", 1), ("pwrite64", 1), ("read", 2), ("write", 2)]),
    ("shm", shm, &[]),
    ("tcp", tcp, &[("read", 1), ("write", 1)]),
    ("unix", unix, &[("read", 1), ("write", 1)]),
];

fn main() {
    match std::env::var(TRACED).as_deref() {
        Ok("timeouts") => time_out().unwrap(),
        Ok(which) => {
            let (_, start, _) = COUNTED.iter().find(|(name, ..)| *name == which).unwrap();
            start().and_then(exchange_between_marks).unwrap();
        }
        Err(_) => run_checks(tests::checks![
            a_message_takes_just_these_system_calls,
            waits_do_not_go_by_the_wall_clock,
        ]),
    }
}

fn a_message_takes_just_these_system_calls() {
    if !can_trace() {
        return skip("no strace here to count system calls: install it");
    }
    for (name, _, expected) in COUNTED {
        let expected = expected.iter().map(|(call, each)| (call.to_string(), each * MESSAGES));
        let counted = count(&trace_ourselves(name));
        assert_eq!(counted, expected.collect(), "system calls of {MESSAGES} messages over {name}");
    }
}

/// The wall clock may be set back: what sleeps with a timeout must not go by it.
fn waits_do_not_go_by_the_wall_clock() {
    if !can_trace() {
        return skip("no strace here to look at waits: install it");
    }
    let trace = trace_ourselves("timeouts");
    let waits: Vec<_> = trace.lines().filter(|line| line.contains("FUTEX_WAIT")).collect();
    assert!(!waits.is_empty() && trace.contains("ETIMEDOUT"), "no wait in the trace:\n{trace}");
    let by_the_wall = waits.iter().find(|wait| wait.contains("FUTEX_CLOCK_REALTIME"));
    assert_eq!(by_the_wall, None);
}

/// Waits in vain for what is waited for in shared memory.
fn time_out() -> Result<()> {
    let memory = SharedMemory::create(&shm::unique_name("/cnblogs"), 8)?;
    let soon = Some(std::time::Duration::from_millis(1));
    ensure!(Semaphore::new(&memory.words()[0]).wait(soon).is_err());
    Ok(())
}

/// Runs this program in strace, and returns what that saw.
fn trace_ourselves(what: &str) -> String {
    let dir = temp_dir();
    let trace = dir.path().join("trace");
    let mut strace = Command::new("strace");
    let exe = std::env::current_exe().unwrap();
    let status = strace.arg("-o").arg(&trace).arg(exe).env(TRACED, what).status().unwrap();
    assert!(status.success(), "strace {what}: {status}");
    fs::read_to_string(trace).unwrap()
}

/// The system calls between the two marks.
fn count(trace: &str) -> BTreeMap<String, usize> {
    let calls = trace.lines().filter_map(|line| match line.split_once('(')?.0 {
        // What std's sockets do, and which of them, differs from version to version.
        "recvfrom" => Some("read"),
        "sendto" => Some("write"),
        call => Some(call),
    });
    let mut counted = BTreeMap::new();
    for call in calls.skip_while(|call| *call != "getppid").skip(1) {
        if call == "getppid" {
            return counted;
        }
        // Now and then malloc asks for memory, but not for each message.
        if !["brk", "mmap", "munmap"].contains(&call) {
            *counted.entry(call.to_owned()).or_default() += 1;
        }
    }
    panic!("the marks are not in the trace:\n{trace}")
}

fn exchange_between_marks(mut exchange: Exchange) -> Result<()> {
    exchange()?; // the first one notes which process uses an end
    black_box(parent_id());
    (0..MESSAGES).try_for_each(|_| exchange())?;
    black_box(parent_id());
    Ok(())
}

fn pipe() -> Result<Exchange> {
    let (mut receiver, mut sender) = pipe::simplex()?;
    Ok(Box::new(move || {
        sender.send(MESSAGE.as_bytes())?;
        ensure!(receiver.recv()?.as_deref() == Some(MESSAGE.as_bytes()));
        Ok(())
    }))
}

fn fifo() -> Result<Exchange> {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    fifo::create(&path)?;
    let (reader, mut writer) = thread::scope(|scope| {
        let reader = scope.spawn(|| fifo::open_reader(&path));
        let writer = fifo::open_writer(&path)?;
        anyhow::Ok((reader.join().unwrap()?, writer))
    })?;
    let mut reader = BufReader::new(reader);
    Ok(Box::new(move || {
        fifo::write_line(&mut writer, MESSAGE)?;
        ensure!(fifo::read_line(&mut reader)?.as_deref() == Some(MESSAGE));
        Ok(())
    }))
}

fn queue() -> Result<Exchange> {
    let queue = queue::Queue::new(1)?;
    Ok(Box::new(move || {
        queue.put(MESSAGE.to_owned())?;
        ensure!(queue.get()? == MESSAGE);
        Ok(())
    }))
}

fn shm() -> Result<Exchange> {
    let name = shm::unique_name("/cnblogs");
    let writer = Pair::open(&name, 1024, Side::Writer)?;
    let reader = Pair::open(&name, 1024, Side::Reader)?;
    Ok(Box::new(move || {
        writer.write(MESSAGE.as_bytes())?;
        Semaphore::new(&writer.words()[127]).post();
        reader.wait(Semaphore::new(&reader.words()[127]))?;
        ensure!(reader.read(MESSAGE.len()) == MESSAGE.as_bytes());
        Ok(())
    }))
}

fn tcp() -> Result<Exchange> {
    socket("127.0.0.1:0")
}

fn unix() -> Result<Exchange> {
    let dir = temp_dir();
    socket(&format!("unix:{}", dir.path().join("socket").display()))
}

fn socket(address: &str) -> Result<Exchange> {
    let listener = socket::listen(address)?;
    let mut client = socket::connect(&listener.local_address()?, None)?;
    let mut server = BufReader::new(listener.accept()?);
    Ok(Box::new(move || {
        socket::write_line(&mut client, MESSAGE)?;
        ensure!(socket::read_line(&mut server)?.as_deref() == Some(MESSAGE));
        Ok(())
    }))
}
