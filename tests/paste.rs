//! Each `src/lib.rs` can be pasted: alone in a new crate, with the dependencies that the README
//! gives, it builds, and so does the program that the README shows, which then runs.

mod support;

use std::fs;
use std::process::Command;

use support::{TempDir, block, root};

#[test]
fn pipe() {
    paste("pipe");
}

#[test]
fn fifo() {
    paste("fifo");
}

#[test]
fn queue() {
    paste("queue");
}

#[test]
fn shm() {
    paste("shm");
}

#[test]
fn socket() {
    paste("socket");
}

#[track_caller]
fn paste(package: &str) {
    let root = root();
    let dir = TempDir::new();
    // The same versions as here, so that nothing needs to be downloaded.
    fs::copy(root.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    fs::create_dir(dir.join("src")).unwrap();
    fs::copy(root.join(package).join("src/lib.rs"), dir.join("src/lib.rs")).unwrap();
    fs::write(dir.join("src/main.rs"), block("rust", &format!("// {package}: "))).unwrap();
    let manifest = format!(
        "[package]\nname = \"{package}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n{}",
        block("toml", &format!("# {package}\n"))
    );
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--target-dir", env!("CARGO_TARGET_TMPDIR")])
        .current_dir(&dir.0)
        .env("TMPDIR", &dir.0)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Not even a warning.
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
}
