//! Checks that fork: without libtest (`harness = false`), whose threads would make every `spawn` fail.

use std::cell::Cell;
use std::fs::File;

use libtest_mimic::{Arguments, Trial};
use nix::unistd::{alarm, dup2_stderr};

use crate::TOO_LONG;
use crate::program::stop_signals_as_usual;

/// Checks and their names, for [`run_checks`].
#[macro_export]
macro_rules! checks {
    ($($check:ident),* $(,)?) => { vec![$((stringify!($check), $check as fn())),*] };
}

thread_local! {
    /// The check that runs, where all run on the main thread.
    pub(crate) static CHECK: Cell<&'static str> = const { Cell::new("") };
}

/// Runs the checks of a test that forks (`harness = false`), one after the other on the main thread: libtest's
/// threads would make every `spawn` fail. Takes libtest's arguments, and ends the program.
pub fn run_checks(checks: Vec<(&'static str, fn())>) -> ! {
    let mut args = Arguments::from_args();
    stop_signals_as_usual().unwrap();
    args.test_threads = Some(1);
    let trial = |(name, check): (&'static str, fn())| {
        Trial::test(name, move || {
            CHECK.set(name);
            // SIGALRM ends the whole program, whose last line then names the check that found a hang. There
            // is no watchdog, for that would be a thread; and the children die with us.
            alarm::set(10 * TOO_LONG.as_secs() as u32);
            check();
            alarm::cancel();
            Ok(())
        })
    };
    libtest_mimic::run(&args, checks.into_iter().map(trial).collect()).exit()
}

/// For a child that fails on purpose: nobody needs to read why, and it looks like a failure of the test.
pub fn quiet() {
    dup2_stderr(File::create("/dev/null").unwrap()).unwrap();
}
