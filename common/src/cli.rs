use std::fmt;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{Stopped, log};

/// Bad command-line arguments: one line that says what was expected instead.
#[derive(Debug)]
pub struct Usage(
    /// The line.
    pub String,
);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The error for arguments that no `match` arm takes: [`main`] prints one line and exits with 2.
pub fn expected(args: &[&str], what: &str) -> Result<()> {
    let got = match args {
        [] => "no arguments".to_owned(),
        args => format!("'{}'", args.join(" ")),
    };
    Err(Usage(format!("expected {what}, not {got} (see --help)")).into())
}

/// Runs a program: answers `--help`, gives `run` the arguments, prints its error.
///
/// The exit status is 0 when `run` succeeded, 2 for a [`Usage`] error, 128 + signal when a
/// signal [`Stopped`] it (as a shell reports it), and 1 for any other error.
pub fn main(help: &str, run: impl FnOnce(&[&str]) -> Result<()>) -> ExitCode {
    log::start_clock();
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let args: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    let result = match args.as_deref() {
        Some([.., "--help" | "-h"]) => log::print(help).context("write stdout"),
        Some(args) => run(args),
        None => Err(Usage("expected arguments in UTF-8".into()).into()),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    log::complain(&error);
    if error.is::<Usage>() {
        ExitCode::from(2)
    } else if let Some(Stopped(signal)) = error.downcast_ref() {
        ExitCode::from(128 + *signal as u8)
    } else {
        ExitCode::FAILURE
    }
}
