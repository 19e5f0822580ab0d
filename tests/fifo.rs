//! The fifo program, as a user runs it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use support::{
    Program, TempDir, check_accidents, check_console_blocks, check_kills, check_story, list,
    program, readme_shows, run, skip, with_tmpfs,
};

const FIFO: &str = env!("CARGO_BIN_EXE_fifo");

const STORY: &str = "cargo run -q -p fifo";

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(FIFO, "fifo", &["cargo run -q -p fifo consumer"]);
}

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(FIFO, &[], STORY, 20);
}

#[test]
fn who_is_killed_is_named() {
    check_accidents(FIFO, &["consumer", "producer"], &readme_shows(STORY));
    check_kills(FIFO, &[], &["consumer", "producer"]);
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(FIFO, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p fifo "), "{help}");
    let error = "error: expected nothing, 'consumer [DIR]' or 'producer [DIR]', not 'x y' ";
    run(&mut program(FIFO, &["x", "y"])).failed(2, &[error]);
}

/// One role in a terminal of its own, in the directory where the two meet.
fn role(role: &str, dir: &TempDir) -> Program {
    Program::start(program(FIFO, &[role]).current_dir(&dir.0))
}

/// The lines of one role in the story.
fn lines_of(role: &str, text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.trim().starts_with(role));
    lines
        .filter(|line| !line.contains("waits for") && !line.contains("echoes"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn two_terminals_in_either_order() {
    for consumer_first in [true, false] {
        let dir = TempDir::new();
        let (consumer, producer) = if consumer_first {
            let mut consumer = role("consumer", &dir);
            consumer.line_with("waits for a writer at pipe.in");
            (consumer, role("producer", &dir))
        } else {
            let mut producer = role("producer", &dir);
            producer.line_with("waits for a consumer at pipe.in and pipe.out");
            (role("consumer", &dir), producer)
        };
        let story = readme_shows(STORY);
        for (name, program) in [("consumer", consumer), ("producer", producer)] {
            let printed = program.finish().succeeded();
            assert_eq!(lines_of(name, &printed), lines_of(name, &story), "{printed}");
        }
        assert_eq!(list(&dir.0), [""; 0], "left behind");
    }
}

#[test]
fn the_shell_is_a_producer_too() {
    let dir = TempDir::new();
    let shown = readme_shows("cargo run -q -p fifo consumer");
    let mut consumer = role("consumer", &dir);
    consumer.line_with("waits for a writer at pipe.in");
    let cat = shell("cat pipe.out", &dir.0);
    for line in ["msg 1", "msg 2", "exit"] {
        shell(&format!("echo '{line}' > pipe.in"), &dir.0).wait().unwrap();
    }
    assert_eq!(consumer.finish().succeeded(), shown);
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"msg 1\nmsg 2\n");
    assert_eq!(list(&dir.0), [""; 0], "left behind");
}

fn shell(command: &str, dir: &Path) -> Child {
    Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn several_producers_do_not_mix_lines() {
    const WRITERS: usize = 4;
    const LINES: usize = 200;
    let dir = TempDir::new();
    let consumer = Command::new(FIFO)
        .arg("consumer")
        .current_dir(&dir.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    support::wait_for("the FIFOs", &mut || dir.join("pipe.out").exists());
    let cat = shell("cat pipe.out", &dir.0);
    // Lines of different lengths, up to a few hundred bytes.
    let write =
        "for i in $(seq LINES); do printf '%s %s %0*d\\n' NAME $i $((i * 2)) 0; done > pipe.in";
    let write = write.replace("LINES", &LINES.to_string());
    let writers: Vec<_> =
        (0..WRITERS).map(|name| shell(&write.replace("NAME", &name.to_string()), &dir.0)).collect();
    let output = std::thread::spawn(|| cat.wait_with_output().unwrap().stdout);
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    shell("echo exit > pipe.in", &dir.0).wait().unwrap();
    assert!(consumer.wait_with_output().unwrap().status.success());

    let output = String::from_utf8(output.join().unwrap()).unwrap();
    let mut counts = BTreeMap::new();
    for line in output.lines() {
        let [name, i, zeros] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("a mixed line: {line}");
        };
        let count = counts.entry(name.to_owned()).or_insert(0);
        *count += 1;
        assert_eq!((i, zeros.len()), (&*count.to_string(), *count * 2), "{line}");
    }
    let expected = (0..WRITERS).map(|name| (name.to_string(), LINES));
    assert_eq!(counts, expected.collect());
}

#[test]
fn a_reader_that_leaves_is_waited_for() {
    let dir = TempDir::new();
    let mut consumer = role("consumer", &dir);
    consumer.line_with("waits for a writer at pipe.in");
    let writer = fifo::open_writer(&dir.join("pipe.in"), None);
    let mut writer = writer.unwrap();
    fifo::write_line(&mut writer, "msg 1").unwrap();
    consumer.line_with("waits for a reader at pipe.out");
    let head = shell("head -1 pipe.out", &dir.0);
    assert_eq!(head.wait_with_output().unwrap().stdout, b"msg 1\n");
    fifo::write_line(&mut writer, "msg 2").unwrap();
    consumer.line_with("the last reader has left, waits for another at pipe.out");
    let head = shell("head -1 pipe.out", &dir.0);
    assert_eq!(head.wait_with_output().unwrap().stdout, b"msg 2\n");
    fifo::write_line(&mut writer, "exit").unwrap();
    consumer.finish().succeeded();
}

#[test]
fn a_consumer_that_is_stopped_or_killed_removes_its_fifos() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let dir = TempDir::new();
        let mut consumer = role("consumer", &dir);
        consumer.line_with("waits for a writer at pipe.in");
        consumer.kill_group(signal);
        consumer.finish().failed(code, &[&format!("stopped by {signal}")]);
        assert_eq!(list(&dir.0), [""; 0], "left behind");
    }
    let dir = TempDir::new();
    let mut consumer = role("consumer", &dir);
    consumer.line_with("waits for a writer at pipe.in");
    consumer.kill(consumer.role("consumer"), Signal::SIGKILL);
    consumer.finish().failed(1, &["consumer was killed by SIGKILL"]);
    assert_eq!(list(&dir.0), [""; 0], "left behind");
}

#[test]
fn a_consumer_that_dies_is_an_error_for_the_producer() {
    let dir = TempDir::new();
    let mut consumer = role("consumer", &dir);
    consumer.line_with("waits for a writer at pipe.in");
    // A producer of ours that has opened both and waits for the answer.
    let mut requests = fifo::open_writer(&dir.join("pipe.in"), None).unwrap();
    let mut replies = fifo::open_reader(&dir.join("pipe.out"), None).unwrap();
    consumer.kill(consumer.pid(), Signal::SIGKILL);
    consumer.finish_killed();
    assert_eq!(std::io::Read::read(&mut replies, &mut [0]).unwrap(), 0);
    let error = fifo::write_line(&mut requests, "msg 1").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    // Nobody could remove them; the next run uses them, and leaves them to whoever cleans up.
    drop((requests, replies));
    let mut consumer = role("consumer", &dir);
    consumer.line_with("waits for a writer at pipe.in");
    role("producer", &dir).finish().succeeded();
    consumer.finish().succeeded();
    assert_eq!(list(&dir.0).len(), 2);
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let dir = TempDir::new();
    let path = dir.join("pipe.in");
    fs::write(&path, "precious").unwrap();
    for name in ["consumer", "producer"] {
        let finished = role(name, &dir).finish();
        finished.failed(1, &["mkfifo pipe.in: exists and is a regular file"]);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(list(&dir.0), ["pipe.in"]);
    let missing = run(&mut program(FIFO, &["consumer", "/nonexistent"]));
    missing.failed(1, &["mkfifo /nonexistent/pipe.in: No such file or directory"]);
}

#[test]
fn a_directory_may_be_read_only_full_or_somebody_else_s() {
    let dir = TempDir::new();
    if !nix::unistd::geteuid().is_root() {
        fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o500)).unwrap();
        let denied = "mkfifo pipe.in: Permission denied";
        role("consumer", &dir).finish().failed(1, &[denied]);
        return skip("a full disk, and another user's FIFO (only root can make them)");
    }
    let consumer = format!("exec {FIFO} consumer {}", dir.0.display());
    for (options, error) in [("ro", "Read-only file system"), ("nr_inodes=1", "No space left")] {
        let mut command = with_tmpfs(&dir.0, options, &consumer).unwrap();
        let error = format!("mkfifo {}: {error}", dir.join("pipe.in").display());
        run(&mut command).failed(1, &[&error]);
    }
    let path = dir.join("pipe.in");
    fifo::create(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let error = "mkfifo pipe.in: exists and belongs to user 65534";
    role("consumer", &dir).finish().failed(1, &[error]);
    assert_eq!(list(&dir.0), ["pipe.in"]);
    let mut nobody = program(FIFO, &["consumer", dir.0.to_str().unwrap()]);
    std::os::unix::process::CommandExt::uid(&mut nobody, 65534);
    run(&mut nobody).failed(1, &["Permission denied"]);
}

#[test]
fn junk_is_an_error_that_says_what_it_is() {
    for (junk, error) in [
        (&b"\xff\n"[..], "read pipe.in: a line is not UTF-8"),
        (&[b'x'; 10_000], "read pipe.in: a line is longer than 4096 bytes"),
    ] {
        let dir = TempDir::new();
        let mut consumer = role("consumer", &dir);
        consumer.line_with("waits for a writer at pipe.in");
        let mut writer = fifo::open_writer(&dir.join("pipe.in"), None).unwrap();
        let reader = fifo::open_reader(&dir.join("pipe.out"), None).unwrap();
        std::io::Write::write_all(&mut writer, junk).unwrap();
        consumer.finish().failed(1, &[error]);
        drop(reader);
        assert_eq!(list(&dir.0), [""; 0], "left behind");
    }
}
