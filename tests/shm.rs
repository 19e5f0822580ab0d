//! The shm program, as a user runs it.

mod support;

use support::{check_accidents, check_story, program, readme_shows, run};

const SHM: &str = env!("CARGO_BIN_EXE_shm");

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(SHM, &[], "cargo run -q -p shm", 20);
}

#[test]
fn who_is_killed_is_named() {
    check_accidents(
        SHM,
        &["writer", "reader"],
        &readme_shows("cargo run -q -p shm"),
    );
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(SHM, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p shm\n"), "{help}");
    let error = "error: expected no arguments, not 'both ways' (see --help)\n";
    run(&mut program(SHM, &["both", "ways"])).failed(2, &[error]);
}
