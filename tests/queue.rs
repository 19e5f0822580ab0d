//! The queue program, as a user runs it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ipc_channel::ipc::IpcSender;
use nix::sys::signal::{Signal, kill};
use queue::Queue;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;
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

/// Whether a value comes out of a queue as it went in; `put` or `get` may refuse it instead.
fn survives<T: Serialize + DeserializeOwned + Clone + PartialEq>(value: T) -> Option<bool> {
    let queue = Queue::new(1).unwrap();
    queue.try_put(value.clone()).ok()?;
    Some(queue.try_get().ok()? == value)
}

/// What the README says of values.
#[test]
fn values_come_out_as_they_went_in() {
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    struct Unit;
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    struct Newtype(Option<u8>);
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    enum Plain {
        Unit,
        One(u8),
        Two(u8, u8),
        Named { x: u8 },
        Optional(Option<u8>),
        Nothing(()),
    }
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(i64),
        Address(IpAddr),
        Text(String),
        Pair { left: u8, right: Option<u8> },
        List(Vec<String>),
        Nothing,
    }
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum UntaggedBig {
        Big(u128),
    }
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Nothing,
        Count { count: u32 },
        Address { at: IpAddr, after: Duration },
        Map(BTreeMap<String, u8>),
        Bytes { bytes: ByteBuf },
        Mixed { letter: char, number: f32, unit: () },
        Big { big: u128 },
    }
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind", content = "content")]
    enum Adjacent {
        Optional(Option<u8>),
        Nothing,
        Address(IpAddr),
    }
    #[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
    struct Sparse {
        #[serde(skip_serializing_if = "Option::is_none")]
        one: Option<Vec<u8>>,
        two: Vec<u8>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        three: Vec<u8>,
        #[serde(flatten)]
        more: BTreeMap<String, IpAddr>,
    }
    #[derive(Clone, PartialEq, Serialize, Deserialize)]
    struct Deep {
        next: Option<Box<Deep>>,
    }
    let at: IpAddr = "::1".parse().unwrap();
    let deep = (0..100).fold(None, |deep, _| Some(Box::new(Deep { next: deep })));
    let json = serde_json::json!({ "id": 7, "next": null, "list": [null, 1.5, "x", {}] });
    let kept = [
        survives(String::from("a\0b😀")),
        survives(('é', true, (), ((),))),
        survives((i128::MIN, u128::MAX, i64::MIN, u64::MAX, 0u8, -1i8)),
        survives((1u128 << 64, -(1i128 << 63) - 1)),
        survives((f32::MIN_POSITIVE, f64::NEG_INFINITY, -0.0f64, 1.1f32)),
        survives([1u8; 32]),
        survives(vec![0u8; 1000]),
        survives(ByteBuf::from(vec![7; 1000])),
        survives((1u8, 2u8, 3u8, 4u8, 5u8, 6u8, 7u8, 8u8, 9u8, 10u8, 11u8, 12u8)),
        survives([None, Some(1), Some(0)]),
        survives(vec![(), ()]),
        survives(None::<()>),
        survives(Ok::<(), String>(())),
        survives(Err::<(), String>("x".into())),
        survives(Unit),
        survives(Newtype(None)),
        survives(vec![Plain::Unit, Plain::One(1), Plain::Two(1, 2), Plain::Named { x: 1 }]),
        survives(vec![Plain::Optional(None), Plain::Optional(Some(1)), Plain::Nothing(())]),
        survives(vec![Some(Plain::Unit), None]),
        survives(Untagged::Number(-7)),
        survives(Untagged::Address(at)),
        survives(Untagged::Text("Orange".into())),
        survives(Untagged::Pair { left: 1, right: None }),
        survives(Untagged::List(vec!["x".into()])),
        survives(Untagged::Nothing),
        survives(vec![Tagged::Nothing, Tagged::Count { count: 3 }]),
        survives(Tagged::Address { at, after: Duration::MAX }),
        survives(Tagged::Map([("x".into(), 1)].into())),
        survives(Tagged::Bytes { bytes: vec![1, 2].into() }),
        survives(Tagged::Mixed { letter: 'é', number: 1.1, unit: () }),
        survives(vec![Adjacent::Optional(None), Adjacent::Optional(Some(1)), Adjacent::Nothing]),
        survives(Adjacent::Address(at)),
        survives(Sparse { two: vec![1], three: vec![0, 0], ..Sparse::default() }),
        survives(Sparse {
            one: Some(vec![7]),
            more: [("x".into(), at)].into(),
            ..Sparse::default()
        }),
        survives(vec![None, Some(Sparse::default())]),
        survives([(Some(1u8), 1u8), (None, 2)].into_iter().collect::<BTreeMap<_, _>>()),
        survives([((1u8, 'x'), "y".to_owned())].into_iter().collect::<BTreeMap<_, _>>()),
        survives(json.clone()),
        survives(serde_json::Value::Null),
        survives((at, "127.0.0.1:80".parse::<std::net::SocketAddr>().unwrap())),
        survives(Duration::from_nanos(1)),
        survives(std::time::SystemTime::now()),
        survives(std::path::PathBuf::from("/x")),
        survives(std::ffi::OsString::from("x")),
        survives((1..3, std::num::Wrapping(3))),
        survives(deep),
    ];
    let lost: Vec<_> = (0..kept.len()).filter(|&at| kept[at] != Some(true)).collect();
    assert!(kept.len() >= 40 && lost.is_empty(), "of the values above, {lost:?}");
    // As in JSON, silently.
    assert_eq!(survives(Some(None::<u8>)), Some(false));
    assert_eq!(survives(Some(())), Some(false));
    assert_eq!(survives(Some(Newtype(None))), Some(false));
    // Refused.
    assert_eq!(survives(UntaggedBig::Big(1 << 100)), None);
    assert_eq!(survives(Tagged::Big { big: 1 << 100 }), None);
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
    assert!(printed.contains(&format!("not a file        {}\n", path("50x"))), "{printed}");
    // Neither a FIFO nor a name that is no text holds it up; and nobody need read what it prints.
    nix::unistd::mkfifo(&*path("99x"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "two").unwrap();
    let printed = run(&mut program(&pool, &args)).succeeded();
    assert!(printed.contains(&format!("not a file        {}\n", path("99x"))), "{printed}");
    assert_eq!(printed.lines().count(), 103);
    let mut unread = Program::start(&mut program(&pool, &args));
    unread.close_stdout();
    unread.finish().succeeded();
    run(&mut program(&pool, &["/nonexistent"])).failed(1, &["read /nonexistent"]);
}

/// Also while the others still deliver, and long before they are done.
#[test]
fn a_pool_notices_a_killed_worker_at_once() {
    let pool = example(QUEUE, "pool");
    let dir = tests::temp_dir();
    std::fs::write(dir.path().join("0"), vec![0; 1 << 20]).unwrap();
    for i in 1..1000 {
        std::fs::hard_link(dir.path().join("0"), dir.path().join(i.to_string())).unwrap();
    }
    let args = [dir.path().to_str().unwrap()];
    for worker in ["worker 1", "worker 2", "worker 3"] {
        let mut running = Program::start(&mut program(&pool, &args));
        running.line();
        running.kill(running.role(worker), Signal::SIGKILL);
        let finished = running.finish();
        assert!(finished.stdout.lines().count() < 500, "{}", finished.stdout.lines().count());
        finished.failed(1, &[&format!("{worker} was killed by SIGKILL")]);
    }
}

#[test]
fn a_pool_on_redis_loses_no_job() {
    let dir = tests::temp_dir();
    let socket = dir.path().join("redis");
    let args = ["--port", "0", "--save", "", "--unixsocket", socket.to_str().unwrap()];
    let mut redis = program("redis-server", &args);
    if !tests::has("redis-server") {
        return skip("no redis-server here: install it");
    }
    let redis = Program::start(redis.args(["--dir", dir.path().to_str().unwrap()]));
    let url = format!("redis+unix://{}", socket.display());
    let pool = example(QUEUE, "redis_pool");
    tests::wait_for("redis", &mut || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let results = (0..100u64).map(|job| format!("{job} squared: {}\n", job * job));
    let expected = results.collect::<String>() + "100 jobs done, none lost\n";
    // What one run leaves counts for nothing in the next.
    for run in ["one", "two"] {
        let start = |role: &str| Program::start(&mut program(&pool, &[role, &url, run]));
        let mut workers: Vec<_> = (0..3).map(|_| start("worker")).collect();
        workers.iter_mut().for_each(|worker| drop(worker.line()));
        // Each of the roles is killed: the boss before its only command, or after it.
        let boss = start("boss");
        boss.kill(boss.pid(), Signal::SIGKILL);
        boss.finish_killed();
        assert_eq!(start("boss").finish().succeeded(), "");
        let collector = start("collector");
        for _ in 0..2 {
            let victim = workers.remove(0);
            victim.kill(victim.pid(), Signal::SIGKILL);
            victim.finish_killed();
            workers.push(start("worker"));
            workers.last_mut().unwrap().line();
        }
        collector.kill(collector.pid(), Signal::SIGKILL);
        collector.finish_killed();
        assert_eq!(start("collector").finish().succeeded(), expected);
        workers.into_iter().for_each(|worker| drop(worker.finish().succeeded()));
        start("boss").finish().failed(1, &[&format!("{run} is done: take another name")]);
    }
    redis.kill_group(Signal::SIGKILL);
    redis.finish_killed();
    run(&mut program(&pool, &["boss", "redis+unix:///nonexistent", "x"])).failed(1, &["Error: "]);
    run(&mut program(&pool, &["boss"])).failed(1, &["expected: boss, worker or collector"]);
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
    // Killed at any moment, the worker is named, if its reply had not come.
    for pause in 0..20 {
        let running = Program::start(&mut program(&example(QUEUE, "long_value"), &[]));
        let worker = running.role("worker");
        std::thread::sleep(std::time::Duration::from_millis(pause));
        let _ = kill(worker, Signal::SIGKILL);
        let finished = running.finish();
        let named = finished.stderr.contains("worker was killed by SIGKILL");
        assert!(finished.code() == 0 || named, "{}", finished.stderr);
    }
}

#[test]
fn the_kernel_s_queue_serves_strangers_in_either_order() {
    use nix::mqueue::{MQ_OFlag, MqAttr, mq_open, mq_unlink};
    let mqueue = example(QUEUE, "mqueue");
    let name = format!("/cnblogs-test-{}", std::process::id());
    let open = |attributes| {
        let mode = nix::sys::stat::Mode::S_IRWXU;
        mq_open(&*name, MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR, mode, Some(&attributes))
    };
    if open(MqAttr::new(0, 3, 100, 0)).err() == Some(nix::errno::Errno::ENOSYS) {
        return skip("this kernel has no message queues");
    }
    let start = |role: &str| Program::start(&mut program(&mqueue, &[role, &name]));
    for role in ["producer", "consumer"] {
        let error = format!("{name} holds 3 messages of 100 bytes: somebody else's");
        start(role).finish().failed(1, &[&error]);
    }
    mq_unlink(&*name).unwrap();
    let put = "put product \"Orange\"\nput product \"Apple\"\nput product \"\"\n";
    let got = put.replace("put", "got");
    for first in ["producer", "consumer"] {
        // What a killed process leaves is the name, and what is in the queue: nothing yet.
        let waiting = start("consumer");
        tests::wait_for("the consumer to wait", &mut || {
            tests::waits_in(waiting.pid(), nix::libc::SYS_mq_timedreceive)
        });
        waiting.kill(waiting.pid(), Signal::SIGKILL);
        waiting.finish_killed();
        let early = start(first);
        let (consumer, producer) = match first {
            "producer" => (start("consumer"), early),
            _ => (early, start("producer")),
        };
        assert_eq!(producer.finish().succeeded(), put);
        assert_eq!(consumer.finish().succeeded(), got);
        assert_eq!(mq_unlink(&*name), Err(nix::errno::Errno::ENOENT));
    }
    run(&mut program(&mqueue, &["consumer", "/a/b"])).failed(1, &["mq_open /a/b"]);
}

#[test]
fn underneath_are_the_system_calls_of_the_readme() {
    tests::check_underneath(QUEUE, "queue");
}
