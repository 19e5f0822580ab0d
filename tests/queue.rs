//! The queue program, as a user runs it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ipc_channel::ipc::IpcSender;
use nix::sys::signal::{Signal, kill};
use tests::{
    Program, can_trace, check_accidents, check_console_blocks, check_kills, check_story,
    check_usage, example, normalised, numbers, program, readme_shows, run, skip,
};

const QUEUE: &str = env!("CARGO_BIN_EXE_queue");

const STORY: &str = "cargo run -q -p queue";
const CHANNEL: &str = "cargo run -q -p queue channel";

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(QUEUE, "queue", &["cargo run -q -p queue consumer"]);
}

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(QUEUE, &[], STORY, 20);
}

#[test]
fn the_limits_are_the_ones_in_the_readme() {
    check_story(QUEUE, &["limits"], "cargo run -q -p queue limits", 20);
}

#[test]
fn workers_do_each_job_once() {
    let shown = readme_shows("cargo run -q -p queue workers");
    let programs: Vec<_> =
        (0..5).map(|_| Program::start(&mut program(QUEUE, &["workers"]))).collect();
    for program in programs {
        let printed = program.finish().succeeded();
        assert_eq!(normalised(&printed), normalised(&shown));
        let did = printed.lines().filter(|line| line.contains(" did "));
        assert_eq!(did.map(|line| numbers(line)[1]).sum::<u64>(), 1000, "{printed}");
    }
}

#[test]
fn errors_name_the_killed_process() {
    check_accidents(QUEUE, &[], &["producer", "consumer"], &readme_shows(STORY));
    check_kills(QUEUE, &[], &["producer", "consumer"]);
}

#[test]
fn bad_arguments_are_refused() {
    check_usage(QUEUE, "queue");
}

#[test]
fn errors_name_the_killed_process_of_a_demonstration() {
    check_kills(QUEUE, &["limits"], &["producer", "consumer"]);
    check_kills(QUEUE, &["workers"], &["boss", "collector", "worker 1", "worker 2", "worker 3"]);
}

#[test]
fn on_an_old_kernel_the_missing_call_is_named() {
    if !can_trace() {
        return skip("no strace here to play an old kernel: install it");
    }
    for (call, error) in [
        ("pipe2", "pipe2 (queue): Function not implemented"),
        ("memfd_create", "memfd_create (queue): Function not implemented"),
    ] {
        let inject = format!("inject={call}:error=ENOSYS");
        let mut strace = program("strace", &["-f", "-qq", "-o", "/dev/null", "-e", &inject, QUEUE]);
        run(&mut strace).failed(1, &[error]);
    }
}

#[test]
fn the_channel_is_the_one_in_the_readme() {
    check_story(QUEUE, &["channel"], CHANNEL, 20);
}

#[test]
fn errors_name_the_killed_process_of_a_channel() {
    let roles = ["producer", "consumer"];
    check_accidents(QUEUE, &["channel"], &roles, &readme_shows(CHANNEL));
    check_kills(QUEUE, &["channel"], &roles);
}

/// The consumer in a terminal of its own, and the name that it prints for the producer.
fn consumer() -> (Program, String) {
    let mut consumer = Program::start(&mut program(QUEUE, &["consumer"]));
    let line = consumer.line();
    let (_, name) = line.split_once("waits for: cargo run -p queue producer ").unwrap();
    (consumer, name.to_owned())
}

fn producer(name: &str) -> Program {
    Program::start(&mut program(QUEUE, &["producer", name]))
}

#[test]
fn two_terminals_share_a_channel() {
    // What the README shows, with another name.
    let shown = readme_shows("cargo run -q -p queue consumer");
    let without_name = |text: &str| text.split_once('\n').unwrap().1.to_owned();
    let (mut consumer, name) = consumer();
    let printed = producer(&name).finish().succeeded();
    let story = readme_shows(CHANNEL);
    let lines = story.lines().filter(|line| line.contains("producer |"));
    assert!(printed.lines().eq(lines), "{printed}");
    consumer.line_with("got Disconnected: the end");
    assert_eq!(without_name(&consumer.finish().succeeded()), without_name(&shown));
}

#[test]
fn only_this_user_reaches_the_consumer_whatever_the_umask() {
    let mut command = program("sh", &["-c", "umask 000; exec \"$0\" consumer", QUEUE]);
    let mut consumer = Program::start(&mut command);
    let line = consumer.line();
    let socket = Path::new(line.rsplit(' ').next().unwrap());
    let directory = socket.parent().unwrap().metadata().unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    consumer.kill_group(Signal::SIGINT);
    let finished = consumer.finish();
    assert_eq!((finished.code(), finished.stderr.as_str()), (130, ""));
    assert!(finished.stdout.ends_with("  consumer | stops: SIGINT\n"), "{}", finished.stdout);
}

/// Where one was killed, the other one says what happened; or it had done its part by then.
#[track_caller]
fn check_survivor(finished: tests::Finished, errors: &[&str]) {
    let error = finished.stderr.lines().next().unwrap_or_default();
    let named = errors.iter().any(|end| error.ends_with(end));
    assert!(finished.code() == 0 || finished.code() == 1 && named, "{}", finished.stderr);
}

const CONSUMER_IS_GONE: [&str; 8] = [
    "/socket: Connection refused (os error 111)",
    "error: send the receiving end: Broken pipe (os error 32)",
    "error: send the receiving end: Connection reset by peer (os error 104)",
    "error: put product: Broken pipe (os error 32)",
    "error: put product: Connection reset by peer (os error 104)",
    "error: get result: the other side is gone",
    "error: get result: Connection reset by peer (os error 104)",
    "/socket: No such file or directory (os error 2)",
];

const PRODUCER_IS_GONE: [&str; 4] = [
    "error: accept a producer: the other side is gone",
    "error: get product: the other side is gone",
    "error: put result: Broken pipe (os error 32)",
    "error: put result: Connection reset by peer (os error 104)",
];

#[test]
fn strangers_notice_each_other_s_death() {
    // The victim is the role, or the parent that watches it, killed after each line.
    for victim in ["consumer", "queue"] {
        for lines in 0..=4 {
            let (mut consumer, name) = consumer();
            let pid = consumer.role(victim);
            let producer = producer(&name);
            (0..lines).for_each(|_| drop(consumer.line()));
            let _ = kill(pid, Signal::SIGKILL); // it may have ended
            check_survivor(producer.finish(), &CONSUMER_IS_GONE);
            consumer.finish_killed();
        }
    }
    let story = readme_shows(CHANNEL);
    let own = story.lines().filter(|line| line.contains("producer |"));
    let own: Vec<usize> = own.map(|line| line.len() + 1).collect();
    for line in 0..own.len() {
        let (consumer, name) = consumer();
        let room = own[..line].iter().sum();
        // Stopped where this line is to be printed: the consumer waits for it.
        let producer = Program::start_stopped_at(&mut program(QUEUE, &["producer", &name]), room);
        producer.kill(producer.pid(), Signal::SIGKILL);
        producer.finish_killed();
        check_survivor(consumer.finish(), &PRODUCER_IS_GONE);
    }
}

#[test]
fn a_consumer_serves_one_producer() {
    let (mut consumer, name) = consumer();
    // With its first line the producer has been accepted, or is about to be.
    let first = Program::start_stopped_at(&mut program(QUEUE, &["producer", &name]), 0);
    check_survivor(producer(&name).finish(), &CONSUMER_IS_GONE);
    first.finish().succeeded();
    consumer.line_with("got Disconnected: the end");
    consumer.finish().succeeded();
}

#[test]
fn a_producer_that_ends_at_once_is_an_error() {
    let (consumer, name) = consumer();
    drop(IpcSender::<u8>::connect(name).unwrap());
    let error = "consumer: error: accept a producer: the other side is gone\n";
    consumer.finish().failed(1, &[error]);
}

#[test]
fn a_name_or_a_directory_that_cannot_be_is_refused() {
    let error = "producer: error: connect /nonexistent/socket: No such file or directory";
    run(&mut program(QUEUE, &["producer", "/nonexistent/socket"])).failed(1, &[error]);
    let long = "x".repeat(108);
    let limit = format!("{long}: the path of a socket is UTF-8, and up to 107 bytes long");
    run(&mut program(QUEUE, &["producer", &long])).failed(1, &[&limit]);
    // In TMPDIR, which `Program` sets.
    let consumer = |tmpdir: &str| {
        let set = "mkdir \"$TMPDIR/$1\"; export TMPDIR=\"$TMPDIR/$2\"; \"$0\" consumer; \
                   code=$?; rmdir \"${TMPDIR%/*}/$1\"; exit $code";
        let made = if tmpdir == "missing" { "made" } else { tmpdir };
        run(&mut program("sh", &["-c", set, QUEUE, made, tmpdir]))
    };
    let error = "error: make a directory for the socket: No such file or directory";
    consumer("missing").failed(1, &[error]);
    consumer(&long)
        .failed(1, &["/socket: the path of a socket is UTF-8, and up to 107 bytes long"]);
}

#[test]
fn a_pool_hashes_the_files_of_a_directory_in_order() {
    let pool = example(QUEUE, "pool");
    let dir = tests::temp_dir();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for i in 0..100 {
        std::fs::write(path(&format!("{i:02}")), i.to_string()).unwrap();
    }
    std::fs::create_dir(path("50x")).unwrap(); // a job that fails is a result
    let args = [dir.path().to_str().unwrap()];
    let printed = run(&mut program(&pool, &args)).succeeded();
    let names: Vec<_> = printed.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert!(names.is_sorted() && names.len() == 101, "{printed}");
    assert!(printed.contains(&format!("is a directory    {}\n", path("50x"))), "{printed}");
    // A worker that reads this one waits, until it is killed.
    fifo_at(&path("99x"));
    let running = Program::start(&mut program(&pool, &args));
    let mut victim = None;
    tests::wait_for("a worker to wait", &mut || {
        let open = |pid: &nix::unistd::Pid| tests::waits_in(*pid, nix::libc::SYS_openat);
        victim = running.members().into_iter().find(open);
        victim.is_some()
    });
    running.kill(victim.unwrap(), Signal::SIGKILL);
    let finished = running.finish();
    assert!(finished.stderr.contains("was killed by SIGKILL"), "{}", finished.stderr);
    assert!(finished.stderr.contains("worker "), "{}", finished.stderr);
    assert_eq!(finished.code(), 1);
    run(&mut program(&pool, &["/nonexistent"])).failed(1, &["read /nonexistent"]);
}

fn fifo_at(path: &str) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn the_workers_of_a_channel_end_when_the_boss_has_left() {
    let workers = example(QUEUE, "channel_workers");
    for _ in 0..20 {
        let printed = run(&mut program(&workers, &[])).succeeded();
        assert_eq!(printed, "1000 of 1000 jobs done, and all have left\n");
    }
    check_kills(&workers, &[], &["boss", "worker 1", "worker 2", "worker 3"]);
}

#[test]
fn a_long_value_goes_through_shared_memory() {
    let printed = run(&mut program(&example(QUEUE, "long_value"), &[])).succeeded();
    assert_eq!(printed, "the sum of 8388608 bytes is 8388608\n");
}

#[test]
fn underneath_are_the_system_calls_of_the_readme() {
    tests::check_underneath(QUEUE, "queue");
}
