//! What the tests of the workspace share: [`Program`] runs the real programs as a user would, and looks at what
//! they leave behind; [`run_checks`] runs checks that fork; and the READMEs, which the tests hold to their word.
//!
//! It depends on none of the five mechanisms, so that each of them can use it for its own tests.

mod checks;
mod pages;
mod program;
mod stories;
mod strace;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use checks::{quiet, run_checks};
pub use pages::*;
pub use program::*;
pub use stories::{check_accidents, check_kills, check_story, check_usage};
pub use strace::{check_underneath, trace};

/// The five mechanisms.
pub const PACKAGES: [&str; 5] = ["pipe", "fifo", "queue", "shm", "socket"];

/// Far more than anything here takes; a test that gets there has found a hang.
pub const TOO_LONG: Duration = Duration::from_secs(60);

/// The folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names in a directory.
pub fn list(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    entries.map(|entry| name(entry).into_string().unwrap()).collect()
}

/// A directory that only this user may enter, removed with all that is in it.
#[track_caller]
pub fn temp_dir() -> TempDir {
    let mut parent = std::env::temp_dir();
    // The path of a Unix socket in it must not be longer than 107 bytes.
    if !parent.is_dir() || parent.as_os_str().len() > 64 {
        parent = "/tmp".into();
    }
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("ipc-").permissions(private).tempdir_in(parent).unwrap()
}

/// Waits for a condition that nothing can wake us for.
#[track_caller]
pub fn wait_for(what: &str, condition: &mut dyn FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TOO_LONG, "waited too long for {what}");
        std::thread::yield_now();
    }
}

/// Says that a test did not run, where cargo shows it (libtest hides what a test prints).
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or(checks::CHECK.get());
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether a command can be run here.
pub fn has(command: &str) -> bool {
    succeeds(Command::new(command).arg("--version"))
}

/// Whether strace is here, and may trace.
pub fn can_trace() -> bool {
    succeeds(Command::new("strace").args(["-o", "/dev/null", "true"]))
}

/// Whether cargo has this subcommand here.
pub fn has_cargo(subcommand: &str) -> bool {
    succeeds(Command::new(env!("CARGO")).args([subcommand, "--version"]))
}

/// Whether a command is there and succeeds; what it prints is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
