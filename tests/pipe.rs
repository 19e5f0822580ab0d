//! The pipe program, as a user runs it.

mod support;

use support::{check_accidents, check_story, program, readme_shows, run};

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
fn bad_arguments_are_refused() {
    let help = run(&mut program(PIPE, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p pipe\n"), "{help}");
    let error = "error: expected no arguments, not 'both ways' (see --help)\n";
    run(&mut program(PIPE, &["both", "ways"])).failed(2, &[error]);
}
