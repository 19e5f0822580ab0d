//! The five mechanisms in full traffic: what arrives when a process is killed at a random
//! moment, when signals interrupt every call, and when it goes on for long.
//!
//! Without libtest (`harness = false`), since these checks fork. A number in `IPC_KILLS` says how
//! often each process is killed (default 100), one in `IPC_MESSAGES` how long a long run is
//! (default 3,000).

#[macro_use]
mod support;

use std::cell::Cell;
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use common::Process;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::{Pid, getpid};
use queue::{GetError, Queue};
use shm::Mailbox;
use socket::Address;
use support::run_checks;

fn main() {
    run_checks(&checks![
        pipe_survives_kills,
        fifo_survives_kills,
        queue_survives_kills,
        shm_survives_kills,
        socket_survives_kills,
        signals_change_nothing,
        long_runs_stay_flat,
        a_length_alone_takes_no_memory,
        random_bytes_are_no_message,
    ]);
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Numbers that look random, and are the same in each run (xorshift).
struct Random(Cell<u64>);

impl Random {
    fn new() -> Random {
        Random(Cell::new(0x2545_f491_4f6c_dd1d))
    }

    fn below(&self, limit: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x % limit
    }
}

/// The i-th message: its length and each of its bytes tell which one it is.
fn message(i: u64, longest: u64) -> String {
    let length = i.wrapping_mul(7919) % longest;
    let letter = char::from(b'a' + (i % 26) as u8).to_string();
    format!("{i} {}", letter.repeat(length as usize))
}

/// What came out of a mechanism whose other side was killed.
enum Came {
    Message(String),
    /// The stream ended between two messages, or within one; or there was nothing more.
    End,
    Torn,
}

/// Checks that messages come whole, in order and once each, until the end; returns how
/// many came, and whether the last one was torn. From the `first` one on, kills the other side.
fn check_until_end(
    longest: u64,
    first: u64,
    other: Pid,
    mut next: impl FnMut() -> Came,
) -> (u64, bool) {
    for i in 0.. {
        if i == first {
            kill(other, Signal::SIGKILL).unwrap();
        }
        match next() {
            Came::Message(text) => assert!(text == message(i, longest), "wrong at {i}: {text}"),
            Came::End => return (i, false),
            Came::Torn => return (i, true),
        }
    }
    unreachable!("it ends when the other side does")
}

/// Sends messages until the other side, which dies after `first`, is gone.
fn send_until_gone(
    longest: u64,
    first: u64,
    other: Pid,
    mut send: impl FnMut(&str) -> io::Result<()>,
) -> io::Error {
    for i in 0.. {
        if i == first {
            kill(other, Signal::SIGKILL).unwrap();
        }
        if let Err(error) = send(&message(i, longest)) {
            return error;
        }
    }
    unreachable!("it ends when the other side does")
}

fn pid(process: &Process) -> Pid {
    Pid::from_raw(process.id() as i32)
}

fn killed(process: Process) {
    let error = process.join().unwrap_err().to_string();
    assert_eq!(error, "victim was killed by SIGKILL");
}

fn pipe_survives_kills() {
    let (random, mut torn, kills) = (Random::new(), 0, setting("IPC_KILLS", 100));
    // Longer than the 256 KiB of the pipe, so that a message can be cut.
    let longest = 400_000;
    for _ in 0..kills {
        let ends = pipe::simplex().unwrap();
        let (victim, mut receiver) = Process::spawn_with("victim", ends, |mut sender| {
            for i in 0.. {
                sender.send(message(i, longest).as_bytes())?;
            }
            Ok(())
        })
        .unwrap();
        let (_, was_torn) =
            check_until_end(longest, random.below(50), pid(&victim), || match receiver.recv() {
                Ok(Some(bytes)) => Came::Message(String::from_utf8(bytes).unwrap()),
                Ok(None) => Came::End,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Came::Torn,
                Err(error) => panic!("{error}"),
            });
        torn += u64::from(was_torn);
        killed(victim);

        let (receiver, sender) = pipe::simplex().unwrap();
        let (victim, mut sender) = Process::spawn_with("victim", (sender, receiver), |mut end| {
            while end.recv()?.is_some() {}
            Ok(())
        })
        .unwrap();
        let send = |text: &str| sender.send(text.as_bytes());
        let error = send_until_gone(longest, random.below(50), pid(&victim), send);
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        killed(victim);
    }
    println!("     pipe: {} kills, {torn} messages torn and told so", 2 * kills);
}

fn fifo_survives_kills() {
    let (random, kills) = (Random::new(), setting("IPC_KILLS", 100));
    let dir = fifo::PrivateDir::new().unwrap();
    let path = dir.join("pipe.in");
    fifo::create(&path).unwrap();
    let longest = 4000; // within PIPE_BUF, so that no line is ever torn
    for _ in 0..kills {
        let victim = Process::spawn("victim", || {
            let mut writer = fifo::open_writer(&path, None)?;
            for i in 0.. {
                fifo::write_line(&mut writer, &message(i, longest))?;
            }
            Ok(())
        })
        .unwrap();
        let mut reader = BufReader::new(fifo::open_reader(&path, None).unwrap());
        check_until_end(longest, random.below(100), pid(&victim), || {
            fifo::read_line(&mut reader).unwrap().map_or(Came::End, Came::Message)
        });
        drop(reader); // or below we would be our own reader, and never see a broken pipe
        killed(victim);

        let victim = Process::spawn("victim", || {
            let mut reader = BufReader::new(fifo::open_reader(&path, None)?);
            while fifo::read_line(&mut reader)?.is_some() {}
            Ok(())
        })
        .unwrap();
        let mut writer = fifo::open_writer(&path, None).unwrap();
        let send = |text: &str| fifo::write_line(&mut writer, text);
        let error = send_until_gone(longest, random.below(100), pid(&victim), send);
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        killed(victim);
    }
    println!("     fifo: {} kills", 2 * kills);
}

fn queue_survives_kills() {
    const CAPACITY: usize = 4;
    let (random, mut lost, kills) = (Random::new(), 0, setting("IPC_KILLS", 100));
    // A part of the values goes by the file in memory.
    let longest = 80_000;
    let timeout = Duration::from_millis(5);
    // How many places are left when all is over.
    let places = |queue: &Queue<String>| {
        while queue.try_get().is_ok() {}
        let free = (0..=CAPACITY).take_while(|_| queue.try_put("x".into()).is_ok()).count();
        assert!(free <= CAPACITY, "a place too many");
        free
    };
    for _ in 0..kills {
        let queue = Queue::<String>::new(CAPACITY).unwrap();
        let victim = Process::spawn("victim", || {
            for i in 0.. {
                queue.put(message(i, longest))?;
            }
            Ok(())
        })
        .unwrap();
        let mut is_killed = false;
        let first = random.below(50);
        let mut count = 0;
        check_until_end(longest, first, pid(&victim), || {
            count += 1;
            is_killed |= count > first;
            // Alive it may be slow; killed, what it has put is there.
            match queue.get_timeout(if is_killed { timeout } else { Duration::from_secs(60) }) {
                Ok(text) => Came::Message(text),
                Err(GetError::Empty) => Came::End,
                Err(GetError::Io(error)) => panic!("{error}"),
            }
        });
        killed(victim);
        lost += CAPACITY - places(&queue);

        let queue = Queue::<String>::new(CAPACITY).unwrap();
        let victim = Process::spawn("victim", || {
            loop {
                queue.get()?;
            }
        })
        .unwrap();
        let first = random.below(50);
        for i in 0..first {
            queue.put(message(i, longest)).unwrap();
        }
        kill(pid(&victim), Signal::SIGKILL).unwrap();
        killed(victim);
        // What is still in the queue comes out whole, and in order.
        let start = Instant::now();
        let mut last = None;
        loop {
            match queue.get_timeout(timeout) {
                Ok(text) => {
                    let i: u64 = text.split(' ').next().unwrap().parse().unwrap();
                    assert!(text == message(i, longest) && last < Some(i), "wrong at {i}");
                    last = Some(i);
                }
                Err(GetError::Empty) => break,
                Err(GetError::Io(error)) => panic!("{error}"),
            }
        }
        assert!(start.elapsed() < Duration::from_secs(2), "a timeout that is none");
        lost += CAPACITY - places(&queue);
    }
    println!("     queue: {} kills, {lost} places lost", 2 * kills);
}

fn shm_survives_kills() {
    // The kill is noticed after 250 ms at most, so there are fewer of them.
    let (random, kills) = (Random::new(), setting("IPC_KILLS", 100) / 10);
    let longest = 4000;
    let name = |i| format!("/cnblogs-traffic-{}-{i}", getpid());
    for i in 0..kills {
        let mailbox = Mailbox::create(&name(2 * i), 4096).unwrap();
        let victim = Process::spawn("victim", || {
            for i in 0.. {
                mailbox.write(message(i, longest).as_bytes(), None)?;
            }
            Ok(())
        })
        .unwrap();
        check_until_end(longest, 1 + random.below(1000), pid(&victim), || {
            match mailbox.read(None) {
                Ok(bytes) => Came::Message(String::from_utf8(bytes).unwrap()),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => Came::End,
                Err(error) => panic!("{error}"),
            }
        });
        killed(victim);

        let mailbox = Mailbox::create(&name(2 * i + 1), 4096).unwrap();
        let victim = Process::spawn("victim", || {
            loop {
                mailbox.read(None)?;
            }
        })
        .unwrap();
        let send = |text: &str| mailbox.write(text.as_bytes(), None);
        // A reader that never came could still come, so let it read a few.
        let error = send_until_gone(longest, 3 + random.below(1000), pid(&victim), send);
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        killed(victim);
    }
    println!("     shm: {} kills", 2 * kills);
}

fn socket_survives_kills() {
    let (random, mut torn, kills) = (Random::new(), 0, setting("IPC_KILLS", 100));
    let dir = fifo::PrivateDir::new().unwrap();
    let longest = 60_000;
    for kind in [Address::Tcp("127.0.0.1".into(), 0), Address::Unix(dir.join("socket"))] {
        for _ in 0..kills / 2 {
            let listener = socket::listen(&kind).unwrap();
            let address = listener.local_address().unwrap();
            let victim = Process::spawn("victim", || {
                let mut stream = socket::connect(&address, None)?;
                for i in 0.. {
                    socket::write_line(&mut stream, &message(i, longest))?;
                }
                Ok(())
            })
            .unwrap();
            let mut stream = BufReader::new(listener.accept().unwrap());
            let (_, was_torn) =
                check_until_end(
                    longest,
                    random.below(50),
                    pid(&victim),
                    || match socket::read_line(&mut stream) {
                        Ok(Some(line)) => Came::Message(line),
                        Ok(None) => Came::End,
                        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Came::Torn,
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => Came::Torn,
                        Err(error) => panic!("{error}"),
                    },
                );
            torn += u64::from(was_torn);
            killed(victim);

            let victim = Process::spawn("victim", || {
                let mut stream = BufReader::new(socket::connect(&address, None)?);
                while socket::read_line(&mut stream)?.is_some() {}
                Ok(())
            })
            .unwrap();
            let mut stream = listener.accept().unwrap();
            let send = |text: &str| socket::write_line(&mut stream, text);
            let error = send_until_gone(longest, random.below(50), pid(&victim), send);
            let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(gone.contains(&error.kind()), "{error}");
            killed(victim);
        }
    }
    println!("     socket: {} kills, {torn} lines torn and told so", 2 * kills);
}

/// A talk over each mechanism, between this process and a child: `count` messages there and back.
fn talk_over_each(count: u64) {
    let longest = 3000;
    let check = |i: u64, text: &str| assert!(text == message(i, longest), "wrong at {i}: {text}");

    let (child, mut end) =
        Process::spawn_with("pipe", pipe::duplex().unwrap(), |mut end: pipe::Connection| {
            while let Some(message) = end.recv()? {
                end.send(&message)?;
            }
            Ok(())
        })
        .unwrap();
    for i in 0..count {
        end.send(message(i, longest).as_bytes()).unwrap();
        assert!(end.poll(Some(Duration::from_secs(60))).unwrap());
        check(i, &String::from_utf8(end.recv().unwrap().unwrap()).unwrap());
    }
    drop(end);
    child.join().unwrap();

    let dir = fifo::PrivateDir::new().unwrap();
    let (there, back) = (dir.join("pipe.in"), dir.join("pipe.out"));
    fifo::create(&there).unwrap();
    fifo::create(&back).unwrap();
    let child = Process::spawn("fifo", || {
        let mut reader = BufReader::new(fifo::open_reader(&there, None)?);
        let mut writer = fifo::open_writer(&back, Some(Duration::from_secs(60)))?;
        while let Some(line) = fifo::read_line(&mut reader)? {
            fifo::write_line(&mut writer, &line)?;
        }
        Ok(())
    })
    .unwrap();
    let mut writer = fifo::open_writer(&there, None).unwrap();
    let mut reader =
        fifo::open_reader(&back, Some(Duration::from_secs(60))).map(BufReader::new).unwrap();
    for i in 0..count {
        fifo::write_line(&mut writer, &message(i, longest)).unwrap();
        check(i, &fifo::read_line(&mut reader).unwrap().unwrap());
    }
    drop(writer);
    child.join().unwrap();

    let there = Queue::<Option<String>>::new(1).unwrap();
    let back = Queue::<String>::new(1).unwrap();
    let child = Process::spawn("queue", || {
        while let Some(text) = there.get()? {
            back.put(text)?;
        }
        Ok(())
    })
    .unwrap();
    for i in 0..count {
        there.put(Some(message(i, longest))).unwrap();
        check(i, &back.get().unwrap());
    }
    there.put(None).unwrap();
    child.join().unwrap();

    let name = |what| format!("/cnblogs-talk-{}-{what}", getpid());
    let there = Mailbox::create(&name("there"), 4096).unwrap();
    let back = Mailbox::create(&name("back"), 4096).unwrap();
    let child = Process::spawn("shm", || {
        loop {
            let message = there.read(None)?;
            if message.is_empty() {
                return Ok(());
            }
            back.write(&message, None)?;
        }
    })
    .unwrap();
    for i in 0..count {
        there.write(message(i, longest).as_bytes(), None).unwrap();
        there.flush(None).unwrap();
        check(i, &String::from_utf8(back.read(None).unwrap()).unwrap());
    }
    there.write(b"", None).unwrap();
    child.join().unwrap();

    for kind in [Address::Tcp("127.0.0.1".into(), 0), Address::Unix(dir.join("socket"))] {
        let listener = socket::listen(&kind).unwrap();
        let address = listener.local_address().unwrap();
        let child = Process::spawn("socket", || {
            let mut stream = socket::connect(&address, None)?;
            let mut reader = BufReader::new(stream.try_clone()?);
            while let Some(line) = socket::read_line(&mut reader)? {
                socket::write_line(&mut stream, &line)?;
            }
            Ok(())
        })
        .unwrap();
        let mut stream = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for i in 0..count {
            socket::write_line(&mut stream, &message(i, longest)).unwrap();
            check(i, &socket::read_line(&mut reader).unwrap().unwrap());
        }
        drop((stream, reader));
        child.join().unwrap();
    }
}

extern "C" fn nothing(_: i32) {}

fn signals_change_nothing() {
    // Without SA_RESTART: each call that waits comes back with EINTR.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "the handler under test")]
    // SAFETY: the handler does nothing, so it is safe at any point. Not covered: nothing else.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let parent = getpid();
    // Fires at this process and at all its children, which inherit the handler.
    let storm = Process::spawn("storm", || {
        loop {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            let others = children.split_whitespace().map(|id| Pid::from_raw(id.parse().unwrap()));
            for target in others.filter(|child| *child != getpid()).chain([parent]) {
                // A child may have ended since.
                let _ = kill(target, Signal::SIGUSR1);
            }
        }
    })
    .unwrap();
    talk_over_each(300);
    let slow = Process::spawn("slow", || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {}
        Ok(())
    })
    .unwrap();
    common::supervise([slow]).unwrap();
    drop(storm);
}

fn long_runs_stay_flat() {
    let messages = setting("IPC_MESSAGES", 3000);
    talk_over_each(messages / 10);
    let (memory, files) = usage();
    talk_over_each(messages);
    let (memory_after, files_after) = usage();
    println!("     {messages} messages over each: {memory} KiB, then {memory_after} KiB");
    assert_eq!(files, files_after, "descriptors");
    assert!(memory_after < memory + 2000, "{memory} KiB, then {memory_after} KiB");
}

/// The memory of this process in KiB, and its number of open files.
fn usage() -> (u64, usize) {
    (status("VmRSS:"), fs::read_dir("/proc/self/fd").unwrap().count())
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

fn a_length_alone_takes_no_memory() {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut write = fs::File::from(write);
    // One GiB is announced, 1000 bytes come.
    io::Write::write_all(&mut write, &(1u32 << 30).to_be_bytes()).unwrap();
    io::Write::write_all(&mut write, &[7; 1000]).unwrap();
    drop(write);
    let mut receiver = pipe::Receiver::from(read);
    let before = status("VmPeak:");
    let error = receiver.recv().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let grown = status("VmPeak:") - before;
    assert!(grown < 1000, "{grown} KiB more for a length");
}

fn random_bytes_are_no_message() {
    let random = Random::new();
    for _ in 0..setting("IPC_KILLS", 100) * 100 {
        let length = random.below(300);
        // Small numbers often, so that some lengths make sense.
        let bytes: Vec<u8> = (0..length)
            .map(|_| if random.below(2) == 0 { 0 } else { random.below(256) as u8 })
            .collect();
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        io::Write::write_all(&mut fs::File::from(write), &bytes).unwrap();
        let mut receiver = pipe::Receiver::from(read);
        // Whatever comes out, with its header, is no longer than what went in.
        let mut taken = 0;
        while let Ok(Some(message)) = receiver.recv() {
            taken += 4 + message.len();
        }
        assert!(taken <= bytes.len());

        let mut lines = &bytes[..];
        let mut taken = 0;
        while let Ok(Some(line)) = socket::read_line(&mut lines) {
            taken += line.len() + 1;
        }
        assert!(taken <= bytes.len());
        let _: Result<Address, _> = String::from_utf8_lossy(&bytes).parse();
    }
}
