//! What a message costs in system calls, counted with strace.
//!
//! This program runs itself in strace, once for each mechanism. One process is both sides, so
//! nobody ever waits, and the number is exact. (It is not a libtest: its threads would be counted.)

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::BufReader;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};
use fifo::PrivateDir;
use shm::Mailbox;
use support::{TempDir, has, skip};

/// How many messages are sent and received.
const MESSAGES: usize = 100;

/// Set in the process that is traced: which mechanism it is to use.
const TRACED: &str = "IPC_TRACED";

const MESSAGE: &str = "Data@subprocess";

/// Sends and receives one message.
type Talk = Box<dyn FnMut() -> Result<()>>;

/// Makes both ends.
type Start = fn() -> Result<Talk>;

/// System calls, and how many of each.
type Calls = &'static [(&'static str, usize)];

/// What is counted, how it talks, and what sending and receiving one message takes.
const COUNTED: [(&str, Start, Calls); 6] = [
    ("pipe", pipe, &[("read", 1), ("write", 1)]),
    ("fifo", fifo, &[("read", 1), ("write", 1)]),
    // put: take a slot, send, give an item. get: take an item, receive, give a slot.
    ("queue", queue, &[("read", 2), ("recvmsg", 1), ("sendmsg", 1), ("write", 2)]),
    ("shm", shm, &[]),
    ("tcp", tcp, &[("read", 1), ("write", 1)]),
    ("unix", unix, &[("read", 1), ("write", 1)]),
];

fn main() -> Result<()> {
    if let Ok(which) = std::env::var(TRACED) {
        let (_, talk, _) = COUNTED.iter().find(|(name, ..)| *name == which).unwrap();
        return talk_between_marks(talk()?);
    }
    if !has("strace") {
        skip("no strace here to count system calls");
        return Ok(());
    }
    let dir = TempDir::new();
    for (name, _, expected) in COUNTED {
        let counted = count(name, &dir.join("trace"))?;
        let expected = expected.iter().map(|(call, each)| (call.to_string(), each * MESSAGES));
        assert_eq!(counted, expected.collect(), "system calls of {MESSAGES} messages over {name}");
        println!("test {name} ... ok");
    }
    Ok(())
}

/// The system calls between the two marks.
fn count(name: &str, trace: &Path) -> Result<BTreeMap<String, usize>> {
    let exe = std::env::current_exe()?;
    let mut strace = Command::new("strace");
    let status = strace.arg("-o").arg(trace).arg(exe).env(TRACED, name).status()?;
    ensure!(status.success(), "strace {name}: {status}");
    let trace = fs::read_to_string(trace)?;
    let calls = trace.lines().filter_map(|line| match line.split_once('(')?.0 {
        // What std's sockets do, and which of them, differs from version to version.
        "recvfrom" => Some("read"),
        "sendto" => Some("write"),
        call => Some(call),
    });
    let mut counted = BTreeMap::new();
    for call in calls.skip_while(|call| *call != "getppid").skip(1) {
        if call == "getppid" {
            return Ok(counted);
        }
        // Now and then malloc asks for memory, but not for each message.
        if !["brk", "mmap", "munmap"].contains(&call) {
            *counted.entry(call.to_owned()).or_default() += 1;
        }
    }
    anyhow::bail!("the marks of {name} are not in the trace:\n{trace}")
}

fn talk_between_marks(mut talk: Talk) -> Result<()> {
    talk()?; // the first one takes the roles of a mailbox
    black_box(parent_id());
    (0..MESSAGES).try_for_each(|_| talk())?;
    black_box(parent_id());
    Ok(())
}

fn pipe() -> Result<Talk> {
    let (mut receiver, mut sender) = pipe::simplex()?;
    Ok(Box::new(move || {
        sender.send(MESSAGE.as_bytes())?;
        ensure!(receiver.recv()?.as_deref() == Some(MESSAGE.as_bytes()));
        Ok(())
    }))
}

fn fifo() -> Result<Talk> {
    let dir = PrivateDir::new()?;
    let path = dir.join("pipe.in");
    fifo::create(&path)?;
    let (reader, mut writer) = thread::scope(|scope| {
        let reader = scope.spawn(|| fifo::open_reader(&path, None));
        let writer = fifo::open_writer(&path, None)?;
        anyhow::Ok((reader.join().unwrap()?, writer))
    })?;
    let mut reader = BufReader::new(reader);
    Ok(Box::new(move || {
        fifo::write_line(&mut writer, MESSAGE)?;
        ensure!(fifo::read_line(&mut reader)?.as_deref() == Some(MESSAGE));
        Ok(())
    }))
}

fn queue() -> Result<Talk> {
    let queue = queue::Queue::new(1)?;
    Ok(Box::new(move || {
        queue.put(MESSAGE.to_owned())?;
        ensure!(queue.get()? == MESSAGE);
        Ok(())
    }))
}

fn shm() -> Result<Talk> {
    let name = format!("/syscalls-{}", std::process::id());
    let writer = Mailbox::create(&name, 1024)?;
    let reader = Mailbox::open(&name, None)?;
    Ok(Box::new(move || {
        writer.write(MESSAGE.as_bytes(), None)?;
        ensure!(reader.read(None)? == MESSAGE.as_bytes());
        Ok(())
    }))
}

fn tcp() -> Result<Talk> {
    socket("127.0.0.1:0")
}

fn unix() -> Result<Talk> {
    let dir = PrivateDir::new()?;
    socket(&format!("unix:{}", dir.join("socket").display()))
}

fn socket(address: &str) -> Result<Talk> {
    let listener = socket::listen(&address.parse()?)?;
    let mut client = socket::connect(&listener.local_address()?, None)?;
    let mut server = BufReader::new(listener.accept()?);
    Ok(Box::new(move || {
        socket::write_line(&mut client, MESSAGE)?;
        ensure!(socket::read_line(&mut server)?.as_deref() == Some(MESSAGE));
        Ok(())
    }))
}
