//! The fifo program, as a user runs it.

mod support;

use support::{check_accidents, check_story, program, readme_shows, run};

const FIFO: &str = env!("CARGO_BIN_EXE_fifo");

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(FIFO, &[], "cargo run -q -p fifo", 20);
}

#[test]
fn who_is_killed_is_named() {
    check_accidents(
        FIFO,
        &["consumer", "producer"],
        &readme_shows("cargo run -q -p fifo"),
    );
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(FIFO, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p fifo\n"), "{help}");
    let error = "error: expected no arguments, not 'both ways' (see --help)\n";
    run(&mut program(FIFO, &["both", "ways"])).failed(2, &[error]);
}
