//! The five mechanisms in full traffic: what arrives when a process is killed at a random
//! moment, when signals interrupt every call, and when it goes on for long.
//!
//! Without libtest (`harness = false`), since these checks fork. A number in `IPC_KILLS` says how
//! often each process is killed (default 100), one in `IPC_MESSAGES` how long a long run is
//! (default 3,000).

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use common::Process;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::{Pid, getpid};
use pipe::Connection;
use queue::{GetError, Queue};
use shm::{Pair, Semaphore, Side};
use socket::Stream;
use tempfile::TempDir;
use tests::{run_checks, temp_dir};

fn main() {
    run_checks(tests::checks![
        pipe_survives_kills,
        fifo_survives_kills,
        queue_survives_kills,
        shm_survives_kills,
        tcp_survives_kills,
        unix_survives_kills,
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

/// One side of an exchange.
trait End {
    fn send(&mut self, message: &str) -> io::Result<()>;
    /// `None` means EOF.
    fn recv(&mut self) -> io::Result<Option<String>>;
}

/// A way to connect this process with a child.
trait Mechanism {
    type End: End;
    /// Messages are shorter than this.
    const LONGEST: u64;
    /// A kill comes at a random one of so many messages.
    const WITHIN: u64 = 50;
    /// What a message that the kill cut may look like.
    const TORN: &[ErrorKind] = &[];
    /// What sending to nobody may look like.
    const GONE: &[ErrorKind] = &[ErrorKind::BrokenPipe];
    /// One kill of how many is tried, where noticing takes time.
    const SHARE: u64 = 1;

    /// Starts a child that runs `body` with its end, and returns ours.
    fn start(&self, body: impl FnOnce(Self::End) -> Result<()>) -> (Process, Self::End);
}

/// What the child is called.
const CHILD: &str = "victim";

const LATE: Option<Duration> = Some(Duration::from_secs(60));

fn spawn(body: impl FnOnce() -> Result<()>) -> Process {
    Process::spawn(CHILD, body).unwrap()
}

struct Pipe;

impl Mechanism for Pipe {
    type End = Connection;
    // Longer than what a pipe holds, so that a message can be cut.
    const LONGEST: u64 = 400_000;
    const TORN: &[ErrorKind] = &[ErrorKind::UnexpectedEof];

    fn start(&self, body: impl FnOnce(Connection) -> Result<()>) -> (Process, Connection) {
        Process::spawn_with(CHILD, pipe::duplex().unwrap(), body).unwrap()
    }
}

impl End for Connection {
    fn send(&mut self, message: &str) -> io::Result<()> {
        Connection::send(self, message.as_bytes())
    }

    fn recv(&mut self) -> io::Result<Option<String>> {
        assert!(self.poll(LATE)?);
        Ok(Connection::recv(self)?.map(|message| String::from_utf8(message).unwrap()))
    }
}

struct Fifos(TempDir);

struct FifoEnd {
    reader: BufReader<File>,
    writer: File,
}

impl Fifos {
    fn new() -> Fifos {
        let dir = temp_dir();
        fifo::create(&dir.path().join("pipe.in")).unwrap();
        fifo::create(&dir.path().join("pipe.out")).unwrap();
        Fifos(dir)
    }
}

impl Mechanism for Fifos {
    type End = FifoEnd;
    const LONGEST: u64 = 4000; // within PIPE_BUF, so that no line is ever torn
    const WITHIN: u64 = 100;

    fn start(&self, body: impl FnOnce(FifoEnd) -> Result<()>) -> (Process, FifoEnd) {
        let (requests, replies) = (self.0.path().join("pipe.in"), self.0.path().join("pipe.out"));
        let child = spawn(|| {
            let reader = BufReader::new(fifo::open_reader(&requests)?);
            body(FifoEnd { reader, writer: fifo::open_writer(&replies)? })
        });
        let writer = fifo::open_writer(&requests).unwrap();
        let reader = BufReader::new(fifo::open_reader(&replies).unwrap());
        (child, FifoEnd { reader, writer })
    }
}

impl End for FifoEnd {
    fn send(&mut self, message: &str) -> io::Result<()> {
        fifo::write_line(&mut self.writer, message)
    }

    fn recv(&mut self) -> io::Result<Option<String>> {
        fifo::read_line(&mut self.reader)
    }
}

struct Queues;

struct QueueEnd {
    to: Rc<Queue<String>>,
    from: Rc<Queue<String>>,
}

impl Mechanism for Queues {
    type End = QueueEnd;
    const LONGEST: u64 = 80_000;

    fn start(&self, body: impl FnOnce(QueueEnd) -> Result<()>) -> (Process, QueueEnd) {
        let [one, two] = [(); 2].map(|()| Rc::new(Queue::new(1).unwrap()));
        let child = spawn(|| body(QueueEnd { to: two.clone(), from: one.clone() }));
        (child, QueueEnd { to: one, from: two })
    }
}

impl End for QueueEnd {
    fn send(&mut self, message: &str) -> io::Result<()> {
        self.to.put(message.to_owned())
    }

    fn recv(&mut self) -> io::Result<Option<String>> {
        self.from.get().map(Some)
    }
}

struct Pairs;

/// A page for each direction: the text and its length, and the two semaphores.
struct PairEnd {
    to: Pair,
    from: Pair,
}

const PAGE: usize = 4096;

fn turns(page: &Pair) -> [Semaphore<'_>; 2] {
    [0, 1].map(|index| Semaphore::new(&page.words()[PAGE / 8 + index]))
}

fn length(page: &Pair) -> &AtomicU64 {
    &page.words()[PAGE / 8 + 2]
}

impl Mechanism for Pairs {
    type End = PairEnd;
    const LONGEST: u64 = 4000;
    const WITHIN: u64 = 1000;
    const SHARE: u64 = 10; // 250 ms each

    fn start(&self, body: impl FnOnce(PairEnd) -> Result<()>) -> (Process, PairEnd) {
        let (there, back) = (shm::unique_name("/cnblogs"), shm::unique_name("/cnblogs"));
        let open = |to, from| PairEnd {
            to: Pair::open(to, PAGE + 24, Side::Writer).unwrap(),
            from: Pair::open(from, PAGE + 24, Side::Reader).unwrap(),
        };
        let child = spawn(|| body(open(&back, &there)));
        (child, open(&there, &back))
    }
}

impl End for PairEnd {
    fn send(&mut self, message: &str) -> io::Result<()> {
        self.to.write(message.as_bytes())?;
        length(&self.to).store(message.len() as u64, Ordering::Relaxed);
        let [filled, taken] = turns(&self.to);
        filled.post();
        self.to.wait(taken)
    }

    fn recv(&mut self) -> io::Result<Option<String>> {
        let [filled, taken] = turns(&self.from);
        match self.from.wait(filled) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
            posted => posted?,
        }
        let message = self.from.read(length(&self.from).load(Ordering::Relaxed) as usize);
        taken.post();
        Ok(Some(String::from_utf8(message).unwrap()))
    }
}

/// A server's address; the child is the client.
struct Sockets(String);

struct SocketEnd(BufReader<Stream>);

impl Mechanism for Sockets {
    type End = SocketEnd;
    const LONGEST: u64 = 60_000;
    const TORN: &[ErrorKind] = &[ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
    const GONE: &[ErrorKind] = &[ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];

    fn start(&self, body: impl FnOnce(SocketEnd) -> Result<()>) -> (Process, SocketEnd) {
        let listener = socket::listen(&self.0).unwrap();
        let address = listener.local_address().unwrap();
        let child = spawn(|| body(SocketEnd(BufReader::new(socket::connect(&address, LATE)?))));
        (child, SocketEnd(BufReader::new(listener.accept().unwrap())))
    }
}

impl End for SocketEnd {
    fn send(&mut self, message: &str) -> io::Result<()> {
        socket::write_line(self.0.get_mut(), message)
    }

    fn recv(&mut self) -> io::Result<Option<String>> {
        socket::read_line(&mut self.0)
    }
}

fn pid(process: &Process) -> Pid {
    Pid::from_raw(process.id() as i32)
}

fn killed(process: Process) {
    let error = process.join().unwrap_err().to_string();
    assert_eq!(error, "victim was killed by SIGKILL");
}

/// Receives from a child that sends without end and is killed: messages come whole, in order and once each,
/// until EOF. Then sends to a child that receives without end and is killed: that is a broken pipe.
fn check_kills<M: Mechanism>(mechanism: &M) {
    let (random, mut torn, kills) = (Random::new(), 0, setting("IPC_KILLS", 100) / M::SHARE);
    for _ in 0..kills {
        let (victim, mut end) = mechanism
            .start(|mut end| (0..).try_for_each(|i| Ok(end.send(&message(i, M::LONGEST))?)));
        let last = random.below(M::WITHIN);
        for i in 0.. {
            if i == last {
                kill(pid(&victim), Signal::SIGKILL).unwrap();
            }
            match end.recv() {
                Ok(Some(text)) => assert!(text == message(i, M::LONGEST), "wrong at {i}: {text}"),
                Ok(None) => break,
                Err(error) if M::TORN.contains(&error.kind()) => {
                    torn += 1;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        killed(victim);

        let (victim, mut end) = mechanism.start(|mut end| {
            while end.recv()?.is_some() {}
            Ok(())
        });
        let last = random.below(M::WITHIN);
        let error = (0..).find_map(|i| {
            if i == last {
                kill(pid(&victim), Signal::SIGKILL).unwrap();
            }
            end.send(&message(i, M::LONGEST)).err()
        });
        let error = error.unwrap();
        assert!(M::GONE.contains(&error.kind()), "{error}");
        killed(victim);
    }
    println!("     {} kills, {torn} messages torn and reported", 2 * kills);
}

fn pipe_survives_kills() {
    check_kills(&Pipe);
}

fn fifo_survives_kills() {
    check_kills(&Fifos::new());
}

fn shm_survives_kills() {
    check_kills(&Pairs);
}

fn tcp_survives_kills() {
    check_kills(&Sockets("127.0.0.1:0".into()));
}

fn unix_survives_kills() {
    let dir = temp_dir();
    check_kills(&Sockets(unix_address(&dir)));
}

fn unix_address(dir: &TempDir) -> String {
    format!("unix:{}", dir.path().join("socket").display())
}

fn queue_survives_kills() {
    const CAPACITY: usize = 4;
    let (random, mut lost, kills) = (Random::new(), 0, setting("IPC_KILLS", 100));
    let longest = Queues::LONGEST;
    let timeout = Duration::from_millis(5);
    // How many slots are left when all is over.
    let slots = |queue: &Queue<String>| {
        while queue.try_get().is_ok() {}
        let free = (0..=CAPACITY).take_while(|_| queue.try_put("x".into()).is_ok()).count();
        assert!(free <= CAPACITY, "a slot too many");
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
        let first = random.below(50);
        for i in 0.. {
            if i == first {
                kill(pid(&victim), Signal::SIGKILL).unwrap();
            }
            // Alive it may be slow; killed, what it has put is there.
            match queue.get_timeout(if i < first { Duration::from_secs(60) } else { timeout }) {
                Ok(text) => assert!(text == message(i, longest), "wrong at {i}"),
                Err(GetError::Empty) => break,
                Err(GetError::Io(error)) => panic!("{error}"),
            }
        }
        killed(victim);
        lost += CAPACITY - slots(&queue);

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
        lost += CAPACITY - slots(&queue);
    }
    println!("     queue: {} kills, {lost} slots lost", 2 * kills);
}

/// `count` messages to a child and back, over each mechanism.
fn exchange_over_each(count: u64) {
    let dir = temp_dir();
    exchange(&Pipe, count);
    exchange(&Fifos::new(), count);
    exchange(&Queues, count);
    exchange(&Pairs, count);
    exchange(&Sockets("127.0.0.1:0".into()), count);
    exchange(&Sockets(unix_address(&dir)), count);
}

fn exchange<M: Mechanism>(mechanism: &M, count: u64) {
    let longest = 3000;
    let (child, mut end) = mechanism.start(|mut end| {
        loop {
            match end.recv()? {
                // Not every mechanism has EOF.
                Some(message) if message.is_empty() => return Ok(()),
                Some(message) => end.send(&message)?,
                None => anyhow::bail!("EOF"),
            }
        }
    });
    for i in 0..count {
        end.send(&message(i, longest)).unwrap();
        let reply = end.recv().unwrap().unwrap();
        assert!(reply == message(i, longest), "wrong at {i}: {reply}");
    }
    end.send("").unwrap();
    child.join().unwrap();
}

extern "C" fn nothing(_: i32) {}

fn signals_change_nothing() {
    // Without SA_RESTART: each call that waits comes back with EINTR.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "the handler under test")]
    // SAFETY: the handler does nothing, so it is safe at any point. Not covered: nothing.
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
    exchange_over_each(300);
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
    exchange_over_each(messages / 10);
    let (memory, files) = usage();
    exchange_over_each(messages);
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
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

fn a_length_alone_takes_no_memory() {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut write = File::from(write);
    // One GiB is announced, 1000 bytes come.
    io::Write::write_all(&mut write, &(1u32 << 30).to_be_bytes()).unwrap();
    io::Write::write_all(&mut write, &[7; 1000]).unwrap();
    drop(write);
    let mut receiver = pipe::Receiver::from(read);
    let before = status("VmPeak:");
    let error = receiver.recv().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    // What is reserved on the strength of a length is 1 MiB, and malloc may round that up.
    let grown = status("VmPeak:") - before;
    assert!(grown < 2000, "{grown} KiB more for a length");
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
        let address = String::from_utf8_lossy(&bytes);
        // All but what would be looked up, or made.
        let port = address.rsplit(':').next().unwrap().parse::<u16>();
        if !address.starts_with("unix:") && port.is_err() {
            let error = socket::listen(&address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }
}
