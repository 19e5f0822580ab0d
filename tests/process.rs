//! `common::Process` and `common::supervise`.
//!
//! Without libtest (`harness = false`): its threads would make every fork refuse. So these
//! checks run one after the other in `main`, as small programs of their own.

#[macro_use]
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::panic::catch_unwind;

use anyhow::{Result, bail};
use common::{Process, Stopped, hold_signals, supervise};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::unistd::{Pid, getpid, getppid, pipe2};
use support::run_checks;

fn main() {
    run_checks(&checks![
        a_child_is_another_process,
        failures_are_named,
        a_panic_stays_in_the_child,
        a_process_with_threads_is_refused,
        each_process_closes_the_other_s_end,
        what_is_moved_in_is_closed_in_the_parent,
        the_child_s_end_explains_the_parent_s,
        dropping_kills_and_reaps,
        a_child_does_not_outlive_its_parent,
        the_first_that_fails_stops_the_others,
        the_one_that_was_killed_is_named,
        a_stop_signal_ends_all,
        signals_on_hold_are_not_the_child_s,
        a_child_can_supervise_too,
        what_is_ignored_stays_ignored,
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
        let child = Process::spawn("child", body).unwrap();
        child.join().unwrap_err().to_string()
    };
    assert_eq!(join(|| bail!("on purpose")), "child failed with exit status 1");
    assert_eq!(join(|| panic!("on purpose")), "child panicked");
    let killed = join(|| Ok(raise(Signal::SIGKILL)?));
    assert_eq!(killed, "child was killed by SIGKILL");
}

fn a_panic_stays_in_the_child() {
    let parent = getpid();
    let child = catch_unwind(|| Process::spawn("child", || panic!("on purpose")).unwrap());
    assert_eq!(getpid(), parent, "the child went on as a second parent");
    child.unwrap().join().unwrap_err();
}

fn a_process_with_threads_is_refused() {
    let (mut wait, go) = pipe();
    let thread = std::thread::spawn(move || wait.read(&mut [0]).unwrap());
    let error = Process::spawn("child", || Ok(())).unwrap_err();
    let error = format!("{error:#}");
    assert_eq!(error, "spawn child: this process has 2 threads; fork before starting any");
    drop(go);
    thread.join().unwrap();
    Process::spawn("child", || Ok(())).unwrap().join().unwrap();
}

fn each_process_closes_the_other_s_end() {
    let (child, mut read) =
        Process::spawn_with("child", pipe(), |mut write| Ok(write.write_all(b"Data@subprocess")?))
            .unwrap();
    // Were a copy of the other end still open here, this would wait for ever.
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

fn the_child_s_end_explains_the_parent_s() {
    let (child, mut read) =
        Process::spawn_with("child", pipe(), |_write| Ok(raise(Signal::SIGKILL)?)).unwrap();
    let result = child.join_after(|| match read.read(&mut [0])? {
        0 => bail!("nothing came"),
        _ => Ok(()),
    });
    let error = format!("{:#}", result.unwrap_err());
    assert_eq!(error, "nothing came: child was killed by SIGKILL");
}

fn dropping_kills_and_reaps() {
    let child = Process::spawn("child", wait_for_ever).unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    drop(child);
    // Not even a zombie is left of it.
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}

fn a_child_does_not_outlive_its_parent() {
    let (mut read, write) = pipe();
    let parent = Process::spawn("parent", move || {
        let _child = Process::spawn("child", wait_for_ever)?;
        drop(write); // the child has a copy
        Ok(raise(Signal::SIGKILL)?)
    })
    .unwrap();
    // The end of the stream comes when the child is gone, too.
    assert_eq!(read.read(&mut [0]).unwrap(), 0);
    parent.join().unwrap_err();
}

fn the_first_that_fails_stops_the_others() {
    let waiting = Process::spawn("waiting", wait_for_ever).unwrap();
    let failing = Process::spawn("failing", || bail!("on purpose")).unwrap();
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
            0 => bail!("the victim is gone"),
            _ => Ok(()),
        })
        .unwrap();
        let error = supervise([peer, victim]).unwrap_err();
        assert_eq!(error.to_string(), "victim was killed by SIGKILL");
    }
}

fn a_stop_signal_ends_all() {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        hold_signals().unwrap();
        let waiting = Process::spawn("waiting", wait_for_ever).unwrap();
        let pid = Pid::from_raw(waiting.id() as i32);
        raise(signal).unwrap();
        let error = supervise([waiting]).unwrap_err();
        assert_eq!(error.downcast::<Stopped>().unwrap().0, signal);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }
}

fn signals_on_hold_are_not_the_child_s() {
    hold_signals().unwrap();
    let child = Process::spawn("child", || {
        assert_eq!(SigSet::thread_get_mask()?, SigSet::empty());
        Ok(())
    });
    child.unwrap().join().unwrap();
}

fn a_child_can_supervise_too() {
    hold_signals().unwrap();
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
            // SAFETY: installs no handler. Not covered: nothing else.
            unsafe { sigaction(signal, &ignore) }?;
        }
        hold_signals()?;
        raise(Signal::SIGHUP)?;
        let failing = Process::spawn("failing", || bail!("on purpose"))?;
        assert_eq!(failing.join().unwrap_err().to_string(), "failing failed with exit status 1");
        supervise([Process::spawn("grandchild", || Ok(()))?])
    });
    child.unwrap().join().unwrap();
}

fn wait_for_ever() -> Result<()> {
    SigSet::empty().wait()?;
    Ok(())
}

fn pipe() -> (File, File) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (read.into(), write.into())
}
