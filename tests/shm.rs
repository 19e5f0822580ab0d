//! The shm program, as a user runs it.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use shm::{Pair, Semaphore, Side};
use tests::{
    Program, check_accidents, check_console_blocks, check_kills, check_story, check_usage, example,
    give_to_nobody, normalised, numbers, program, readme_shows, run, skip, succeeds, with_tmpfs,
};

const SHM: &str = env!("CARGO_BIN_EXE_shm");

const STORY: &str = "cargo run -q -p shm";

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(SHM, "shm", &["cargo run -q -p shm isolation"]);
}

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(SHM, &[], STORY, 20);
}

#[test]
fn errors_name_the_killed_process() {
    check_accidents(SHM, &[], &["writer", "reader"], &readme_shows(STORY));
    check_kills(SHM, &[], &["writer", "reader"]);
}

#[test]
fn bad_arguments_are_refused() {
    check_usage(SHM, "shm");
    let error = "shm_open /cn/blogs: Invalid argument";
    run(&mut program(SHM, &["reader", "/cn/blogs"])).failed(2, &[error]);
}

/// The text, and the story's two semaphores.
const PAGE: usize = 1024 + 16;

/// One role in a terminal of its own, meeting the other at a name that no other test uses.
fn role(role: &str, test: &str) -> Program {
    let mut program = Program::start(&mut program(SHM, &[role, &name(test)]));
    program.line_with(&format!("opens {}", name(test)));
    program
}

fn name(test: &str) -> String {
    format!("/cnblogs-test-{test}-{}", std::process::id())
}

fn exists(test: &str) -> bool {
    Path::new("/dev/shm").join(&name(test)[1..]).exists()
}

#[test]
fn two_terminals_in_either_order() {
    for (first, second) in [("writer", "reader"), ("reader", "writer")] {
        let programs = [(first, role(first, first)), (second, role(second, first))];
        let story = readme_shows(STORY);
        for (name, program) in programs {
            let printed = program.finish().succeeded();
            let lines = printed.lines().skip(1); // where it meets the other
            let expected = story.lines().filter(|line| line.trim().starts_with(name));
            assert!(lines.eq(expected), "{printed}");
        }
        assert!(!exists(first));
    }
}

/// One role, stopped before it prints what comes after `lines`.
fn stopped_role(role: &str, test: &str, lines: &[&str]) -> Program {
    let meets = format!("opens {}", name(test));
    let lines = [&[meets.as_str()], lines].concat();
    let room = lines.iter().map(|line| format!("{role:>10} | {line}\n").len()).sum();
    Program::start_stopped_at(&mut program(SHM, &[role, &name(test)]), room)
}

#[test]
fn each_notices_that_the_other_was_killed() {
    // The victim is the role, or the parent that watches it.
    for victim in ["writer", "shm"] {
        let test = format!("killed-{victim}-w");
        let reader = role("reader", &test);
        let writer = stopped_role("writer", &test, &["write \"Hello\""]);
        writer.kill(writer.role(victim), Signal::SIGKILL);
        writer.finish_killed();
        let gone = format!("wait {}: the writer is gone", name(&test));
        reader.finish().failed(1, &[&gone]);
        assert!(!exists(&test));
    }
    for victim in ["reader", "shm"] {
        let test = format!("killed-{victim}-r");
        let writer = role("writer", &test);
        let reader = stopped_role("reader", &test, &[]);
        reader.kill(reader.role(victim), Signal::SIGKILL);
        reader.finish_killed();
        let gone = format!("wait {}: the reader is gone", name(&test));
        writer.finish().failed(1, &[&gone]);
        assert!(!exists(&test));
    }
}

/// As in containers that share /dev/shm: none sees the other's process ids.
#[test]
fn strangers_in_other_pid_namespaces_meet_and_notice_a_death() {
    let contained = |role: &str, test: &str| {
        let mut command = program("unshare", &["-pf", "--kill-child", SHM, role, &name(test)]);
        let mut program = Program::start(&mut command);
        program.line_with(&format!("opens {}", name(test)));
        program
    };
    if !succeeds(Command::new("unshare").args(["-pf", "true"])) {
        return skip("pid namespaces (only root may make one)");
    }
    for (inside, outside) in [("reader", "writer"), ("writer", "reader")] {
        let test = format!("contained-{inside}");
        let pair = [contained(inside, &test), role(outside, &test)];
        pair.into_iter().for_each(|program| drop(program.finish().succeeded()));
        let pair = [role(outside, &test), contained(inside, &test)];
        pair.into_iter().for_each(|program| drop(program.finish().succeeded()));

        let reader = Pair::open(&name(&test), PAGE, Side::Reader).unwrap();
        let writer = contained("writer", &test);
        let filled = Semaphore::new(&reader.words()[128]);
        reader.wait(filled).unwrap();
        assert_eq!(reader.read(6), b"Hello\0");
        writer.kill_group(Signal::SIGKILL);
        writer.finish_killed();
        let gone = format!("wait {}: the writer is gone", name(&test));
        assert_eq!(reader.wait(filled).unwrap_err().to_string(), gone);
        assert!(!exists(&test));
    }
}

#[test]
fn what_a_killed_run_leaves_is_replaced() {
    let test = "left";
    let writer = role("writer", test);
    writer.kill(writer.pid(), Signal::SIGKILL);
    writer.finish_killed();
    assert!(exists(test));
    let writer = role("writer", test);
    let reader = role("reader", test);
    writer.finish().succeeded();
    reader.finish().succeeded();
    assert!(!exists(test));
}

/// The first is stopped before its first message, and started again.
#[test]
fn a_peer_that_leaves_before_its_first_message_is_noticed() {
    for (first, second) in [("reader", "writer"), ("writer", "reader")] {
        let test = format!("early-{first}");
        // Where this line is to be printed, it has come, and no more.
        let stopped = Program::start_stopped_at(&mut program(SHM, &[first, &name(&test)]), 0);
        let other = role(second, &test);
        stopped.kill_group(Signal::SIGINT);
        assert_eq!(stopped.finish().code(), 130);
        let gone = format!("the {first} is gone");
        other.finish().failed(1, &[&gone]);
        assert!(!exists(&test));
        // Nothing is in the way of the next pair.
        let pair = [role(first, &test), role(second, &test)];
        pair.into_iter().for_each(|program| drop(program.finish().succeeded()));
        assert!(!exists(&test));
    }
}

/// Of the pair before, one has left, and the other is about to.
#[test]
fn a_pair_can_be_started_while_the_last_one_leaves() {
    for leaves_first in [0, 1] {
        let test = format!("next-{leaves_first}");
        let mut pair = [Side::Writer, Side::Reader]
            .map(|side| Some(Pair::open(&name(&test), PAGE, side).unwrap()));
        drop(pair[leaves_first].take());
        let next = [role("writer", &test), role("reader", &test)];
        drop(pair);
        next.into_iter().for_each(|program| drop(program.finish().succeeded()));
        assert!(!exists(&test));
    }
}

#[test]
fn a_second_reader_does_not_end_the_wait_of_the_first() {
    for (first, other) in [("reader", "writer"), ("writer", "reader")] {
        let test = format!("twice-{first}");
        let waiting = role(first, &test);
        let refused = run(&mut program(SHM, &[first, &name(&test)]));
        assert_eq!(refused.stdout, "");
        refused.failed(1, &[&format!("open {}: it has a {first} already", name(&test))]);
        let other = role(other, &test);
        waiting.finish().succeeded();
        other.finish().succeeded();
        assert!(!exists(&test));
    }
}

/// Two that have met have no name any more: a third waits for a fourth, and leaves nothing.
#[test]
fn a_third_meets_nobody_by_accident() {
    let test = "third";
    let writer = role("writer", test);
    let first = stopped_role("reader", test, &[]); // with "Hello" in its hands
    let third = role("reader", test);
    assert!(exists(test));
    third.kill_group(Signal::SIGTERM);
    assert_eq!(third.finish().code(), 143);
    assert!(!exists(test));
    first.finish().succeeded();
    writer.finish().succeeded();
}

#[test]
fn isolation_is_the_one_in_the_readme() {
    let shown = readme_shows("cargo run -q -p shm isolation");
    let printed = run(&mut program(SHM, &["isolation"])).succeeded();
    // What only root may see counts as a frame like any other.
    let frames = |text: &str| text.replace("hidden (only root may see it)", "0x0");
    assert_eq!(normalised(&frames(&printed)), normalised(&frames(&shown)));

    let lines = |page: &str| {
        let lines = printed.lines().filter(|line| line.contains(page));
        let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        lines.map(|line| fields(line.split_once(" at ").unwrap().1)).collect::<Vec<_>>()
    };
    for (page, parts) in [("private", true), ("shared", false)] {
        let [before, same, written, after] = &lines(page)[..] else {
            panic!("{printed}");
        };
        // The same virtual address in both processes, all the time.
        assert!([same, written, after].iter().all(|line| line[0] == before[0]), "{printed}");
        if before[2] != "hidden" {
            assert_eq!(same[2], before[2], "{printed}");
            assert_eq!(written[2] != before[2], parts, "{printed}");
            assert_eq!(after[2], before[2], "{printed}");
        }
    }
}

#[test]
fn the_race_loses_counts_and_the_semaphore_none() {
    let shown = readme_shows("cargo run -q -p shm race");
    let printed = run(&mut program(SHM, &["race"])).succeeded();
    assert_eq!(normalised(&printed), normalised(&shown));
    let [counted, all, lost, with, of] = numbers(&printed)[..] else {
        panic!("{printed}");
    };
    assert_eq!((counted + lost, all, with, of), (20_000, 20_000, 20_000, 20_000));
    assert!(lost > 0, "{printed}");
}

#[test]
fn errors_name_the_killed_process_of_a_demonstration() {
    check_kills(SHM, &["isolation"], &["child"]);
    check_kills(SHM, &["race"], &["one", "two"]);
}

#[test]
fn other_memory_is_left_alone() {
    let test = "foreign";
    let path = Path::new("/dev/shm").join(&name(test)[1..]);
    for content in ["", "precious", &"precious".repeat(1000)] {
        fs::write(&path, content).unwrap();
        for role in ["writer", "reader"] {
            let error = format!("open {}: it has {} bytes", name(test), content.len());
            run(&mut program(SHM, &[role, &name(test)])).failed(1, &[&error]);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    if give_to_nobody(&path) {
        let error = format!("shm_open {}: belongs to user 65534", name(test));
        run(&mut program(SHM, &["reader", &name(test)])).failed(1, &[&error]);
    } else {
        skip("another user's memory (only root can make that)");
    }
    fs::remove_file(&path).unwrap();
    let long = format!("/{}", "x".repeat(300));
    run(&mut program(SHM, &["reader", &long])).failed(2, &["shm_open /xxx"]);
}

#[test]
fn without_memory_it_fails_before_it_is_touched() {
    let full = "head -c 4096 /dev/zero > /dev/shm/full";
    let script = format!("{full} && exec '{SHM}'");
    let Some(mut command) = with_tmpfs(Path::new("/dev/shm"), "size=4k", &script) else {
        return skip("a full /dev/shm (only root may mount)");
    };
    let error = ["posix_fallocate /cnblogs-", ": No space left on device"];
    run(&mut command).failed(1, &error);
}

#[test]
fn readers_get_the_newest_value_and_never_a_torn_one() {
    let latest = example(SHM, "latest");
    let memory = name("latest");
    let path = Path::new("/dev/shm").join(&memory[1..]);
    let start = |role: &str, line: &str| {
        let mut program = Program::start(&mut program(&latest, &[role, &memory]));
        program.line_with(line);
        program
    };
    let reads = format!("reads {memory}, as soon as there is a writer");
    let writes = format!("writes {memory}");
    let value = |reader: &mut Program| {
        let line = reader.line();
        let [x, y, z]: [f64; 3] =
            line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!([y, z], [2.0 * x, 3.0 * x], "torn");
        x
    };
    // In either order, and any number of readers.
    let mut readers = vec![start("reader", &reads)];
    let mut writer = start("writer", &writes);
    readers.push(start("reader", &reads));
    for reader in &mut readers {
        let values: Vec<f64> = (0..100).map(|_| value(reader)).collect();
        assert!(values.is_sorted(), "{values:?}");
    }
    let error = format!("another writer runs: {memory} is locked");
    run(&mut program(&latest, &["writer", &memory])).failed(1, &[&error]);
    // Killed at any moment, also while it writes, and started again at once.
    for _ in 0..20 {
        writer.kill(writer.pid(), Signal::SIGKILL);
        let next = start("writer", &writes);
        std::mem::replace(&mut writer, next).finish_killed();
        // The new one begins at 0.
        readers.iter_mut().for_each(|reader| while value(reader) > 50.0 {});
    }
    for (signal, code) in [
        (Signal::SIGINT, 130),
        (Signal::SIGQUIT, 131),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        writer.kill_group(signal);
        assert_eq!(writer.finish().code(), code);
        assert!(!path.exists());
        writer = start("writer", &writes);
        readers.iter_mut().for_each(|reader| while value(reader) > 50.0 {});
    }
    writer.kill_group(Signal::SIGINT);
    writer.finish();
    for reader in readers {
        reader.kill_group(Signal::SIGINT);
        assert_eq!(reader.finish().code(), 130);
    }
    run(&mut program(&latest, &[])).failed(1, &["Error: expected: writer or reader"]);
}

/// What lies under a name need not be of this version, nor complete.
#[test]
fn what_was_left_under_the_name_is_made_anew_or_said() {
    let latest = example(SHM, "latest");
    let memory = name("latest-left");
    let path = Path::new("/dev/shm").join(&memory[1..]);
    for size in [0, 16, 4096] {
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        if size > 0 {
            let error = format!("{memory} is another version's: it has {size} bytes");
            run(&mut program(&latest, &["reader", &memory])).failed(1, &[&error]);
        }
        let mut writer = Program::start(&mut program(&latest, &["writer", &memory]));
        writer.line_with(&format!("writes {memory}"));
        // Its output is closed after a line: no reason to fail.
        let reads = "\"$0\" reader \"$1\" | tail -n +2 | head -1";
        let printed = run(&mut program("sh", &["-c", reads, &latest, &memory])).succeeded();
        assert_eq!(numbers(&printed).len(), 3, "{printed}");
        writer.kill_group(Signal::SIGTERM);
        assert_eq!(writer.finish().code(), 143);
        assert!(!path.exists());
    }
    fs::File::create(&path).unwrap();
    if give_to_nobody(&path) {
        for role in ["writer", "reader"] {
            let error = "belongs to user 65534";
            run(&mut program(&latest, &[role, &memory])).failed(1, &[error]);
        }
    } else {
        skip("another user's memory (only root can make that)");
    }
    fs::remove_file(&path).unwrap();
    run(&mut program(&latest, &["reader", "/a/b"])).failed(1, &["shm_open /a/b"]);
    run(&mut program(&latest, &["writer", "/../x"])).failed(1, &["shm_open /../x"]);
}

#[test]
fn a_writer_without_memory_leaves_no_name() {
    let latest = example(SHM, "latest");
    let script = format!(
        "head -c 4096 /dev/zero > /dev/shm/full; '{latest}' writer; code=$?; ls /dev/shm; exit $code"
    );
    let Some(mut command) = with_tmpfs(Path::new("/dev/shm"), "size=4k", &script) else {
        return skip("a full /dev/shm (only root may mount)");
    };
    let finished = run(&mut command);
    assert_eq!(finished.stdout, "full\n");
    let error =
        "posix_fallocate /cnblogs-latest\n\nCaused by:\n    ENOSPC: No space left on device";
    finished.failed(1, &[error]);
}

#[test]
fn frames_reach_any_number_of_viewers_and_none_holds_up_the_camera() {
    let frames = example(SHM, "frames");
    let dir = tests::temp_dir();
    let path = dir.path().join("socket").to_str().unwrap().to_owned();
    let start = |role: &str| Program::start(&mut program(&frames, &[role, &path]));
    for (signal, code) in [
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
        (Signal::SIGQUIT, 131),
        (Signal::SIGTERM, 143),
    ] {
        let mut camera = start("camera");
        camera.line_with(&format!("waits for viewers at {path}"));
        let mut viewers = [(); 3].map(|()| start("viewer"));
        let show = |viewer: &mut Program| {
            assert!(viewer.line().starts_with("6220800 bytes of "));
        };
        viewers.iter_mut().for_each(show);
        // One is stopped, one is killed, and the output of one is closed.
        let [mut stopped, killed, mut closed] = viewers;
        stopped.kill(stopped.pid(), Signal::SIGSTOP);
        killed.kill(killed.pid(), Signal::SIGKILL);
        killed.finish_killed();
        closed.close_stdout();
        closed.finish().succeeded();
        let mut last = start("viewer");
        (0..5).for_each(|_| show(&mut last));
        // No more memory is in flight than a frame for each viewer.
        let files = || tests::list(format!("/proc/{}/fd", camera.pid())).len();
        tests::wait_for("those that are gone to be closed", &mut || files() <= 9);
        stopped.kill(stopped.pid(), Signal::SIGCONT);
        show(&mut stopped);
        camera.kill(camera.pid(), signal);
        assert_eq!(camera.finish().code(), code);
        for viewer in [stopped, last] {
            assert!(viewer.finish().succeeded().ends_with("the camera is gone\n"));
        }
        assert_eq!(tests::list(dir.path()), [""; 0], "left behind");
    }
    let error = format!("connect unix:{path}: No such file or directory");
    start("viewer").finish().failed(1, &[&error]);
}

/// Only what is sealed may be looked at as bytes.
#[test]
fn a_viewer_refuses_what_is_not_sealed() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Read};
    use std::os::fd::AsRawFd;
    let frames = example(SHM, "frames");
    let dir = tests::temp_dir();
    let path = dir.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let memory = |size| {
        let memory = fs::File::from(memfd_create("x", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        memory.set_len(size).unwrap();
        memory
    };
    let (unsealed, short, file) =
        (memory(6_220_800), memory(100), fs::File::open("/dev/null").unwrap());
    let seals = nix::fcntl::SealFlag::F_SEAL_WRITE | nix::fcntl::SealFlag::F_SEAL_SHRINK;
    nix::fcntl::fcntl(&short, nix::fcntl::FcntlArg::F_ADD_SEALS(seals)).unwrap();
    for (files, error) in [
        (&[][..], "a message with 0 descriptors"),
        (&[&unsealed], "a frame is not sealed"),
        (&[&file], "a frame is not sealed"),
        (&[&short], "a frame of 100 bytes, not 6220800"),
        (&[&short, &short], "a message with 2 descriptors"),
    ] {
        let viewer = Program::start(&mut program(&frames, &["viewer", path.to_str().unwrap()]));
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let descriptors: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if files.is_empty() { &[][..] } else { &rights[..] };
        let bytes = [IoSlice::new(b"!")];
        sendmsg::<()>(stream.as_raw_fd(), &bytes, rights, MsgFlags::empty(), None).unwrap();
        viewer.finish().failed(1, &[error]);
    }
}

#[test]
fn underneath_are_the_system_calls_of_the_readme() {
    tests::check_underneath(SHM, "shm");
}
