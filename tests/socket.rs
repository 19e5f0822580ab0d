//! The socket program, as a user runs it.

mod support;

use support::{check_accidents, check_story, program, readme_shows, run};

const SOCKET: &str = env!("CARGO_BIN_EXE_socket");

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(SOCKET, &[], "cargo run -q -p socket", 20);
}

#[test]
fn who_is_killed_is_named() {
    check_accidents(
        SOCKET,
        &["server", "client"],
        &readme_shows("cargo run -q -p socket"),
    );
}

#[test]
fn bad_arguments_are_refused() {
    let help = run(&mut program(SOCKET, &["--help"])).succeeded();
    assert!(help.contains("Usage: cargo run -p socket\n"), "{help}");
    let error = "error: expected no arguments, not 'both ways' (see --help)\n";
    run(&mut program(SOCKET, &["both", "ways"])).failed(2, &[error]);
}
