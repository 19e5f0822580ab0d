//! The queue program, as a user runs it.

mod support;

use support::{
    Program, can_trace, check_accidents, check_console_blocks, check_kills, check_story,
    normalised, numbers, program, readme_shows, run, skip,
};

const QUEUE: &str = env!("CARGO_BIN_EXE_queue");

const STORY: &str = "cargo run -q -p queue";

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(QUEUE, "queue", &[]);
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
    check_accidents(QUEUE, &["producer", "consumer"], &readme_shows(STORY));
    check_kills(QUEUE, &[], &["producer", "consumer"]);
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(QUEUE, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p queue "), "{help}");
    let refused = run(&mut program(QUEUE, &["x", "y"]));
    assert_eq!((refused.code(), refused.stdout.as_str(), refused.stderr), (2, "", help));
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
