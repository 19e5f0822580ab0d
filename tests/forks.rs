//! What forks, signals and limits must not break in the five libraries.
//!
//! Without libtest (`harness = false`), since these checks fork.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use common::Process;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::{Uid, getpid, pause, pipe2, setresuid};
use queue::{PutError, Queue};
use serde_bytes::ByteBuf;
use shm::{Reader, SharedMemory, Writer};
use tests::{list, run_checks, temp_dir};

fn main() {
    run_checks(tests::checks![
        a_held_message_ends_its_turn_once,
        a_bystander_does_not_keep_an_end_that_was_left,
        an_end_can_be_moved_into_a_child,
        each_process_has_its_own_unique_names,
        a_timeout_of_connect_is_not_prolonged_by_signals,
        a_socket_file_is_removed_after_a_chdir,
        signals_do_not_end_the_wait_for_a_fifo,
        a_value_above_the_limit_on_files_is_an_error,
        a_name_is_unlinked_with_no_descriptor_left,
        the_500th_pipe_of_a_user_still_holds_a_message,
    ]);
}

fn name(what: &str) -> String {
    format!("/cnblogs-forks-{}-{what}", getpid())
}

fn exists(name: &str) -> bool {
    Path::new("/dev/shm").join(&name[1..]).exists()
}

const SOON: Option<Duration> = Some(Duration::from_millis(20));

/// Opens both ends of a mailbox.
fn mailbox(name: &str) -> (Writer, Reader) {
    (Writer::open(name, 16).unwrap(), Reader::open(name, 16).unwrap())
}

/// The turn belongs to the process holding the message, not to children that inherit a copy.
fn a_held_message_ends_its_turn_once() {
    let (mut writer, mut reader) = mailbox(&name("held"));
    writer.write(b"one", None).unwrap();
    let held = reader.read(None).unwrap();
    let child = Process::spawn("child", || {
        drop(held); // its own copy; the parent's goes right after the fork
        Ok(())
    });
    child.unwrap().join().unwrap();
    // One turn has ended, so there is room for one message.
    writer.write(b"two", SOON).unwrap();
    assert_eq!(writer.write(b"three", SOON).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(*reader.read(SOON).unwrap(), *b"two");

    writer.write(b"four", None).unwrap();
    let held = reader.read(None).unwrap();
    let child = Process::spawn("child", || {
        // Inherited only.
        assert_eq!(*held, *b"four");
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert_eq!(writer.write(b"five", SOON).unwrap_err().kind(), ErrorKind::TimedOut);
    drop(held);
    writer.write(b"five", SOON).unwrap();
}

/// A bystander inherits copies of all that its parent has open.
fn a_bystander_does_not_keep_an_end_that_was_left() {
    for is_killed in [false, true] {
        let name = name("bystander");
        let mut reader = Reader::open(&name, 16).unwrap();
        let writer = Process::spawn("writer", || {
            let mut writer = Writer::open(&name, 16)?;
            writer.write(b"Hello", None)?;
            let (started, start) = pipe2(OFlag::O_CLOEXEC)?;
            let _bystander = Process::spawn("bystander", move || {
                drop(start);
                pause();
                Ok(())
            })?;
            assert_eq!(File::from(started).read(&mut [0])?, 0);
            if is_killed {
                kill(getpid(), Signal::SIGKILL)?;
            }
            drop(writer);
            pause();
            Ok(())
        });
        assert_eq!(*reader.read(None).unwrap(), *b"Hello");
        // This would block as long as the bystander lives.
        assert_eq!(reader.read(None).unwrap_err().kind(), ErrorKind::BrokenPipe);
        drop((writer, reader));
        assert!(!exists(&name));
    }
}

fn an_end_can_be_moved_into_a_child() {
    let name = name("moved");
    let (writer, reader) = mailbox(&name);
    let (child, mut reader) = Process::spawn_with("child", (reader, writer), |mut writer| {
        writer.write(b"Hello", None)?;
        Ok(writer.flush(None)?)
    })
    .unwrap();
    assert_eq!(*reader.read(None).unwrap(), *b"Hello");
    child.join().unwrap();
    assert_eq!(reader.read(None).unwrap_err().kind(), ErrorKind::BrokenPipe);
    drop(reader);
    assert!(!exists(&name));
}

fn each_process_has_its_own_unique_names() {
    let mut names = vec![shm::unique_name("/cnblogs")];
    for _ in 0..3 {
        let (mut read, write) = pipe2(OFlag::O_CLOEXEC).map(|(r, w)| (File::from(r), w)).unwrap();
        let child = Process::spawn("child", move || {
            let name = shm::unique_name("/cnblogs");
            Ok(File::from(write).write_all(name.as_bytes())?)
        });
        let mut name = String::new();
        read.read_to_string(&mut name).unwrap();
        child.unwrap().join().unwrap();
        assert!(name.starts_with("/cnblogs-") && !names.contains(&name), "{name}, {names:?}");
        names.push(name);
    }
    assert!(!names.contains(&shm::unique_name("/cnblogs")));
}

extern "C" fn nothing(_: i32) {}

/// Sends this process a signal after each `pause`, until it is dropped.
fn storm(pause: Duration) -> Process {
    // Without SA_RESTART: system calls come back with EINTR.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "the handler under test")]
    // SAFETY: the handler does nothing, so it is safe at any point. Not covered: nothing else.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let target = getpid();
    Process::spawn("storm", || {
        loop {
            kill(target, Signal::SIGUSR1)?;
            std::thread::sleep(pause);
        }
    })
    .unwrap()
}

fn signals_do_not_end_the_wait_for_a_fifo() {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    fifo::create(&path).unwrap();
    let _storm = storm(Duration::ZERO);
    for _ in 0..5 {
        for error in [
            fifo::open_reader(&path, SOON).unwrap_err(),
            fifo::open_writer(&path, SOON).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        }
    }
}

fn a_timeout_of_connect_is_not_prolonged_by_signals() {
    let dir = temp_dir();
    let path = dir.path().join("socket");
    let listener =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let address = format!("unix:{}", path.display());
    let _first = socket::connect(&address, None).unwrap(); // its queue is full now

    let storm = storm(Duration::from_millis(5)); // more often than the timeout below
    let timeout = Some(Duration::from_millis(50));
    let error = socket::connect(&address, timeout).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // And without a timeout a signal changes nothing, either.
    let accepted = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| (0..2).filter(|_| listener.accept().is_ok()).count());
        socket::connect(&address, None).unwrap();
        accepted.join().unwrap()
    });
    assert_eq!(accepted, 2);

    // Over TCP, to a full queue: the kernel drops our SYN, as a host that does not answer.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any_port: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any_port.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap().to_string();
    let mut held = Vec::new();
    let error = loop {
        match socket::connect(&address, timeout) {
            Ok(stream) => held.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    drop(storm);
}

fn a_socket_file_is_removed_after_a_chdir() {
    let dir = temp_dir();
    let child = Process::spawn("child", || {
        std::env::set_current_dir(dir.path())?;
        let listener = socket::listen("unix:relative")?;
        std::env::set_current_dir("/")?;
        drop(listener);
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

fn a_value_above_the_limit_on_files_is_an_error() {
    const LIMIT: u64 = 1 << 20;
    let child = Process::spawn("child", || {
        setrlimit(Resource::RLIMIT_FSIZE, LIMIT, LIMIT)?;
        let queue = Queue::new(4)?;
        // Each of the four slots has its share of the file.
        for _ in 0..4 {
            queue.try_put(ByteBuf::from(vec![7; 200_000])).unwrap();
        }
        for _ in 0..4 {
            assert_eq!(queue.try_get().unwrap().len(), 200_000);
        }
        let error = queue.try_put(ByteBuf::from(vec![7; 400_000])).unwrap_err();
        assert!(matches!(&error, PutError::Io(error) if error.kind() == ErrorKind::FileTooLarge));
        // It took nothing with it.
        for _ in 0..4 {
            queue.try_put(ByteBuf::from(vec![7; 200_000])).unwrap();
        }
        Ok(())
    });
    child.unwrap().join().unwrap();
}

fn a_name_is_unlinked_with_no_descriptor_left() {
    let (memory, mailbox) = (name("memory"), name("mailbox"));
    let child = Process::spawn("child", || {
        let both = (SharedMemory::create(&memory, 1024)?, Writer::open(&mailbox, 1024)?);
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let open = list("/proc/self/fd").into_iter().map(|fd| fd.parse::<u64>().unwrap());
        // Up to the highest that is open now (which is that of the list itself).
        setrlimit(Resource::RLIMIT_NOFILE, open.max().unwrap().min(most), most)?;
        while let Ok(file) = File::open("/dev/null") {
            std::mem::forget(file);
        }
        drop(both);
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert!(!exists(&memory) && !exists(&mailbox));
}

/// The kernel makes the pipes of a user small once that user has many, but never those of root.
fn the_500th_pipe_of_a_user_still_holds_a_message() {
    let child = Process::spawn("child", || {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        if setresuid(STRANGER, STRANGER, STRANGER).is_err() || most < 1100 {
            tests::skip("the pipes of an ordinary user (only root can be one with none so far)");
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, 1100, most)?;
        let _pipes: Vec<_> = (0..499).map(|_| pipe::simplex().unwrap()).collect();
        let (mut receiver, mut sender) = pipe::simplex()?;
        let message = [7; 64 << 10];
        // Nobody receives yet: it would block in a smaller pipe, and alarm(2) end it.
        nix::unistd::alarm::set(10);
        sender.send(&message)?;
        assert!(receiver.recv()?.unwrap() == message);
        Ok(())
    });
    child.unwrap().join().unwrap();
}

const STRANGER: Uid = Uid::from_raw(54321);
