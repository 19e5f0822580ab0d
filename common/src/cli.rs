use std::io::{self, Error, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::log::{program, start};
use crate::{print, role, say};

/// For arguments that no `match` arm takes: prints them and the help text to stderr, and exits with 2.
pub fn usage(help: &str, args: &[&str]) -> ! {
    let error = format!("error: unknown arguments: {}\n\n{help}", args.join(" "));
    let _ = io::stderr().write_all(error.as_bytes());
    std::process::exit(2)
}

/// Runs a program: answers `--help`, gives `run` the arguments, prints its error.
///
/// The exit status is 0 when `run` succeeded, 2 for an argument that a library
/// refuses as `InvalidInput`, 128 + signal when a signal stopped it (as a shell reports it), and 1
/// for any other error.
pub fn main(help: &str, run: impl FnOnce(&[&str]) -> Result<()>) -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let args: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    let result = match args.as_deref() {
        // Not the last of several: that may be a message.
        Some(["--help" | "-h"] | [_, "--help" | "-h"]) => print(help),
        Some(args) => start().and_then(|()| run(args)),
        None => Err(Error::new(ErrorKind::InvalidInput, "arguments must be UTF-8").into()),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(signal) = error.downcast_ref::<Signal>() {
        // No error: it is what the user asked for.
        let _ = say!("stops: {signal}");
        return ExitCode::from(128 + *signal as u8);
    }
    let program = program().unwrap_or_default();
    let (status, hint) = match error.downcast_ref().map(Error::kind) {
        Some(ErrorKind::InvalidInput) => {
            (2, format!("for help: cargo run -p {program} -- --help\n"))
        }
        _ => (1, String::new()),
    };
    let role = role().map(|role| role + ": ").unwrap_or_default();
    // If stderr is gone, the exit status still tells.
    let _ = io::stderr().write_all(format!("{role}error: {error:#}\n{hint}").as_bytes());
    ExitCode::from(status)
}
