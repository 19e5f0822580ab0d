//! The pipe program, as a user runs it.

mod support;

use std::collections::BTreeSet;
use std::fs;

use nix::unistd::{Pid, getpid};
use support::{Program, check_accidents, check_story, program, readme_shows, run};

const PIPE: &str = env!("CARGO_BIN_EXE_pipe");

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(PIPE, &[], "cargo run -q -p pipe", 20);
}

#[test]
fn who_is_killed_is_named() {
    check_accidents(PIPE, &["subprocess"], &readme_shows("cargo run -q -p pipe"));
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
    let fds = support::list(format!("/proc/{pid}/fd")).into_iter();
    let ours = |fd: &String| fd.parse::<i32>().unwrap() > 2 && link(pid, fd) != link(getpid(), fd);
    fds.filter(ours)
        .map(|fd| {
            let pipe = link(pid, &fd);
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
            // The last octal digit is the access mode: 1 is O_WRONLY.
            (
                pipe.to_str().unwrap().to_owned(),
                flags.unwrap().ends_with('1'),
            )
        })
        .collect()
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(PIPE, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p pipe\n"), "{help}");
    let error = "error: expected no arguments, not 'both ways' (see --help)\n";
    run(&mut program(PIPE, &["both", "ways"])).failed(2, &[error]);
}
