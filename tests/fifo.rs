//! The fifo program, as a user runs it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::{
    Program, block, check_accidents, check_console_blocks, check_kills, check_story, check_usage,
    example, give_to_nobody, has, list, program, program_of_nobody, readme_shows, run, skip,
    temp_dir, wait_for, with_tmpfs,
};

const FIFO: &str = env!("CARGO_BIN_EXE_fifo");

const STORY: &str = "cargo run -q -p fifo";

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(FIFO, "fifo", &[]);
}

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(FIFO, &[], STORY, 20);
}

#[test]
fn errors_name_the_killed_process() {
    check_accidents(FIFO, &[], &["consumer", "producer"], &readme_shows(STORY));
    check_kills(FIFO, &[], &["consumer", "producer"]);
}

#[test]
fn bad_arguments_are_refused() {
    check_usage(FIFO, "fifo");
}

/// One role in a terminal of its own, in the directory where the two meet.
fn role(role: &str, dir: &TempDir) -> Program {
    Program::start(program(FIFO, &[role]).current_dir(dir.path()))
}

/// A consumer whose FIFOs are there.
fn waiting_consumer(dir: &TempDir) -> Program {
    let mut consumer = role("consumer", dir);
    consumer.line_with("waits for a reader at pipe.out");
    consumer
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
        let dir = temp_dir();
        let (consumer, producer) = if consumer_first {
            (waiting_consumer(&dir), role("producer", &dir))
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
        assert_eq!(list(dir.path()), [""; 0], "left behind");
    }
}

#[test]
fn the_shell_is_a_producer_too() {
    let dir = temp_dir();
    let consumer = waiting_consumer(&dir);
    let cat = shell("cat pipe.out", dir.path());
    for line in ["msg 1", "msg 2", "exit"] {
        shell(&format!("echo '{line}' > pipe.in"), dir.path()).wait().unwrap();
    }
    let story = lines_of("consumer", &readme_shows(STORY));
    let shown: Vec<_> = story.into_iter().filter(|line| !line.contains("msg 3")).collect();
    assert_eq!(lines_of("consumer", &consumer.finish().succeeded()), shown);
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"msg 1\nmsg 2\n");
    assert_eq!(list(dir.path()), [""; 0], "left behind");
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
    let dir = temp_dir();
    let consumer = Command::new(FIFO)
        .arg("consumer")
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the FIFOs", &mut || dir.path().join("pipe.out").exists());
    let cat = shell("cat pipe.out", dir.path());
    // Lines of different lengths, up to a few hundred bytes.
    let write =
        "for i in $(seq LINES); do printf '%s %s %0*d\\n' NAME $i $((i * 2)) 0; done > pipe.in";
    let write = write.replace("LINES", &LINES.to_string());
    let writers: Vec<_> = (0..WRITERS)
        .map(|name| shell(&write.replace("NAME", &name.to_string()), dir.path()))
        .collect();
    let output = std::thread::spawn(|| cat.wait_with_output().unwrap().stdout);
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    shell("echo exit > pipe.in", dir.path()).wait().unwrap();
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
fn a_consumer_that_is_stopped_or_killed_removes_its_fifos() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let dir = temp_dir();
        let consumer = waiting_consumer(&dir);
        consumer.kill_group(signal);
        let finished = consumer.finish();
        assert_eq!((finished.code(), finished.stderr.as_str()), (code, ""));
        assert!(finished.stdout.ends_with(&format!("consumer | stops: {signal}\n")));
        assert_eq!(list(dir.path()), [""; 0], "left behind");
    }
    let dir = temp_dir();
    let consumer = waiting_consumer(&dir);
    consumer.kill(consumer.role("consumer"), Signal::SIGKILL);
    consumer.finish().failed(1, &["consumer was killed by SIGKILL"]);
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

/// What else has the names by then is the user's.
#[test]
fn a_consumer_removes_only_what_it_made() {
    let dir = temp_dir();
    let consumer = waiting_consumer(&dir);
    fs::remove_file(dir.path().join("pipe.in")).unwrap();
    fs::write(dir.path().join("pipe.in"), "three hours of results").unwrap();
    fs::rename(dir.path().join("pipe.out"), dir.path().join("kept")).unwrap();
    fifo::create(&dir.path().join("pipe.out")).unwrap();
    consumer.kill_group(Signal::SIGTERM);
    assert_eq!(consumer.finish().code(), 143);
    let mut left = list(dir.path());
    left.sort();
    assert_eq!(left, ["kept", "pipe.in", "pipe.out"]);
    assert_eq!(fs::read_to_string(dir.path().join("pipe.in")).unwrap(), "three hours of results");
}

#[test]
fn a_reader_or_a_consumer_that_leaves_is_an_error() {
    let dir = temp_dir();
    let mut consumer = waiting_consumer(&dir);
    let head = shell("head -1 pipe.out", dir.path());
    let mut writer = fifo::open_writer(&dir.path().join("pipe.in")).unwrap();
    fifo::write_line(&mut writer, "msg 1").unwrap();
    consumer.line_with("read  msg 1 from pipe.in, writes it to pipe.out");
    assert_eq!(head.wait_with_output().unwrap().stdout, b"msg 1\n");
    fifo::write_line(&mut writer, "msg 2").unwrap();
    consumer.finish().failed(1, &["write pipe.out: Broken pipe"]);
    assert_eq!(list(dir.path()), [""; 0], "left behind");

    let consumer = waiting_consumer(&dir);
    let mut requests = fifo::open_writer(&dir.path().join("pipe.in")).unwrap();
    let mut replies = fifo::open_reader(&dir.path().join("pipe.out")).unwrap();
    consumer.kill(consumer.pid(), Signal::SIGKILL);
    consumer.finish_killed();
    assert_eq!(std::io::Read::read(&mut replies, &mut [0]).unwrap(), 0);
    let error = fifo::write_line(&mut requests, "msg 1").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    // Nobody could remove them. The next consumer uses them; that it was not made by hand only pipe.in can show.
    drop((requests, replies));
    let consumer = waiting_consumer(&dir);
    role("producer", &dir).finish().succeeded();
    consumer.finish().succeeded();
    assert_eq!(list(dir.path()), ["pipe.out"]);
}

#[test]
fn a_role_that_is_stopped_can_be_started_again() {
    for first in ["consumer", "producer"] {
        let dir = temp_dir();
        let mut stopped = role(first, &dir);
        stopped.line();
        stopped.kill_group(Signal::SIGINT);
        assert_eq!(stopped.finish().code(), 130);
        let (consumer, producer) = (role("consumer", &dir), role("producer", &dir));
        producer.finish().succeeded();
        consumer.finish().succeeded();
        assert_eq!(list(dir.path()), [""; 0], "left behind");
    }
}

#[test]
fn a_shell_that_waits_is_let_go_and_what_it_wrote_is_told() {
    let dir = temp_dir();
    let consumer = waiting_consumer(&dir);
    let mut echo = shell("echo 'msg 1' > pipe.in", dir.path());
    assert!(echo.wait().unwrap().success());
    consumer.kill_group(Signal::SIGTERM);
    let printed = consumer.finish().stdout;
    assert!(printed.contains("consumer | leaves 6 bytes unread: msg 1\\n\n"), "{printed}");

    // One that a killed consumer left is the user's to remove, by `fifo::remove`.
    let consumer = waiting_consumer(&dir);
    consumer.kill(consumer.pid(), Signal::SIGKILL);
    consumer.finish_killed();
    let mut echo = shell("exec 2> /dev/null; exec echo 'msg 1' > pipe.in", dir.path());
    let cat = shell("exec cat pipe.out", dir.path());
    wait_for("both to open", &mut || waits_in_open(&echo) && waits_in_open(&cat));
    fifo::remove(&dir.path().join("pipe.in")).unwrap();
    fifo::remove(&dir.path().join("pipe.out")).unwrap();
    echo.wait().unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"");
}

/// It has not read ahead of `exit`.
#[test]
fn what_comes_after_exit_is_told() {
    let dir = temp_dir();
    let consumer = waiting_consumer(&dir);
    let cat = shell("exec cat pipe.out", dir.path());
    let mut printf = shell(r"printf 'msg 1\nexit\nmsg 2\n' > pipe.in", dir.path());
    assert!(printf.wait().unwrap().success());
    let printed = consumer.finish().stdout;
    assert!(printed.contains("consumer | leaves 6 bytes unread: msg 2\\n\n"), "{printed}");
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"msg 1\n");
}

#[test]
fn a_second_consumer_is_refused() {
    let dir = temp_dir();
    let first = waiting_consumer(&dir);
    let error = "collect pipe.in: another process collects its lines";
    role("consumer", &dir).finish().failed(1, &[error]);
    role("producer", &dir).finish().succeeded();
    first.finish().succeeded();
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

/// Also of many that start at once, and the FIFOs are those of the one that serves.
#[test]
fn of_many_consumers_that_start_at_once_one_serves() {
    for _ in 0..10 {
        let dir = temp_dir();
        let mut all: Vec<_> = (0..8).map(|_| Some(role("consumer", &dir))).collect();
        let runs = |one: &Option<Program>| {
            let stat = format!("/proc/{}/stat", one.as_ref().unwrap().pid());
            !fs::read_to_string(stat).unwrap().contains(") Z ")
        };
        wait_for("all but one to end", &mut || all.iter().filter(|one| runs(one)).count() == 1);
        role("producer", &dir).finish().succeeded();
        let finished = all.iter_mut().map(|one| one.take().unwrap().finish());
        let (served, refused): (Vec<_>, Vec<_>) = finished.partition(|one| one.code() == 0);
        assert_eq!(served.len(), 1);
        for one in refused {
            one.failed(1, &["another process collects its lines"]);
        }
        assert_eq!(list(dir.path()), [""; 0], "left behind");
    }
}

/// Started again at once, as a supervisor does: its children hold the lock for a moment.
#[test]
fn a_killed_consumer_can_be_started_again_at_once() {
    let dir = temp_dir();
    for _ in 0..20 {
        let consumer = waiting_consumer(&dir);
        consumer.kill(consumer.pid(), Signal::SIGKILL);
        drop(waiting_consumer(&dir));
    }
}

/// Whether a shell, or the program that it became, waits in openat(2).
fn waits_in_open(shell: &Child) -> bool {
    tests::waits_in(Pid::from_raw(shell.id() as i32), nix::libc::SYS_openat)
}

#[test]
fn a_producer_in_a_directory_that_is_removed_says_so() {
    let dir = temp_dir();
    let mut producer = role("producer", &dir);
    producer.line_with("waits for a consumer at pipe.in and pipe.out");
    fs::remove_dir(dir.path()).unwrap();
    producer.finish().failed(1, &["the directory '' was removed"]);
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    fs::write(&path, "precious").unwrap();
    let error = "open for collecting pipe.in: it is not a FIFO";
    role("consumer", &dir).finish().failed(1, &[error]);
    fs::write(dir.path().join("pipe.out"), "precious").unwrap();
    let error = "open for writing pipe.in: it is not a FIFO";
    role("producer", &dir).finish().failed(1, &[error]);
    for name in ["pipe.in", "pipe.out"] {
        assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "precious");
    }
    let missing = run(&mut program(FIFO, &["consumer", "/nonexistent"]));
    missing.failed(1, &["mkfifo /nonexistent/pipe.in: No such file or directory"]);
    let missing = run(&mut program(FIFO, &["producer", "/nonexistent"]));
    missing.failed(1, &["open /nonexistent: No such file or directory"]);
}

#[test]
fn a_directory_may_be_read_only_or_full() {
    let dir = temp_dir();
    let consumer = format!("exec '{FIFO}' consumer '{}'", dir.path().display());
    for (options, error) in [("ro", "Read-only file system"), ("nr_inodes=1", "No space left")] {
        let Some(mut command) = with_tmpfs(dir.path(), options, &consumer) else {
            return skip("a full disk (only root may mount)");
        };
        let error = format!("mkfifo {}: {error}", dir.path().join("pipe.in").display());
        run(&mut command).failed(1, &[&error]);
    }
}

#[test]
fn what_is_another_user_s_is_not_used() {
    let dir = temp_dir();
    let path = dir.path().join("pipe.in");
    fifo::create(&path).unwrap();
    if !give_to_nobody(&path) {
        fs::remove_file(&path).unwrap();
        if !nix::unistd::geteuid().is_root() {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
            let error = "mkfifo pipe.in: Permission denied";
            role("consumer", &dir).finish().failed(1, &[error]);
        }
        return skip("another user's FIFO (only root can make that)");
    }
    let error = "collect pipe.in: it belongs to user 65534";
    role("consumer", &dir).finish().failed(1, &[error]);
    assert_eq!(list(dir.path()), ["pipe.in"]);
    let args = ["consumer", dir.path().to_str().unwrap()];
    match program_of_nobody(FIFO, &args) {
        Some((mut nobody, _copy)) => run(&mut nobody).failed(1, &["Permission denied"]),
        None => skip("another user's view (TMPDIR lies where others may not enter)"),
    }
}

#[test]
fn python_can_be_either_side() {
    if !has("python3") {
        return skip("no python3 here: install it");
    }
    let dir = temp_dir();
    let python = |script: &str| {
        let script = block("python", &format!("# {script}.py: "));
        let mut command = Command::new("python3");
        command.args(["-c", script]).current_dir(dir.path()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let consumer = waiting_consumer(&dir);
    let output = python("producer").wait_with_output().unwrap();
    let printed = "read msg 1\nread msg 2\nread msg 3\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), printed);
    consumer.finish().succeeded();

    let mut consumer = python("consumer");
    role("producer", &dir).finish().succeeded();
    assert!(consumer.wait().unwrap().success());
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

#[test]
fn junk_is_an_error_that_says_what_it_is() {
    for (junk, error) in [
        (&b"\xff\n"[..], "read pipe.in: a line is not UTF-8"),
        (
            &[[b'x'; 10_000].as_slice(), b"\n"].concat(),
            "read pipe.in: a line is longer than 4096 bytes",
        ),
    ] {
        let dir = temp_dir();
        let consumer = waiting_consumer(&dir);
        let mut writer = fifo::open_writer(&dir.path().join("pipe.in")).unwrap();
        let reader = fifo::open_reader(&dir.path().join("pipe.out")).unwrap();
        std::io::Write::write_all(&mut writer, junk).unwrap();
        consumer.finish().failed(1, &[error]);
        drop(reader);
        assert_eq!(list(dir.path()), [""; 0], "left behind");
    }
}

#[test]
fn a_daemon_takes_commands_from_any_shell() {
    let control = example(FIFO, "control");
    let dir = temp_dir();
    let start = || Program::start(program(&control, &["."]).current_dir(dir.path()));
    let mut daemon = start();
    assert_eq!(daemon.line(), "waits for: echo status > ./control");
    start().finish().failed(1, &["another process collects its lines"]);
    let echo = |line: &str| {
        let written = shell(&format!("printf '{line}' > control"), dir.path()).wait().unwrap();
        assert!(written.success());
    };
    // Many shells at once, each gone before the next line is read.
    let shells: Vec<_> = (0..50).map(|_| shell("echo reload > control", dir.path())).collect();
    shells.into_iter().for_each(|mut shell| assert!(shell.wait().unwrap().success()));
    (0..50).for_each(|_| assert_eq!(daemon.line(), "reload: done"));
    echo("status\\n");
    assert_eq!(daemon.line(), "status: 50 reloads");
    echo("\\377\\n");
    assert_eq!(daemon.line(), "skipped: a line is not UTF-8");
    echo(&("x".repeat(5000) + "\\nnonsense\\n"));
    assert_eq!(daemon.line(), "skipped: a line is longer than 4096 bytes");
    assert_eq!(daemon.line(), "unknown command: \"nonsense\"");
    echo("stat");
    echo("us\\r\\n");
    assert_eq!(daemon.line(), "status: 50 reloads");
    echo("quit\\nstatus\\nstat");
    assert_eq!(daemon.line(), "quit");
    assert_eq!(daemon.line(), "not done: \"status\"");
    assert_eq!(daemon.line(), "without its end, not done: \"stat\"");
    daemon.finish().succeeded();
    assert_eq!(list(dir.path()), [""; 0], "left behind");
    let missing = run(&mut program(&control, &["/nonexistent"]));
    missing.failed(1, &["mkfifo /nonexistent/control: No such file or directory"]);
}

#[test]
fn a_daemon_works_off_what_it_was_given_and_removes_only_what_it_made() {
    const LINES: usize = 5000;
    let control = example(FIFO, "control");
    let dir = temp_dir();
    let path = dir.path().join("control");
    let start = || Program::start(program(&control, &["."]).current_dir(dir.path()));
    for (signal, code) in [
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
        (Signal::SIGQUIT, 131),
        (Signal::SIGTERM, 143),
    ] {
        let mut daemon = start();
        daemon.line();
        daemon.kill(daemon.pid(), Signal::SIGSTOP);
        let mut writer = fifo::open_writer(&path).unwrap();
        std::io::Write::write_all(&mut writer, "status\n".repeat(LINES).as_bytes()).unwrap();
        daemon.kill(daemon.pid(), signal);
        daemon.kill(daemon.pid(), Signal::SIGCONT);
        let finished = daemon.finish();
        assert_eq!((finished.code(), finished.stderr.as_str()), (code, ""));
        assert_eq!(finished.stdout.matches("status: 0 reloads\n").count(), LINES);
        assert!(!path.exists());
    }
    // What takes long does not hold up the end: what is left then is told.
    let mut daemon = start();
    daemon.line();
    let mut writer = fifo::open_writer(&path).unwrap();
    std::io::Write::write_all(&mut writer, "save\n".repeat(200).as_bytes()).unwrap();
    daemon.line_with("save: done");
    daemon.kill(daemon.pid(), Signal::SIGTERM);
    let finished = daemon.finish();
    assert_eq!((finished.code(), finished.stderr.as_str()), (143, ""));
    let count = |what| finished.stdout.matches(what).count();
    assert!(count("not done: \"save\"\n") > 0, "{}", finished.stdout);
    assert_eq!(count("save: done") + count("not done: "), 200);
    // What a killed daemon left is used, and removed by the next that ends; what somebody made stays.
    let mut daemon = start();
    daemon.line();
    daemon.kill(daemon.pid(), Signal::SIGKILL);
    daemon.finish_killed();
    assert!(path.exists());
    let mut daemon = start();
    daemon.line();
    daemon.kill_group(Signal::SIGINT);
    assert_eq!(daemon.finish().code(), 130);
    assert!(!path.exists());
    fifo::create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    for _ in 0..20 {
        let mut daemon = start();
        daemon.line();
        daemon.kill(daemon.pid(), Signal::SIGKILL); // and started again at once
        drop(daemon);
    }
    let mut daemon = start();
    daemon.line();
    daemon.kill_group(Signal::SIGINT);
    assert_eq!(daemon.finish().code(), 130);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o620);
}

#[test]
fn what_a_busy_writer_has_written_is_told_when_the_daemon_ends() {
    let control = example(FIFO, "control");
    for made_by_hand in [false, true] {
        let dir = temp_dir();
        let path = dir.path().join("control");
        if made_by_hand {
            fifo::create(&path).unwrap();
        }
        let mut daemon = Program::start(program(&control, &["."]).current_dir(dir.path()));
        daemon.line();
        let mut writer = fifo::open_writer(&path).unwrap();
        // Until nobody reads any more.
        let mut written = 0;
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                loop {
                    match fifo::write_line(&mut writer, "n") {
                        Ok(()) => written += 1,
                        Err(error) if error.kind() == ErrorKind::BrokenPipe => return written,
                        error => error.unwrap(),
                    }
                }
            });
            daemon.line_with("\"n\"");
            daemon.kill(daemon.pid(), Signal::SIGTERM);
            let finished = daemon.finish();
            let told = finished.stdout.lines().filter(|line| line.ends_with(": \"n\"")).count();
            let written: usize = writer.join().unwrap();
            assert_eq!((finished.code(), told), (143, written));
        });
        assert_eq!(path.exists(), made_by_hand);
    }
}

#[test]
fn a_daemon_goes_on_without_its_log() {
    let control = example(FIFO, "control");
    let dir = temp_dir();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, closed) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    drop(reader);
    for (stdout, said) in [(full.into(), "write stdout: No space left"), (Stdio::from(closed), "")]
    {
        let mut command = program(&control, &["."]);
        command.current_dir(dir.path()).stdout(stdout).stderr(Stdio::piped());
        let mut daemon = command.spawn().unwrap();
        wait_for("the FIFO", &mut || dir.path().join("control").exists());
        for line in ["status", "nonsense", "quit"] {
            shell(&format!("echo {line} > control"), dir.path()).wait().unwrap();
        }
        assert!(daemon.wait().unwrap().success());
        let stderr = std::io::read_to_string(daemon.stderr.take().unwrap()).unwrap();
        assert!(stderr.starts_with(said) && stderr.lines().count() <= 1, "{stderr}");
    }
}

#[test]
fn underneath_are_the_system_calls_of_the_readme() {
    tests::check_underneath(FIFO, "fifo");
}
