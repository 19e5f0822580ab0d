//! Processes as `multiprocessing.Process` starts them on Linux: by fork(2), and never left behind.
//!
//! [`Process::spawn`] forks a child for a closure, [`supervise`] waits for several children and stops the others
//! when one fails. This file needs no other: copy it with `nix` and `anyhow`.
//!
//! # Hazards
//!
//! - A fork copies every open descriptor. As long as *any* process keeps a copy of the far end of a pipe,
//!   its reader never sees EOF: close what is not yours, or let [`Process::spawn_with`] do it. That includes what the
//!   parent holds for other children.
//! - A child is killed with its parent, but a program that it starts by a [`Command`] is not. Nor is a child that
//!   drops its privileges (setuid(2)), which clears the request: it must call prctl(2), `PR_SET_PDEATHSIG`, again.
//! - A fork copies one thread only, so `spawn` refuses a process that has more. A program with threads
//!   starts `std::process::Command` instead, and hands descriptors down.

#![expect(unsafe_code, reason = "fork, _exit, sigaction and pre_exec have no safe form")]

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc::_exit;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

/// Exit status of a child that panicked; Rust's own for a panic in `main`.
const PANICKED: i32 = 101;

/// The signals that ask a program to stop.
const STOP_SIGNALS: [Signal; 4] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// How long `supervise` waits for further failures after the first, and `spawn` for a joined thread to leave
/// /proc.
const GRACE: Duration = Duration::from_millis(100);

/// The name of this process; see [`role`].
static ROLE: Mutex<Option<String>> = Mutex::new(None);

/// The signals that [`block_signals`] has blocked in this process, and that were not blocked before.
static BLOCKED: Mutex<Vec<Signal>> = Mutex::new(Vec::new());

/// A child process: `multiprocessing.Process(target=f, args=…)` with `start()` called.
///
/// Dropping it kills the child and reaps it, so no child is left behind on any path.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    parent: Pid,
    /// How it ended, if it has.
    ended: Option<Result<(), Failure>>,
}

/// What went wrong with a child.
#[derive(Clone, Debug)]
struct Failure {
    /// Of several failed children, the one that was killed is the likeliest cause.
    is_killed: bool,
    what: String,
}

impl Process {
    /// Forks a child that runs `body` and ends. `name` is its [`role`], shown in its errors and, cut to 15 bytes,
    /// in ps and top.
    ///
    /// A value moved into `body` is dropped in the parent right after the fork: that closes
    /// the parent's copy of a descriptor. It also runs a guard that deletes things, so keep such a guard in
    /// the parent and let `body` borrow it.
    ///
    /// The child's exit status is 0, 1 after an error (printed with its causes) or 101 after a
    /// panic. It is killed when this thread ends, so that it never becomes an orphan (unless it drops its privileges,
    /// see above). Signals that [`block_signals`] blocked are unblocked in it; those that the caller blocked stay
    /// blocked.
    ///
    /// Resets SIGCHLD to its default, even if the caller had a handler for it. Fails when this process has other
    /// threads: the child would hold copies of their locks with nobody left to unlock them. Fails as fork(2) does
    /// otherwise.
    ///
    /// That it is a safe function does not cover a thread that foreign code starts during the call, nor memory that
    /// another crate maps `MAP_SHARED` and hands out as `&mut`, which both processes would then hold.
    pub fn spawn(name: &str, body: impl FnOnce() -> Result<()>) -> Result<Process> {
        ensure_single_threaded().with_context(|| format!("spawn {name}"))?;
        // What is still in the buffer would be in the child's too, and printed twice. If it cannot
        // be written, whoever prints next will find out.
        let _ = io::stdout().flush();
        keep_statuses()?;
        let parent = getpid();
        // SAFETY: with one thread the child is a complete copy: no lock is held by a thread
        // that is not there. Not covered: a thread that foreign code starts after the check above (none
        // of ours can).
        match unsafe { fork() }.with_context(|| format!("fork {name}"))? {
            ForkResult::Parent { child: pid } => {
                Ok(Process { name: name.to_owned(), pid, parent, ended: None })
            }
            ForkResult::Child => {
                let status = run_child(name, parent, body);
                // SAFETY: takes no pointer and does not return. It skips the parent's exit handlers and
                // buffers. Not covered: what is still in a buffer is lost; stdout is flushed at the
                // end of each line.
                unsafe { _exit(status) }
            }
        }
    }

    /// Like [`Process::spawn`], for two processes that each get one of a pair of `ends`.
    ///
    /// The child closes the parent's end and runs `body` with its own; the parent closes the
    /// child's end and gets its own back. So when one of the two ends, however it ends, the
    /// other sees EOF instead of blocking forever.
    ///
    /// That holds for one child. A second one inherits the parent's end to the first, and keeps it open. So keep
    /// the ends in a place that each child clears before anything else:
    ///
    /// ```text
    /// let mut ours = vec![];
    /// for name in ["worker 1", "worker 2"] {
    ///     let (worker, end) = Process::spawn_with(name, pipe::duplex()?, |theirs| {
    ///         ours.clear(); // in the child only
    ///         worker(theirs)
    ///     })?;
    ///     ours.push(end);
    /// }
    /// ```
    pub fn spawn_with<P, C>(
        name: &str,
        ends: (P, C),
        body: impl FnOnce(C) -> Result<()>,
    ) -> Result<(Process, P)> {
        let (ours, theirs) = ends;
        // In an Option, so that the child can drop what the parent will return.
        let mut ours = Some(ours);
        let process = Process::spawn(name, || {
            drop(ours.take());
            body(theirs)
        })?;
        Ok((process, ours.context("only the child drops the parent's end")?))
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// The name given to [`Process::spawn`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Blocks until the child has ended: waitpid(2), `Process.join()`.
    ///
    /// First receive what it sends: a child blocked on a full pipe or queue never ends.
    ///
    /// Unlike Python's, it returns an error if the child failed, panicked or was killed.
    pub fn join(mut self) -> Result<()> {
        self.wait(None);
        self.ended.clone().unwrap_or(Ok(())).map_err(|failure| Error::msg(failure.what))
    }

    /// Whether the child has ended: waitpid(2) with `WNOHANG`, the inverse of `Process.is_alive()`.
    ///
    /// Never blocks. An error if the child failed, panicked or was killed, each time.
    pub fn try_wait(&mut self) -> Result<bool> {
        self.wait(Some(WaitPidFlag::WNOHANG));
        match &self.ended {
            Some(Err(failure)) => bail!(failure.what.clone()),
            ended => Ok(ended.is_some()),
        }
    }

    /// Runs the parent's `part` of an exchange, then joins the child.
    ///
    /// When both fail, the error of the parent's part has the child's as its cause: the child's failure is why the
    /// exchange broke. `part` must own the parent's end, so that the end is closed when it returns, and a child
    /// that still waits for an answer can leave.
    pub fn run_then_join(self, part: impl FnOnce() -> Result<()>) -> Result<()> {
        match (part(), self.join()) {
            (Err(part), Err(child)) => Err(child.context(format!("{part:#}"))),
            (part, child) => part.and(child),
        }
    }

    /// Reaps the child if it has ended (with WNOHANG), or blocks until it has.
    fn wait(&mut self, flags: Option<WaitPidFlag>) {
        if self.ended.is_some() {
            return;
        }
        let status = loop {
            match waitpid(self.pid, flags) {
                Err(Errno::EINTR) => {}
                status => break status,
            }
        };
        let name = &self.name;
        let (is_killed, what) = match status {
            Ok(WaitStatus::StillAlive) => return,
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                (true, format!("{name} was killed by {signal}"))
            }
            Ok(WaitStatus::Exited(_, PANICKED)) => (false, format!("{name} panicked")),
            Ok(WaitStatus::Exited(_, code)) => {
                (false, format!("{name} failed with exit status {code}"))
            }
            Ok(other) => (false, format!("{name} ended: {other:?}")),
            // Somebody else has reaped it, and the id may by now belong to a stranger.
            Err(errno) => (false, format!("waitpid {name}: {errno}")),
        };
        let is_fine = matches!(status, Ok(WaitStatus::Exited(_, 0)));
        self.ended = Some(if is_fine { Ok(()) } else { Err(Failure { is_killed, what }) });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A copy of this value in another child is not that child's to kill.
        if self.ended.is_none() && getpid() == self.parent {
            // One that runs a setuid program is not ours to kill, and may never end.
            if kill(self.pid, Signal::SIGKILL) != Err(Errno::EPERM) {
                self.wait(None);
            }
        }
    }
}

/// Blocks Ctrl-C and the other stop signals, until [`supervise`] takes them.
///
/// Call it before making what must be removed at the end (a file, a directory, a name): a signal that killed the
/// program in between would leave it behind. Signals ignored from the start (nohup, a shell's background job) stay
/// ignored: blocked, they would reach `supervise`. Until `supervise` runs, this process does not react to the
/// blocked ones, even while it waits elsewhere.
///
/// [`Process::spawn`] unblocks them in its children; for a [`Command`] see [`unblock_signals`]. A second call does
/// nothing. Fails when this process has other threads, where the signals would stay unblocked: a SIGCHLD delivered
/// there would be lost, and `supervise` would wait forever. Threads started afterwards are fine.
pub fn block_signals() -> Result<()> {
    // proc_pid_status(5): a bit for each signal that this process ignores.
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let ignored = ignored.context("read /proc/self/status: no SigIgn")?;
    let current = SigSet::thread_get_mask().context("pthread_sigmask")?;
    let is_ours = |signal: &Signal| (ignored >> (*signal as i32 - 1)) & 1 == 0;
    let wanted = STOP_SIGNALS.into_iter().filter(is_ours).chain([Signal::SIGCHLD]);
    let wanted: Vec<_> = wanted.filter(|signal| !current.contains(*signal)).collect();
    if !wanted.is_empty() {
        ensure_single_threaded().context("block signals")?;
        wanted.iter().copied().collect::<SigSet>().thread_block().context("pthread_sigmask")?;
        locked(&BLOCKED).extend(wanted);
    }
    Ok(())
}

/// Makes `command` unblock, before it starts, the signals that [`block_signals`] blocked.
///
/// A started program inherits the blocked signals, and would not react to Ctrl-C or SIGTERM.
pub fn unblock_signals(command: &mut Command) -> &mut Command {
    let blocked: SigSet = locked(&BLOCKED).iter().copied().collect();
    // SAFETY: this runs in the child, between fork and exec. The parent may have threads, so only
    // async-signal-safe calls are allowed there: it calls pthread_sigmask(3). Not covered: nothing; it
    // allocates and locks nothing.
    unsafe { command.pre_exec(move || Ok(blocked.thread_unblock()?)) }
}

/// Blocks until all `processes` have ended. The first failure, or a stop signal, ends the others by SIGKILL. Unless
/// that process was killed, its failure may only be a consequence: the others get up to 100 ms to report theirs.
///
/// A parent that does something else meanwhile asks each with [`Process::try_wait`].
///
/// The parent sleeps until SIGCHLD says that a child ended: signalfd(2), ppoll(2). Stop signals stay
/// blocked afterwards (see [`block_signals`]), so that nothing cuts the clean-up short.
///
/// Fails with an error that names the process (of several, the one that was killed, or else all), or with
/// "stopped" and the [`Signal`] that asked for it, to which the error downcasts; fails as [`block_signals`] does.
pub fn supervise(processes: impl IntoIterator<Item = Process>) -> Result<()> {
    keep_statuses()?;
    block_signals()?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = STOP_SIGNALS.into_iter().chain([Signal::SIGCHLD]).collect();
    let signals = SignalFd::with_flags(&signals, flags).context("signalfd")?;
    let mut running: Vec<Process> = processes.into_iter().collect();
    let mut failures: Vec<Failure> = Vec::new();
    let mut deadline = None;
    loop {
        running.iter_mut().for_each(|process| process.wait(Some(WaitPidFlag::WNOHANG)));
        running.retain(|process| {
            failures.extend(process.ended.clone().and_then(Result::err));
            process.ended.is_none()
        });
        if running.is_empty() || failures.iter().any(|failure| failure.is_killed) {
            break;
        }
        if !failures.is_empty() {
            deadline.get_or_insert_with(|| Instant::now() + GRACE);
        }
        if !wait_for_signal(&signals, deadline)? {
            break;
        }
    }
    drop(running); // kills and reaps the others
    if failures.is_empty() {
        return Ok(());
    }
    // Ctrl-C goes to the children too, and one may be gone before we look at our own signals.
    while wait_for_signal(&signals, Some(Instant::now()))? {}
    let any_killed = failures.iter().any(|failure| failure.is_killed);
    failures.retain(|failure| failure.is_killed == any_killed);
    let causes: Vec<_> = failures.into_iter().map(|failure| failure.what).collect();
    bail!(causes.join("; "))
}

/// Waits until the deadline for a signal; all but SIGCHLD are an error. False if none came.
fn wait_for_signal(signals: &SignalFd, deadline: Option<Instant>) -> Result<bool> {
    loop {
        if let Some(info) = signals.read_signal().context("read signalfd")? {
            return match Signal::try_from(info.ssi_signo as i32)? {
                Signal::SIGCHLD => Ok(true),
                signal => Err(Error::msg(signal).context("stopped")),
            };
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(false);
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, left.map(Into::into), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("ppoll"),
        }
    }
}

/// The name of this process: the one given to [`Process::spawn`] or [`set_role`]. `None` if it has none.
pub fn role() -> Option<String> {
    locked(&ROLE).clone()
}

/// Names this process, where it was not started by [`Process::spawn`].
pub fn set_role(name: &str) {
    *locked(&ROLE) = Some(name.to_owned());
}

/// What a panic elsewhere cannot have left half done: each change is one assignment.
fn locked<T>(mutex: &Mutex<T>) -> impl std::ops::DerefMut<Target = T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the child does between fork and exit; returns its exit status.
fn run_child(name: &str, parent: Pid, body: impl FnOnce() -> Result<()>) -> i32 {
    let run = || {
        prctl::set_name(&CString::new(name)?).context("prctl PR_SET_NAME")?;
        set_role(name);
        prctl::set_pdeathsig(Signal::SIGKILL).context("prctl PR_SET_PDEATHSIG")?;
        // If the parent died before that call, nobody will send the signal any more. (0: it is in another pid
        // namespace, after unshare(2), and this process cannot see it.)
        ensure!([parent, Pid::from_raw(0)].contains(&getppid()), "the parent is gone");
        let blocked: SigSet = std::mem::take(&mut *locked(&BLOCKED)).into_iter().collect();
        blocked.thread_unblock().context("pthread_sigmask")?;
        body()
    };
    // A panic must not unwind into the parent's code: the child has a copy of that stack, and would go
    // on as a second parent. Printing and dropping the error can panic as well, so they are in here.
    let status = catch_unwind(AssertUnwindSafe(|| match run() {
        Ok(()) => 0,
        Err(error) => {
            // One write, so that the lines of several processes do not mix. If stderr is gone too, the
            // exit status still tells.
            let _ = io::stderr().write_all(format!("{name}: error: {error:#}\n").as_bytes());
            1
        }
    }));
    status.unwrap_or_else(|payload| {
        std::mem::forget(payload); // its drop might panic, too
        PANICKED
    })
}

/// Sets SIGCHLD to its default: where it is ignored, the kernel throws away how a child ended, and sends no signal.
fn keep_statuses() -> Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: installs no handler, so no code of ours runs in signal context. Not covered:
    // a handler that other code in this process had set is gone.
    unsafe { sigaction(Signal::SIGCHLD, &default) }.map(drop).context("sigaction SIGCHLD")
}

/// An error if this process has more than one thread.
fn ensure_single_threaded() -> Result<()> {
    // The kernel can list a thread for 2 ms after it was joined, and offers nothing to wait for.
    let deadline = Instant::now() + GRACE;
    while fs::read_dir("/proc/self/task").context("read /proc/self/task")?.count() > 1 {
        if Instant::now() >= deadline {
            bail!("this process has other threads; do this before starting any");
        }
        std::thread::yield_now();
    }
    Ok(())
}
