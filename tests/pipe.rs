//! The pipe program, as a user runs it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};
use pipe::{Receiver, Sender};
use tests::{
    Program, check_accidents, check_console_blocks, check_kills, check_story, check_usage, example,
    has, program, readme_shows, run, skip,
};

const PIPE: &str = env!("CARGO_BIN_EXE_pipe");

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(PIPE, "pipe", &[]);
}

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(PIPE, &[], "cargo run -q -p pipe", 20);
}

#[test]
fn half_duplex_is_the_one_in_the_readme() {
    check_story(PIPE, &["half-duplex"], "cargo run -q -p pipe half-duplex", 20);
}

#[test]
fn errors_name_the_killed_process() {
    check_accidents(PIPE, &[], &["subprocess"], &readme_shows("cargo run -q -p pipe"));
}

#[test]
fn each_process_holds_its_own_ends_only() {
    // Stopped at the first line: the subprocess prints, the parent waits for its message.
    let program = Program::start_stopped_at(&mut program(PIPE, &[]), 0);
    let parent = ends(program.pid());
    let child = ends(program.role("subprocess"));
    // Two pipes: what the one reads from, the other writes to.
    assert_eq!(parent.len(), 2);
    let other = |(pipe, writes): &(String, bool)| (pipe.clone(), !writes);
    assert_eq!(parent, child.iter().map(other).collect());
    program.finish().succeeded();
}

/// The ends of pipes that a process holds, besides those that cargo gave to all: which pipe,
/// and whether it is the writing end.
fn ends(pid: Pid) -> BTreeSet<(String, bool)> {
    let link = |pid, fd: &str| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    let fds = tests::list(format!("/proc/{pid}/fd")).into_iter();
    let ours = |fd: &String| fd.parse::<i32>().unwrap() > 2 && link(pid, fd) != link(getpid(), fd);
    fds.filter(ours)
        .map(|fd| {
            let pipe = link(pid, &fd);
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
            // The last octal digit is the access mode: 1 is O_WRONLY.
            (pipe.to_str().unwrap().to_owned(), flags.unwrap().ends_with('1'))
        })
        .collect()
}

#[test]
fn bad_arguments_are_refused() {
    check_usage(PIPE, "pipe");
}

/// Starts Python with our pipes as its stdin and stdout, and `receive` and `send` made of them.
fn python(code: &str) -> (Child, Receiver, Sender) {
    let prelude = "
import os
from multiprocessing.connection import Connection
receive = Connection(0, writable=False).recv_bytes
send = Connection(1, readable=False).send_bytes
";
    let (its_input, to_it) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let (from_it, its_output) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let child = Command::new("python3")
        .args(["-c", &format!("{prelude}{code}")])
        .stdin(its_input)
        .stdout(its_output)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, from_it.into(), to_it.into())
}

/// Waits for Python to end well, and returns what it wrote to stderr.
fn ended(mut python: Child) -> String {
    let mut stderr = String::new();
    python.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(python.wait().unwrap().success(), "{stderr}");
    stderr
}

#[test]
fn the_frame_is_python_s() {
    if !has("python3") {
        return skip("no python3 here: install it");
    }
    let echo = "
try:
    while True:
        send(receive())
except EOFError:
    os.write(2, b'the end')
";
    let (child, mut receiver, mut sender) = python(echo);
    for length in [0, 1, 16 << 10, 64 << 10, 8 << 20] {
        let message: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        sender.send(&message).unwrap();
        let reply = receiver.recv().unwrap().unwrap();
        assert!(reply == message, "{length} bytes");
    }
    drop(sender);
    assert_eq!(ended(child), "the end");
    assert_eq!(receiver.recv().unwrap(), None);
}

#[test]
fn a_frame_that_python_tears_is_an_error() {
    if !has("python3") {
        return skip("no python3 here: install it");
    }
    let (child, mut receiver, _sender) = python("send(b'whole'); os.write(1, b'\\0\\0\\0\\5to')");
    assert_eq!(receiver.recv().unwrap().unwrap(), b"whole");
    let error = receiver.recv().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    ended(child);
}

#[test]
fn a_killed_sender_is_named() {
    check_kills(PIPE, &[], &["subprocess"]);
    check_kills(PIPE, &["half-duplex"], &["subprocess"]);
}

#[test]
fn the_worker_reports_its_progress() {
    let progress = example(PIPE, "progress");
    let printed = run(&mut program(&progress, &[])).succeeded();
    let expected: String = (1..=10).map(|i| format!("{:>3} %\n", 10 * i)).collect();
    assert_eq!(printed, expected + "17984 primes below 200000\n");
    // On a terminal it stays on one line.
    let terminal = Command::new("script").args(["-qec", "true", "/dev/null"]).output();
    if terminal.is_ok_and(|output| output.status.success()) {
        let quoted = format!("'{progress}'"); // the path may have a space
        let mut script = program("script", &["-qec", &quoted, "/dev/null"]);
        let printed = run(&mut script).succeeded();
        let lines = printed.strip_prefix("\x1b[K 10 %\r\x1b[K 20 %\r");
        assert_eq!(lines.map(|lines| lines.matches('\n').count()), Some(1), "{printed}");
    } else {
        skip("no terminal to show progress on (script, of bsdutils)");
    }
    // If we fail first, the worker fails because we are gone: the reason is told, too.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = program(&progress, &[]).stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left on device"), "{stderr}");
    // Stopped where it is to print, the parent has the worker's first message.
    let stopped = Program::start_stopped_at(&mut program(&progress, &[]), 0);
    let worker = stopped.role("worker");
    stopped.kill(worker, Signal::SIGKILL);
    let finished = stopped.finish();
    // It may have sent all by then.
    let error = "worker was killed by SIGKILL";
    assert!(finished.code() == 0 || finished.stderr.contains(error), "{}", finished.stderr);
}

#[test]
fn one_worker_leaves_and_the_others_go_on() {
    let workers = example(PIPE, "workers");
    let printed = run(&mut program(&workers, &[])).succeeded();
    // Whichever result comes first is shown first.
    let (before, after) = printed.split_once("worker 2 has left\n").unwrap();
    for (part, fruits) in [
        (before, &["ORANGE", "APPLE", "PEAR", "PLUM", "FIG", "KIWI"][..]),
        (after, &["GRAPE", "LEMON", "MANGO"]),
    ] {
        assert_eq!(part.lines().count(), fruits.len(), "{printed}");
        assert!(fruits.iter().all(|fruit| part.contains(&format!(": {fruit}\n"))), "{printed}");
    }
    assert!(!after.contains("worker 2"), "{printed}");
    // Stopped before the first line: worker 1 has answered, the others wait.
    let stopped = Program::start_stopped_at(&mut program(&workers, &[]), 0);
    stopped.kill(stopped.role("worker 2"), Signal::SIGKILL);
    stopped.finish().failed(1, &["worker 2 was killed by SIGKILL"]);
}

#[test]
fn a_command_is_a_child_without_a_fork() {
    let command = example(PIPE, "command");
    let printed = run(&mut program(&command, &[])).succeeded();
    for name in ["Orange", "Apple", "Pear"] {
        let mut steps = printed.lines().filter_map(|line| line.strip_prefix(&format!("{name}: ")));
        assert!(steps.by_ref().eq(["peeled", "cut", "eaten"]), "{printed}");
    }
    assert!(printed.ends_with("the thread says 42\n"), "{printed}");
    // Stopped at the first line, each child in turn is killed: the error names it, unless it had ended by then.
    for (index, name) in ["Orange", "Apple", "Pear"].iter().enumerate() {
        let is_named = || {
            let stopped = Program::start_stopped_at(&mut program(&command, &[]), 0);
            stopped.kill(stopped.members()[index + 1], Signal::SIGKILL);
            let finished = stopped.finish();
            if finished.code() != 0 {
                finished.failed(1, &[&format!("{name}: signal: 9 (SIGKILL)")]);
                return true;
            }
            false
        };
        assert!((0..50).any(|_| is_named()), "{name} had always ended");
    }
    // A signal to the parent alone ends all, which have it unblocked.
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let mut running = Program::start(&mut program(&command, &[]));
        running.line();
        let child = *running.members().last().unwrap();
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
        assert!(blocked.is_none_or(|mask| mask == "0000000000000000"), "{status}");
        running.kill(running.pid(), signal);
        let finished = running.finish();
        assert!([0, code].contains(&finished.code()), "{}", finished.code());
    }
    // Whoever starts it may ignore its children.
    let mut ignoring = program("sh", &["-c", "trap '' CHLD; exec \"$0\"", &command]);
    run(&mut ignoring).succeeded();
}

#[test]
fn underneath_are_the_system_calls_of_the_readme() {
    tests::check_underneath(PIPE, "pipe");
}
