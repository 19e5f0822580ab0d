//! `common::Process` and `common::supervise`.
//!
//! Without libtest (`harness = false`): its threads would make every `spawn` fail. So these checks run one after
//! the other in `main`, as small programs of their own.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use common::{Process, block_signals, supervise, unblock_signals};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid, pipe2};
use tests::{quiet, run_checks};

fn main() {
    run_checks(tests::checks![
        a_child_is_another_process,
        failures_are_named,
        a_panic_stays_in_the_child,
        a_process_with_threads_is_refused,
        each_process_closes_the_others_end,
        what_is_moved_in_is_closed_in_the_parent,
        dropping_kills_and_reaps,
        a_child_does_not_outlive_its_parent,
        the_first_that_fails_stops_the_others,
        the_one_that_was_killed_is_named,
        a_stop_signal_ends_all,
        blocked_signals_are_not_the_childs,
        a_child_can_supervise_too,
        what_is_ignored_stays_ignored,
        all_that_fail_by_themselves_are_named,
        an_unblocked_thread_is_an_error_and_not_a_hang,
        an_error_that_cannot_be_shown_stays_in_the_child,
        a_child_that_somebody_else_reaped_is_not_killed,
        a_command_gets_its_signals_back,
        try_wait_tells_without_blocking,
        a_parent_that_ignores_its_children_is_no_hang,
        of_several_children_each_sees_its_own_end,
        a_child_that_cannot_be_killed_is_not_waited_for,
        what_else_the_caller_has_blocked_stays_blocked,
        what_a_child_prints_without_a_newline_is_printed,
        a_real_time_signal_is_named,
        a_stop_is_passed_on_and_waited_for,
        a_lost_signal_is_no_hang,
        the_log_of_a_daemon_may_fail,
        a_role_may_be_long_and_in_any_language,
        a_child_in_another_pid_namespace_knows_no_parent,
    ]);
}

fn a_child_is_another_process() {
    let parent = getpid();
    let child = Process::spawn("child", || {
        assert_eq!(getppid(), parent);
        assert_eq!(std::fs::read_to_string("/proc/self/comm")?, "child\n");
        Ok(())
    })
    .unwrap();
    assert_ne!(child.id(), std::process::id());
    assert_eq!(child.name(), "child");
    child.join().unwrap();
}

fn failures_are_named() {
    let join = |body: fn() -> Result<()>| {
        let quietly = || {
            quiet();
            body()
        };
        Process::spawn("child", quietly).unwrap().join().unwrap_err().to_string()
    };
    assert_eq!(join(|| bail!("on purpose")), "child failed with exit status 1");
    assert_eq!(join(|| panic!("on purpose")), "child panicked");
    let killed = join(|| Ok(raise(Signal::SIGKILL)?));
    assert_eq!(killed, "child was killed by SIGKILL");
}

fn a_panic_stays_in_the_child() {
    let parent = getpid();
    let child = catch_unwind(|| {
        let child = Process::spawn("child", || {
            quiet();
            panic!("on purpose")
        });
        child.unwrap()
    });
    assert_eq!(getpid(), parent, "the child went on as a second parent");
    child.unwrap().join().unwrap_err();
}

fn a_process_with_threads_is_refused() {
    let (mut wait, go) = pipe();
    let thread = std::thread::spawn(move || wait.read(&mut [0]).unwrap());
    let error = Process::spawn("child", || Ok(())).unwrap_err();
    let error = format!("{error:#}");
    assert_eq!(error, "spawn child: this process has other threads; do this before starting any");
    drop(go);
    thread.join().unwrap();
    Process::spawn("child", || Ok(())).unwrap().join().unwrap();
}

fn each_process_closes_the_others_end() {
    let (child, mut read) =
        Process::spawn_with("child", pipe(), |mut write| Ok(write.write_all(b"Data@subprocess")?))
            .unwrap();
    // Were a copy of the other end still open here, this would wait forever.
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "Data@subprocess");
    child.join().unwrap();

    let (read, write) = pipe();
    let (child, write) = Process::spawn_with("child", (write, read), |mut read| {
        assert_eq!(read.read(&mut [0])?, 0);
        Ok(())
    })
    .unwrap();
    drop(write);
    child.join().unwrap();
}

fn what_is_moved_in_is_closed_in_the_parent() {
    let (mut read, write) = pipe();
    let child = Process::spawn("child", move || {
        drop(write);
        Ok(())
    })
    .unwrap();
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
    child.join().unwrap();
}

fn dropping_kills_and_reaps() {
    let child = Process::spawn("child", wait_forever).unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    drop(child);
    // Not even a zombie is left of it.
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}

fn a_child_does_not_outlive_its_parent() {
    let (mut read, write) = pipe();
    let parent = Process::spawn("parent", move || {
        let _child = Process::spawn("child", wait_forever)?;
        drop(write); // the child has a copy
        Ok(raise(Signal::SIGKILL)?)
    })
    .unwrap();
    // The end of the stream comes when the child is gone, too.
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
    parent.join().unwrap_err();
}

fn the_first_that_fails_stops_the_others() {
    let waiting = Process::spawn("waiting", wait_forever).unwrap();
    let failing = Process::spawn("failing", || {
        quiet();
        bail!("on purpose")
    });
    let failing = failing.unwrap();
    let pid = Pid::from_raw(waiting.id() as i32);
    let error = supervise([waiting, failing]).unwrap_err();
    assert_eq!(error.to_string(), "failing failed with exit status 1");
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    let fine = || Process::spawn("fine", || Ok(())).unwrap();
    supervise([fine(), fine()]).unwrap();
}

fn the_one_that_was_killed_is_named() {
    // The one fails because the other is gone, and may well be noticed first.
    for _ in 0..200 {
        let (read, write) = pipe();
        let (victim, read) =
            Process::spawn_with("victim", (read, write), |_write| Ok(raise(Signal::SIGKILL)?))
                .unwrap();
        let peer = Process::spawn("peer", move || match (&read).read(&mut [0])? {
            0 => {
                quiet();
                bail!("the victim is gone")
            }
            _ => Ok(()),
        })
        .unwrap();
        let error = supervise([peer, victim]).unwrap_err();
        assert_eq!(error.to_string(), "victim was killed by SIGKILL");
    }
}

/// The one fails because the other did, and may well end first: the other still has to say why.
fn all_that_fail_by_themselves_are_named() {
    for _ in 0..200 {
        let (cause, read) = Process::spawn_with("cause", pipe(), |write| {
            quiet();
            drop(write);
            // What its error takes to be put together and printed.
            (0..10_000).for_each(|i| drop(std::hint::black_box(format!("{i}"))));
            bail!("the cause")
        })
        .unwrap();
        let peer = Process::spawn("peer", move || match (&read).read(&mut [0])? {
            0 => {
                quiet();
                bail!("the other side closed")
            }
            _ => Ok(()),
        })
        .unwrap();
        let error = supervise([peer, cause]).unwrap_err().to_string();
        assert!(error.contains("cause failed with exit status 1"), "{error}");
    }
}

fn a_stop_signal_ends_all() {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        block_signals().unwrap();
        let waiting = Process::spawn("waiting", wait_forever).unwrap();
        let pid = Pid::from_raw(waiting.id() as i32);
        raise(signal).unwrap();
        let error = supervise([waiting]).unwrap_err();
        assert_eq!(error.downcast::<Signal>().unwrap(), signal);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }
}

fn blocked_signals_are_not_the_childs() {
    block_signals().unwrap();
    let child = Process::spawn("child", || {
        assert_eq!(SigSet::thread_get_mask()?, SigSet::empty());
        Ok(())
    });
    child.unwrap().join().unwrap();
}

fn a_child_can_supervise_too() {
    block_signals().unwrap();
    let child = Process::spawn("child", || {
        let grandchild = Process::spawn("grandchild", || Ok(()))?;
        supervise([grandchild])
    });
    supervise([child.unwrap()]).unwrap();
}

/// As under nohup, or where whoever started us does not care for its children.
fn what_is_ignored_stays_ignored() {
    let child = Process::spawn("child", || {
        for signal in [Signal::SIGHUP, Signal::SIGCHLD] {
            let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
            #[expect(unsafe_code, reason = "what a parent may have done to us")]
            // SAFETY: installs no handler. Not covered: nothing.
            unsafe { sigaction(signal, &ignore) }?;
        }
        block_signals()?;
        raise(Signal::SIGHUP)?;
        let failing = Process::spawn("failing", || {
            quiet();
            bail!("on purpose")
        })?;
        assert_eq!(failing.join().unwrap_err().to_string(), "failing failed with exit status 1");
        supervise([Process::spawn("grandchild", || Ok(()))?])
    });
    child.unwrap().join().unwrap();
}

/// In a thread that does not block it, SIGCHLD is lost.
fn an_unblocked_thread_is_an_error_and_not_a_hang() {
    // In a child, since signals are blocked here already.
    let child = Process::spawn("child", || {
        let grandchild = Process::spawn("grandchild", || Ok(()))?;
        let (mut wait, go) = pipe();
        let thread = std::thread::spawn(move || wait.read(&mut [0]).unwrap());
        let error = format!("{:#}", supervise([grandchild]).unwrap_err());
        let expected = "block signals: this process has other threads; do this before starting any";
        assert_eq!(error, expected);
        drop(go);
        thread.join().unwrap();
        // Blocked before, they are blocked in the thread, too.
        block_signals()?;
        let grandchild = Process::spawn("grandchild", || Ok(()))?;
        let thread = std::thread::spawn(|| SigSet::empty().wait());
        supervise([grandchild])?;
        drop(thread);
        Ok(())
    });
    child.unwrap().join().unwrap();
}

#[derive(Debug)]
struct Unprintable;

impl std::fmt::Display for Unprintable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("on purpose")
    }
}

impl std::error::Error for Unprintable {}

fn an_error_that_cannot_be_shown_stays_in_the_child() {
    let parent = getpid();
    let child = catch_unwind(|| {
        let child = Process::spawn("child", || {
            quiet();
            Err(Unprintable.into())
        });
        child.unwrap()
    });
    assert_eq!(getpid(), parent, "the child went on as a second parent");
    assert_eq!(child.unwrap().join().unwrap_err().to_string(), "child panicked");
}

/// Its id may by then be that of another process.
fn a_child_that_somebody_else_reaped_is_not_killed() {
    in_a_pid_namespace("the reuse of a process id", || {
        // In a child, since orphans become the children of the first process.
        let check = || [false, true].into_iter().try_for_each(reap_a_child_and_give_its_id_away);
        Process::spawn("second of its namespace", check)?.join()
    });
}

fn reap_a_child_and_give_its_id_away(drops: bool) -> Result<()> {
    Process::spawn("whose id the shell gets", || Ok(()))?.join()?;
    let child = Process::spawn("child", || Ok(()))?;
    let pid = child.id();
    waitpid(Pid::from_raw(pid as i32), None)?;
    // The kernel gives the next ids after this one: to a shell, and then to its child.
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 2).to_string())?;
    let mut shell = Command::new("sh")
        .args(["-c", "exec 3<&0; cat <&3 2> /dev/null & echo $! >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stranger = String::new();
    shell.stderr.take().unwrap().read_to_string(&mut stranger)?;
    assert_eq!(stranger.trim(), pid.to_string());
    let (mut ask, mut answer) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    shell.wait()?;
    if drops {
        drop(child);
    } else {
        let error = format!("{:#}", child.join().unwrap_err());
        assert_eq!(error, "waitpid child: ECHILD: No child processes");
    }
    // The stranger still answers.
    ask.write_all(b"alive")?;
    Ok(answer.read_exact(&mut [0; 5])?)
}

/// Runs a check as the first process of a pid namespace, where no other takes an id.
fn in_a_pid_namespace(what: &str, check: impl FnOnce() -> Result<()>) {
    let child = Process::spawn("child", || {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).is_err() {
            tests::skip(&format!("{what} (only root may make a pid namespace)"));
            return Ok(());
        }
        supervise([Process::spawn("first of its namespace", check)?])
    });
    child.unwrap().join().unwrap();
}

fn a_command_gets_its_signals_back() {
    block_signals().unwrap();
    let mut sleep = unblock_signals(Command::new("sleep").arg("60")).spawn().unwrap();
    kill(Pid::from_raw(sleep.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(sleep.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
}

fn try_wait_tells_without_blocking() {
    let (mut wait, mut go) = pipe();
    let mut child = Process::spawn("child", move || Ok(wait.read_exact(&mut [0])?)).unwrap();
    assert!(!child.try_wait().unwrap());
    go.write_all(b"x").unwrap();
    tests::wait_for("the child to end", &mut || child.try_wait().unwrap());
    assert!(child.try_wait().unwrap());
    supervise([child]).unwrap();

    let mut failing = Process::spawn("failing", || Ok(raise(Signal::SIGKILL)?)).unwrap();
    let mut error = None;
    tests::wait_for("the child to fail", &mut || {
        error = failing.try_wait().err();
        error.is_some()
    });
    let expected = "failing was killed by SIGKILL";
    for error in
        [error.unwrap(), failing.try_wait().unwrap_err(), supervise([failing]).unwrap_err()]
    {
        assert_eq!(error.to_string(), expected);
    }
}

fn a_parent_that_ignores_its_children_is_no_hang() {
    let child = Process::spawn("child", || {
        let (grandchild, go) = spawn_waiting()?;
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        #[expect(unsafe_code, reason = "what other code may have done")]
        // SAFETY: installs no handler. Not covered: nothing.
        unsafe { sigaction(Signal::SIGCHLD, &ignore) }?;
        drop(go);
        // It may have ended by now, and its status be gone: an error, but no hang.
        if let Err(error) = supervise([grandchild]) {
            assert!(error.to_string().contains("ECHILD"), "{error}");
        }
        Ok(())
    });
    child.unwrap().join().unwrap();
}

/// The pattern of `spawn_with`: without `clear`, the second child would keep the first one's pipe open.
fn of_several_children_each_sees_its_own_end() {
    let (mut workers, mut ours) = (Vec::new(), Vec::new());
    for name in ["worker 1", "worker 2", "worker 3"] {
        let (worker, end) = Process::spawn_with(name, pipe(), |mut write| {
            ours.clear();
            write.write_all(name.as_bytes())?;
            wait_forever()
        })
        .unwrap();
        ours.push(end);
        workers.push(worker);
    }
    for (mut end, worker) in ours.into_iter().zip(workers) {
        let name = worker.name().to_owned();
        end.read_exact(&mut vec![0; name.len()]).unwrap();
        drop(worker); // the others live on
        assert_eq!(end.read(&mut [0]).unwrap(), 0, "{name}");
    }

    let (mut workers, mut ours) = (Vec::new(), Vec::new());
    for name in ["worker 1", "worker 2", "worker 3"] {
        let (read, write) = pipe();
        let (worker, end) = Process::spawn_with(name, (write, read), |mut read| {
            ours.clear();
            assert_eq!(read.read(&mut [0])?, 0);
            Ok(())
        })
        .unwrap();
        ours.push(end);
        workers.push(worker);
    }
    for (end, worker) in ours.into_iter().zip(workers) {
        drop(end); // the others live on, and stay open
        worker.join().unwrap();
    }
}

/// As one that runs a setuid program.
fn a_child_that_cannot_be_killed_is_not_waited_for() {
    let (mut wait, go) = pipe();
    let kept = go.try_clone().unwrap(); // until this check ends
    let until_the_end = std::os::fd::AsRawFd::as_raw_fd(&kept);
    let child = Process::spawn("child", || {
        let (mut started, start) = pipe();
        let grandchild = Process::spawn("grandchild", move || {
            nix::unistd::close(until_the_end)?;
            drop(go);
            nix::sys::prctl::set_pdeathsig(None)?;
            drop(start);
            wait.read_exact(&mut [0]).or(Ok(()))
        })?;
        assert_eq!(started.read(&mut [0])?, 0);
        let stranger = nix::unistd::Uid::from_raw(54321);
        if nix::unistd::setresuid(stranger, stranger, stranger).is_err() {
            tests::skip("a child that is not ours to kill (only root can make one)");
        }
        drop(grandchild);
        Ok(())
    });
    // If it waited for the grandchild, it would never end: the grandchild waits for us.
    child.unwrap().join().unwrap();
}

fn what_else_the_caller_has_blocked_stays_blocked() {
    // In a child, since signals are blocked here already.
    let child = Process::spawn("child", || {
        let own: SigSet = [Signal::SIGUSR1].into_iter().collect();
        own.thread_block()?;
        block_signals()?;
        let grandchild = Process::spawn("grandchild", move || {
            assert_eq!(SigSet::thread_get_mask()?, own);
            Ok(())
        });
        supervise([grandchild?])
    });
    child.unwrap().join().unwrap();
}

fn what_a_child_prints_without_a_newline_is_printed() {
    let (mut read, write) = pipe();
    let child = Process::spawn("child", move || {
        nix::unistd::dup2_stdout(write)?;
        print!("no newline");
        Ok(())
    });
    let mut printed = String::new();
    read.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "no newline");
    child.unwrap().join().unwrap();
    // Also if it panics.
    let (mut read, write) = pipe();
    let child = Process::spawn("child", move || {
        quiet();
        nix::unistd::dup2_stdout(write)?;
        print!("no newline");
        panic!("on purpose")
    });
    let mut printed = String::new();
    read.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "no newline");
    child.unwrap().join().unwrap_err();
    // What cannot be printed is an error, but that nobody reads it is none.
    let printing_to = |stdout: File| {
        let child = Process::spawn("child", move || {
            quiet();
            nix::unistd::dup2_stdout(stdout)?;
            print!("no newline");
            Ok(())
        });
        child.unwrap().join()
    };
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = printing_to(full).unwrap_err().to_string();
    assert_eq!(error, "child failed with exit status 1");
    printing_to(pipe().1).unwrap();
}

fn a_real_time_signal_is_named() {
    let child = Process::spawn("child", || {
        let id = std::process::id().to_string();
        Command::new("sh").args(["-c", "kill -34 $0", &id]).status()?;
        wait_forever()
    });
    let error = child.unwrap().join().unwrap_err().to_string();
    assert_eq!(error, "child was killed by signal 34");
}

/// A child that supervises, too, cleans up before it ends: also when another one has failed.
fn a_stop_is_passed_on_and_waited_for() {
    let dir = tests::temp_dir();
    let path = dir.path().join("of the middle");
    for fails in [false, true] {
        let (mut ready, start) = pipe();
        block_signals().unwrap();
        let middle = Process::spawn("middle", || {
            quiet();
            block_signals()?;
            std::fs::write(&path, "")?;
            let stopped = supervise([Process::spawn("leaf", || {
                drop(start);
                wait_forever()
            })?]);
            std::fs::remove_file(&path)?;
            stopped
        });
        assert_eq!(ready.read(&mut [0]).unwrap(), 0);
        assert!(path.exists());
        let other = Process::spawn("other", || {
            quiet();
            if fails { bail!("on purpose") } else { wait_forever() }
        });
        if !fails {
            raise(Signal::SIGTERM).unwrap();
        }
        let error = supervise([middle.unwrap(), other.unwrap()]).unwrap_err();
        assert_eq!(error.downcast::<Signal>().is_err(), fails);
        assert!(!path.exists(), "the middle was killed before its clean-up");
    }
}

/// Blocked by the caller only after it started a thread, SIGCHLD is delivered to that, and lost.
fn a_lost_signal_is_no_hang() {
    let child = Process::spawn("child", || {
        let (grandchild, go) = spawn_waiting()?;
        std::thread::spawn(|| SigSet::empty().wait());
        let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
        let signals: SigSet = signals.into_iter().chain([Signal::SIGCHLD]).collect();
        signals.thread_block()?;
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20)); // until `supervise` waits
            drop(go);
        });
        supervise([grandchild])
    });
    child.unwrap().join().unwrap();
}

fn the_log_of_a_daemon_may_fail() {
    let (mut read, write) = pipe();
    let child = Process::spawn("child", move || {
        nix::unistd::dup2_stderr(write)?;
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/full")?)?;
        (0..3).for_each(|_| common::log("a line"));
        Ok(())
    });
    let mut said = String::new();
    read.read_to_string(&mut said).unwrap();
    assert_eq!(said, "write stdout: No space left on device (os error 28)\n");
    child.unwrap().join().unwrap();
}

fn a_role_may_be_long_and_in_any_language() {
    for name in ["生产者生产者生产者", "a name of more than fifteen bytes", "process"] {
        let child = Process::spawn(name, || {
            assert_eq!(common::role().as_deref(), Some(name));
            Ok(())
        });
        child.unwrap().join().unwrap();
    }
    assert_eq!(common::role(), None);
    let child = Process::spawn("child", || {
        quiet();
        Process::spawn("a\0b", || Ok(()))?.join().unwrap_err();
        Ok(())
    });
    child.unwrap().join().unwrap();
}

fn a_child_in_another_pid_namespace_knows_no_parent() {
    in_a_pid_namespace("a child that cannot see its parent", || {
        assert_eq!(getpid(), Pid::from_raw(1));
        Ok(())
    });
}

fn wait_forever() -> Result<()> {
    SigSet::empty().wait()?;
    Ok(())
}

/// A grandchild that ends when the file is dropped.
fn spawn_waiting() -> Result<(Process, File)> {
    let (wait, go) = pipe();
    Process::spawn_with("grandchild", (go, wait), |mut wait| {
        assert_eq!(wait.read(&mut [0])?, 0);
        Ok(())
    })
}

fn pipe() -> (File, File) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (read.into(), write.into())
}
