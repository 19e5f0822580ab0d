//! What a story must withstand: many runs at once, a closed stdout, a full disk, and the death of each process at
//! each line.

use std::fs;
use std::io::BufReader;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program::{name, pipe, shared_memory, state};
use crate::{Program, program, readme_shows, run, temp_dir};

/// Checks a story: `times` runs at once, each printing just what the README shows.
#[track_caller]
pub fn check_story(exe: &str, args: &[&str], command: &str, times: usize) {
    let shown = readme_shows(command);
    let programs: Vec<_> = (0..times).map(|_| Program::start(&mut program(exe, args))).collect();
    for program in programs {
        let printed = program.finish().succeeded();
        assert!(printed == shown, "README.md shows:\n{shown}\nbut it printed:\n{printed}");
    }
}

/// Checks that a program says how it is used, and refuses arguments that it does not know.
#[track_caller]
pub fn check_usage(exe: &str, package: &str) {
    let help = run(&mut program(exe, &["--help"])).succeeded();
    assert!(help.contains(&format!("Usage: cargo run -p {package} ")), "{help}");
    let refused = run(&mut program(exe, &["x", "y"]));
    let error = format!("error: unknown arguments: x y\n\n{help}");
    assert_eq!((refused.code(), refused.stdout.as_str(), refused.stderr), (2, "", error));
}

/// Checks that a story survives what can happen to its stdout and its processes.
#[track_caller]
pub fn check_accidents(exe: &str, args: &[&str], roles: &[&str], story: &str) {
    // Nobody reads: the exchange still completes.
    let mut closed = Program::start(&mut program(exe, args));
    closed.stdout = BufReader::new(pipe().0);
    assert_eq!(closed.finish().code(), 0);
    // The disk is full: the process that could not print says so.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let temp = temp_dir();
    let output = program(exe, args).env("TMPDIR", temp.path()).stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("write stdout: No space left on device"), "{stderr}");

    let lines: Vec<usize> = story.lines().map(|line| line.len() + 1).collect();
    for line in 0..lines.len() {
        // Stopped where this line is to be printed, everyone runs or waits.
        let room = lines[..line].iter().sum();
        let start = || Program::start_stopped_at(&mut program(exe, args), room);
        for role in roles {
            let program = start();
            // It may have ended already.
            let role_of = |pid: &Pid| name(*pid) == *role && !state(*pid).starts_with('Z');
            let Some(pid) = program.members().into_iter().find(role_of) else {
                program.finish().succeeded();
                continue;
            };
            program.kill(pid, Signal::SIGKILL);
            let named = format!("{role} was killed by SIGKILL");
            program.finish().failed(1, &[&named]);
        }
        // Ctrl-C goes to all, a SIGTERM to the parent only; both end all, and clean up.
        let program = start();
        program.kill_group(Signal::SIGINT);
        assert_eq!(program.finish().code(), 128 + Signal::SIGINT as i32);
        let program = start();
        program.kill(program.pid(), Signal::SIGTERM);
        assert_eq!(program.finish().code(), 128 + Signal::SIGTERM as i32);
        // Nobody can clean up after kill -9 of the parent, but no process stays.
        let program = start();
        let memory = shared_memory(program.pid());
        program.kill(program.pid(), Signal::SIGKILL);
        program.finish_killed();
        for path in memory {
            fs::remove_file(path).unwrap();
        }
    }
}

/// Checks a program whose lines differ from run to run: after each line, each role is killed in several ways.
/// Unless it had ended by then, the error names it.
#[track_caller]
pub fn check_kills(exe: &str, args: &[&str], roles: &[&str]) {
    let lines = run(&mut program(exe, args)).succeeded().lines().count();
    for role in roles {
        for line in 0..=lines {
            for signals in
                [&[Signal::SIGKILL][..], &[Signal::SIGTERM], &[Signal::SIGSTOP, Signal::SIGKILL]]
            {
                let mut program = Program::start(&mut program(exe, args));
                (0..line).for_each(|_| drop(program.line()));
                let Some(pid) = program.members().into_iter().find(|pid| name(*pid) == *role)
                else {
                    program.finish().succeeded();
                    continue;
                };
                for signal in signals {
                    let _ = kill(pid, *signal); // it may have ended since
                }
                let finished = program.finish();
                if finished.code() != 0 {
                    let last = signals.last().unwrap();
                    finished.failed(1, &[&format!("{role} was killed by {last}")]);
                }
            }
        }
    }
}
