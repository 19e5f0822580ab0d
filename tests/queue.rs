//! The queue program, as a user runs it.

mod support;

use support::{check_accidents, check_story, program, readme_shows, run};

const QUEUE: &str = env!("CARGO_BIN_EXE_queue");

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(QUEUE, &[], "cargo run -q -p queue", 20);
}

#[test]
fn who_is_killed_is_named() {
    check_accidents(
        QUEUE,
        &["producer", "consumer"],
        &readme_shows("cargo run -q -p queue"),
    );
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(QUEUE, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p queue\n"), "{help}");
    let error = "error: expected no arguments, not 'both ways' (see --help)\n";
    run(&mut program(QUEUE, &["both", "ways"])).failed(2, &[error]);
}
