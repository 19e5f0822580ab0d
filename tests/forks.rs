//! What forks, signals and limits must not break in the five libraries.
//!
//! Without libtest (`harness = false`), since these checks fork.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;
use common::Process;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::{Uid, getpid, pause, pipe2, setresuid};
use shm::{Pair, Semaphore, SharedMemory, Side};
use tests::{list, run_checks, temp_dir};

fn main() {
    run_checks(tests::checks![
        a_peer_is_here_until_its_last_copy_is_closed,
        only_the_process_that_came_first_unlinks_the_name,
        a_side_killed_at_random_is_noticed_and_leaves_no_name,
        of_many_that_come_at_once_each_meets_one,
        a_killed_waiter_takes_no_post_with_it,
        no_line_is_lost_when_a_fifo_is_removed,
        each_process_has_its_own_unique_names,
        a_timeout_of_connect_is_not_prolonged_by_signals,
        a_socket_file_is_removed_after_a_chdir,
        a_name_is_unlinked_with_no_descriptor_left,
        a_fifo_that_cannot_be_guarded_is_not_left_behind,
        a_fifo_stays_when_its_removal_lacks_a_descriptor,
        a_collector_keeps_its_lock_when_a_child_drops_a_copy,
        what_lies_in_a_fifo_that_cannot_be_removed_is_told,
        the_500th_pipe_of_a_user_still_holds_a_message,
    ]);
}

fn name(what: &str) -> String {
    format!("/cnblogs-forks-{}-{what}", getpid())
}

fn exists(name: &str) -> bool {
    Path::new("/dev/shm").join(&name[1..]).exists()
}

/// Both sides of a pair.
fn pair(name: &str) -> (Pair, Pair) {
    let open = |side| Pair::open(name, 16, side).unwrap();
    (open(Side::Writer), open(Side::Reader))
}

fn posted(pair: &Pair) -> Semaphore<'_> {
    Semaphore::new(&pair.words()[0])
}

/// A fork copies the side, so the peer is here as long as a copy is open, and no longer.
fn a_peer_is_here_until_its_last_copy_is_closed() {
    let name = name("copy");
    let (writer, reader) = pair(&name);
    let (mut ready, start) = pipe2(OFlag::O_CLOEXEC).map(|(r, w)| (File::from(r), w)).unwrap();
    let child = Process::spawn("child", || {
        drop(start);
        posted(&writer).post();
        pause();
        Ok(())
    });
    assert_eq!(ready.read(&mut [0]).unwrap(), 0);
    drop(writer);
    reader.wait(posted(&reader)).unwrap();
    let watched = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reader.wait(posted(&reader)));
        std::thread::sleep(Duration::from_millis(600)); // it looks twice meanwhile
        assert!(!waiting.is_finished(), "the child still has it");
        drop(child); // killed
        waiting.join().unwrap()
    });
    assert_eq!(watched.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// Nor does a child's copy of the first side unlink a name.
fn only_the_process_that_came_first_unlinks_the_name() {
    let name = name("first");
    let first = Pair::open(&name, 16, Side::Writer).unwrap();
    let memory = SharedMemory::create(&(name.clone() + "-memory"), 16).unwrap();
    let child = Process::spawn("child", || {
        // As values that are moved into it, which it drops at its end.
        #[expect(unsafe_code, reason = "what a move into the child would do there")]
        // SAFETY: this process has copies of both, which nobody else drops. Not covered: nothing.
        drop(unsafe { (std::ptr::read(&first), std::ptr::read(&memory)) });
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert!(exists(&name) && exists(memory.name()));
    drop(first);
    assert!(!exists(&name));
}

/// Killed at any of its system calls, one of two leaves nothing behind once the other has come, and the other notices.
fn a_side_killed_at_random_is_noticed_and_leaves_no_name() {
    for round in 0..200 {
        let name = name("killed");
        let first = Process::spawn("first", || {
            let pair = Pair::open(&name, 16, Side::Writer)?;
            posted(&pair).post();
            pause();
            Ok(())
        });
        let first = first.unwrap();
        // Spread over what it does, from its start to after its last call.
        (0..round * 20).for_each(|i| drop(std::hint::black_box(i.to_string())));
        kill(nix::unistd::Pid::from_raw(first.id() as i32), Signal::SIGKILL).unwrap();
        first.join().unwrap_err();
        let reader = Pair::open(&name, 16, Side::Reader).unwrap();
        let writer = Pair::open(&name, 16, Side::Writer).unwrap();
        assert_eq!(reader.words()[0].load(SeqCst), 0);
        posted(&writer).post();
        reader.wait(posted(&reader)).unwrap();
        assert!(!exists(&name));
    }
}

/// Each of many that come at once meets one other, and nobody meets two.
fn of_many_that_come_at_once_each_meets_one() {
    const EACH: usize = 8;
    let name = name("many");
    for _ in 0..20 {
        let come = |side: Side| {
            Process::spawn("comer", || {
                let pair = loop {
                    match Pair::open(&name, 16, side) {
                        // One of this side waits there: try again when it has met somebody.
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                            std::thread::yield_now();
                        }
                        pair => break pair?,
                    }
                };
                let [mine, its] = if side == Side::Writer { [0, 1] } else { [1, 0] };
                Semaphore::new(&pair.words()[mine]).post();
                pair.wait(Semaphore::new(&pair.words()[its]))?;
                let left = pair.words().iter().map(|word| word.load(SeqCst));
                anyhow::ensure!(
                    left.map(|word| word >> 32).sum::<u64>() <= 1,
                    "more than two are here"
                );
                Ok(())
            })
            .unwrap()
        };
        let all: Vec<_> =
            (0..EACH).flat_map(|_| [come(Side::Writer), come(Side::Reader)]).collect();
        common::supervise(all).unwrap();
        assert!(!exists(&name));
    }
}

/// Two wait, one post wakes the first, which is killed before it takes: the second takes.
fn a_killed_waiter_takes_no_post_with_it() {
    for stops in [false, true].repeat(5) {
        let memory = SharedMemory::create(&name("waiters"), 8).unwrap();
        let word = &memory.words()[0];
        let semaphore = Semaphore::new(word);
        let wait = || Process::spawn("waiter", || Ok(semaphore.wait(None)?)).unwrap();
        let sleeps = |process: &Process| {
            let pid = nix::unistd::Pid::from_raw(process.id() as i32);
            tests::wait_for("it to sleep", &mut || tests::waits_in(pid, nix::libc::SYS_futex));
            pid
        };
        let one = wait();
        let pid = sleeps(&one);
        let mut two = wait();
        sleeps(&two);
        if stops {
            kill(pid, Signal::SIGSTOP).unwrap();
        }
        semaphore.post();
        kill(pid, Signal::SIGKILL).unwrap();
        let _ = one.join();
        if word.load(SeqCst) >> 32 == 0 {
            semaphore.post(); // it was faster, and perhaps killed with what it had taken
        }
        tests::wait_for("the second to take it", &mut || two.try_wait().unwrap());
    }
}

/// What a writer that `remove` unblocks can still write is returned, or else fails.
fn no_line_is_lost_when_a_fifo_is_removed() {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    for _ in 0..50 {
        fifo::create(&path).unwrap();
        let writer = Process::spawn("writer", || {
            let written = fifo::write_line(&mut fifo::open_writer(&path)?, "msg 1");
            tests::quiet();
            Ok(written?)
        });
        let writer = writer.unwrap();
        let pid = nix::unistd::Pid::from_raw(writer.id() as i32);
        tests::wait_for("it to wait", &mut || tests::waits_in(pid, nix::libc::SYS_openat));
        let unread = fifo::remove(&path).unwrap();
        let is_written = writer.join().is_ok();
        assert_eq!(unread, if is_written { &b"msg 1\n"[..] } else { b"" });
    }
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
    // SAFETY: the handler does nothing, so it is safe at any point. Not covered: nothing.
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

/// Takes all descriptors that this process could still open.
fn use_up_descriptors() -> Result<Vec<File>> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = list("/proc/self/fd").into_iter().map(|fd| fd.parse::<u64>().unwrap());
    // A few more than the highest that is open now: some are free, whatever this program has inherited.
    setrlimit(Resource::RLIMIT_NOFILE, (open.max().unwrap() + 8).min(most), most)?;
    let taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(taken.len() >= 8, "{}", taken.len());
    Ok(taken)
}

fn a_fifo_that_cannot_be_guarded_is_not_left_behind() {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    let child = Process::spawn("child", || {
        let _taken = use_up_descriptors()?;
        assert!(fifo::Guard::create(&path).is_err());
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

/// Else those who wait in open for it would wait forever.
fn a_fifo_stays_when_its_removal_lacks_a_descriptor() {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    fifo::create(&path).unwrap();
    let child = Process::spawn("child", || {
        let mut taken = use_up_descriptors()?;
        let mut failed = 0;
        while let Err(error) = fifo::remove(&path) {
            assert!(path.exists(), "removed, and an error: {error}");
            failed += 1;
            taken.pop().unwrap_or_else(|| panic!("with all of its descriptors: {error}"));
        }
        assert!(failed > 1 && !path.exists());
        Ok(())
    });
    child.unwrap().join().unwrap();
}

fn a_collector_keeps_its_lock_when_a_child_drops_a_copy() {
    let dir = temp_dir();
    let path = dir.path().join("control");
    let mut collector = Some(fifo::collect(&path).unwrap());
    let child = Process::spawn("child", || {
        drop(collector.take());
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert_eq!(fifo::collect(&path).unwrap_err().kind(), ErrorKind::ResourceBusy);
    drop(collector);
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

fn what_lies_in_a_fifo_that_cannot_be_removed_is_told() {
    let dir = temp_dir();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let path = inner.join("control");
    let child = Process::spawn("child", || {
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(STRANGER.as_raw()), None)?;
            std::os::unix::fs::chown(&inner, Some(STRANGER.as_raw()), None)?;
            setresuid(STRANGER, STRANGER, STRANGER)?;
        }
        if std::fs::metadata(&inner).is_err() {
            tests::skip("a directory of another user (TMPDIR lies where others may not enter)");
            return Ok(());
        }
        let collector = fifo::collect(&path)?;
        fifo::write_line(&mut fifo::open_writer(&path)?, "msg 1")?;
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&inner, mode(0o500))?;
        let error = collector.remove().unwrap_err().to_string();
        assert_eq!(list(&inner), ["control"]);
        std::fs::set_permissions(&inner, mode(0o700))?;
        assert!(
            error.contains("Permission denied") && error.ends_with(r#"; unread: "msg 1\n""#),
            "{error}"
        );
        Ok(())
    });
    child.unwrap().join().unwrap();
}

fn a_name_is_unlinked_with_no_descriptor_left() {
    let (memory, pair) = (name("memory"), name("pair"));
    let child = Process::spawn("child", || {
        let both = (SharedMemory::create(&memory, 1024)?, Pair::open(&pair, 1024, Side::Writer)?);
        let _taken = use_up_descriptors()?;
        drop(both);
        Ok(())
    });
    child.unwrap().join().unwrap();
    assert!(!exists(&memory) && !exists(&pair));
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
