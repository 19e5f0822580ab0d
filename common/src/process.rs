//! Processes as `multiprocessing.Process` starts them on Linux: by fork(2), and never left behind.
//!
//! [`Process::spawn`] forks a child that runs a closure; [`supervise`] waits for several children and stops the others when
//! one fails. This file needs no other: copy it with `nix` and `anyhow`.
//!
//! # Hazards
//!
//! A fork copies everything, and both processes go on with their copy:
//!
//! - Descriptors: while *any* process keeps a copy of a pipe's writing end, the reader sees no EOF. Close what is
//!   not yours, or let [`Process::spawn_with`] do it. That includes what the parent holds for other children.
//! - Connections: on a stream that was open before, replies go to whichever process reads first. Connect in the child.
//! - Random numbers: a generator that was seeded before gives both the same ones. Seed it in the child.
//! - Buffers: what your own writers hold is written twice, so flush them first (`spawn` flushes stdout). What stdin has
//!   read ahead is read twice: read it in one process.
//!
//! And besides:
//!
//! - A child is killed with its parent, but a program that it starts by a [`Command`] is not. Nor is a child that
//!   drops its privileges (setuid(2)), which clears the request: it must call prctl(2), `PR_SET_PDEATHSIG`, again.
//! - A program that has threads cannot fork: start a [`Command`] instead, and hand descriptors down.
//! - A second way to reap children, such as waitpid(-1), takes what this one waits for; and should another child of this
//!   process get the id by then, it is taken for the first.
//! - As the first process of a container a program must reap orphans, which this one does not: `docker run --init`.

#![expect(unsafe_code, reason = "fork, _exit, and what nix lacks of signals")]

use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, ExitStatus};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc::{self, _exit};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

/// Exit status of a child that panicked; Rust's own for a panic in `main`.
const PANICKED: i32 = 101;

/// What `supervise` waits for: the signals that ask a program to stop, and the one that a child has ended.
const SIGNALS: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGCHLD];

/// How long children have to report a failure of their own after the first, and to stop; and how long `spawn` waits for
/// a joined thread to leave /proc.
const GRACE: Duration = Duration::from_millis(400);

/// How often `supervise` looks by itself, should a SIGCHLD get lost.
const LOOK: Duration = Duration::from_millis(250);

/// How many of its ancestors `Process::spawn` has started.
static LEVEL: AtomicU32 = AtomicU32::new(0);

/// The name of this process; see [`role`].
static ROLE: Mutex<Option<String>> = Mutex::new(None);

/// A child process: `multiprocessing.Process(target=f, args=…)` with `start()` called.
///
/// Dropping it kills the child and reaps it, so no child is left behind on any path.
#[derive(Debug)]
#[must_use = "dropping it kills the child"]
pub struct Process {
    name: String,
    pid: Pid,
    parent: Pid,
    /// How it ended, if it has.
    status: Option<ExitStatus>,
}

impl Process {
    /// Forks a child that runs `body` and ends. `name` is its [`role`], shown in its errors and, cut to 15 bytes,
    /// in ps and top. (What a fork copies: see the hazards above.)
    ///
    /// A value moved into `body` is dropped in the parent right after the fork: that closes
    /// the parent's copy of a descriptor. It also runs a guard that deletes things, so keep such a guard in
    /// the parent and let `body` borrow it.
    ///
    /// The child's exit status is 0, 1 after an error (printed with its causes) or 101 after a
    /// panic. It is killed when this thread ends, so that it never becomes an orphan. Stop signals are unblocked in it.
    ///
    /// Sets SIGCHLD to its default, even if the caller ignored it or had a handler. Fails when this process has other
    /// threads: the child would hold copies of their locks with nobody left to unlock them. Fails as fork(2) does
    /// otherwise.
    ///
    /// That it is a safe function does not cover a thread that foreign code starts during the call, nor memory that
    /// another crate maps `MAP_SHARED` and hands out as `&mut`, which both processes would then hold.
    pub fn spawn(name: &str, body: impl FnOnce() -> Result<()>) -> Result<Process> {
        ensure_single_threaded().with_context(|| format!("spawn {name}"))?;
        // What is still in the buffer would be in the child's too, and printed twice. If it cannot
        // be written, whoever prints next will find out.
        let _ = print("");
        keep_statuses()?;
        let parent = getpid();
        // SAFETY: with one thread the child is a complete copy: no lock is held by a thread
        // that is not there. Not covered: a thread that foreign code starts after the check above (none
        // of ours can).
        match unsafe { fork() }.with_context(|| format!("fork {name}"))? {
            ForkResult::Parent { child: pid } => {
                Ok(Process { name: name.to_owned(), pid, parent, status: None })
            }
            ForkResult::Child => {
                let status = run_child(name, parent, body);
                // SAFETY: takes no pointer and does not return. It skips the parent's exit handlers. Not
                // covered: what is in a buffer other than stdout's is lost.
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
    /// First receive what it sends: a child blocked on a full pipe or queue never ends. Unlike Python's, it returns an
    /// error if the child failed, panicked or was killed.
    pub fn join(mut self) -> Result<()> {
        self.wait(0).map(drop)
    }

    /// [`Process::join`] after our own `part` of an exchange. If both failed, either may be why: the error says both.
    pub fn join_after<T>(self, part: Result<T>) -> Result<T> {
        match (self.join(), part) {
            (Err(child), Err(ours)) => bail!("{child:#}; {ours:#}"),
            (joined, part) => joined.and(part),
        }
    }

    /// Whether the child has ended: waitpid(2) with `WNOHANG`, the inverse of `Process.is_alive()`.
    ///
    /// Never blocks. An error if the child failed, panicked or was killed, each time.
    pub fn try_wait(&mut self) -> Result<bool> {
        self.wait(libc::WNOHANG)
    }

    /// Reaps the child if it has ended, or without `WNOHANG` blocks until it has. (nix's waitpid knows no real-time
    /// signals.)
    fn wait(&mut self, flags: i32) -> Result<bool> {
        let name = &self.name;
        while self.status.is_none() {
            let mut status = 0;
            // SAFETY: the address is valid for the length of the call. Not covered: nothing.
            match Errno::result(unsafe { libc::waitpid(self.pid.as_raw(), &mut status, flags) }) {
                Err(Errno::EINTR) => {}
                Ok(0) => return Ok(false),
                ended => {
                    ended.with_context(|| format!("waitpid {name}"))?;
                    self.status = Some(ExitStatus::from_raw(status));
                }
            }
        }
        let number = self.killed_by().unwrap_or_default();
        match self.status.and_then(|status| status.code()) {
            Some(0) => Ok(true),
            Some(PANICKED) => bail!("{name} panicked"),
            Some(code) => bail!("{name} failed with exit status {code}"),
            None => match Signal::try_from(number) {
                Ok(signal) => bail!("{name} was killed by {signal}"),
                Err(_) => bail!("{name} was killed by signal {number}"),
            },
        }
    }

    /// The signal that it was killed by, if it was.
    fn killed_by(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    /// Sends it a signal, if it is alive: once somebody has reaped it, its id may be a stranger's.
    fn kill(&mut self, signal: Signal) -> bool {
        matches!(self.try_wait(), Ok(false)) && kill(self.pid, signal).is_ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A copy of this value in another child is not that child's to kill. One that runs a setuid program is
        // not ours to kill, either, and may never end.
        if getpid() == self.parent && self.kill(Signal::SIGKILL) {
            let _ = self.wait(0);
        }
    }
}

/// Blocks Ctrl-C and the other stop signals, until [`supervise`] takes them.
///
/// Call it before making what must be removed at the end (a file, a directory, a name): a signal that killed the
/// program in between would leave it behind. Signals ignored from the start (nohup, a shell's background job) stay
/// ignored. Until `supervise` runs, this process does not react to the blocked ones, even while it waits elsewhere.
///
/// A second call does nothing. Fails when this process has other threads, where the signals would stay unblocked.
/// Threads started afterwards are fine.
pub fn block_signals() -> Result<()> {
    keep_statuses()?;
    // proc_pid_status(5): a bit for each signal that is ignored. Blocked, it would not be ignored any more.
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    let ignored = u64::from_str_radix(ignored.context("/proc/self/status: no SigIgn")?, 16)?;
    let blocked = SigSet::thread_get_mask().context("pthread_sigmask")?;
    let is_ignored =
        |signal: &Signal| ignored >> (*signal as i32 - 1) & 1 == 1 && *signal != Signal::SIGCHLD;
    let wanted: SigSet = SIGNALS.into_iter().filter(|signal| !is_ignored(signal)).collect();
    if !wanted.iter().all(|signal| blocked.contains(signal)) {
        ensure_single_threaded().context("block signals")?;
        wanted.thread_block().context("pthread_sigmask")?;
    }
    Ok(())
}

/// [`block_signals`], and a descriptor to poll instead of [`supervise`]: readable once this process has been asked to stop.
/// Its `read_signal` says by which signal. For a daemon that waits for something else meanwhile: signalfd(2).
pub fn stop_signals() -> Result<SignalFd> {
    block_signals()?;
    let signals = SIGNALS.into_iter().filter(|signal| *signal != Signal::SIGCHLD).collect();
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("signalfd")
}

/// The exit status of a process that [`stop_signals`] has told to stop: 128 + signal, as a shell reports it.
///
/// Takes the signal from `stop`, and blocks until there is one.
pub fn stop_status(stop: &SignalFd) -> Result<ExitCode> {
    let signal = stop.read_signal()?.context("read signalfd")?;
    Ok(ExitCode::from(128 + signal.ssi_signo as u8))
}

/// Makes `command` unblock, before it starts, what [`block_signals`] has blocked: a started program inherits that, and
/// would not react to Ctrl-C or SIGTERM.
pub fn unblock_signals(command: &mut Command) -> &mut Command {
    let signals: SigSet = SIGNALS.into_iter().collect();
    // SAFETY: this runs in the child, between fork and exec. The parent may have threads, so only
    // async-signal-safe calls are allowed there: it calls pthread_sigmask(3). Not covered: nothing; it
    // neither allocates nor locks.
    unsafe { command.pre_exec(move || Ok(signals.thread_unblock()?)) }
}

/// Blocks until all `processes` have ended. The first that fails, or a stop signal, ends the others: they get SIGTERM,
/// 400 ms to clean up in, and then SIGKILL. (In a child it is half as long, and so on, so that it can clean up itself.)
///
/// A parent that does something else meanwhile asks each with [`Process::try_wait`].
///
/// The parent sleeps until SIGCHLD says that a child ended: sigtimedwait(2). Stop signals stay blocked afterwards (see
/// [`block_signals`]), so that nothing cuts the clean-up short.
///
/// Fails with an error that names the process that failed, or with "stopped" and the [`Signal`] that asked for it, to
/// which the error downcasts; fails as [`block_signals`] does. The failure of one may be a consequence of another's:
/// unless it was killed, the others get 400 ms to report theirs. Whichever was killed is named, or else all.
pub fn supervise(processes: impl IntoIterator<Item = Process>) -> Result<()> {
    block_signals()?;
    let mut running: Vec<Process> = processes.into_iter().collect();
    let result = watch(&mut running);
    running.retain_mut(|process| process.kill(Signal::SIGTERM));
    // One that supervises in turn needs time to clean up after its own: each level has half as much.
    let deadline = Instant::now() + GRACE / 2_u32.pow(LEVEL.load(Relaxed).min(5));
    while !running.is_empty() && Instant::now() < deadline {
        let _ = wait_for_signal(GRACE / 10); // it has been asked to stop already
        running.retain_mut(|process| matches!(process.try_wait(), Ok(false)));
    }
    result // what still runs is killed by its drop
}

/// Waits until all have ended, one has failed, or a stop signal comes.
fn watch(running: &mut Vec<Process>) -> Result<()> {
    // Whether it was killed, and what happened; and until when others may report theirs.
    let (mut failures, mut end) = (Vec::new(), None);
    let any_killed = |failures: &[(bool, String)]| failures.iter().any(|(is_killed, _)| *is_killed);
    loop {
        running.retain_mut(|process| match process.try_wait() {
            Ok(has_ended) => !has_ended,
            Err(failure) => {
                failures.push((process.killed_by().is_some(), format!("{failure:#}")));
                false
            }
        });
        let mut timeout = LOOK;
        if !failures.is_empty() {
            let end = *end.get_or_insert_with(|| Instant::now() + GRACE);
            timeout = end.saturating_duration_since(Instant::now());
        }
        if running.is_empty() || any_killed(&failures) || timeout.is_zero() {
            break;
        }
        wait_for_signal(timeout)?;
    }
    if failures.is_empty() {
        return Ok(());
    }
    // Ctrl-C goes to the children, too, and one may be gone before we look at our own signals.
    wait_for_signal(Duration::ZERO)?;
    let is_killed = any_killed(&failures);
    failures.retain(|failure| failure.0 == is_killed);
    bail!(failures.into_iter().map(|failure| failure.1).collect::<Vec<_>>().join("; "))
}

/// Waits until a child has ended, or the time has; a stop signal is an error.
fn wait_for_signal(timeout: Duration) -> Result<()> {
    let (signals, timeout) = (SIGNALS.into_iter().collect::<SigSet>(), TimeSpec::from(timeout));
    // SAFETY: the addresses are valid for the length of the call; null: no details. Not covered: nothing.
    let signal = unsafe { libc::sigtimedwait(signals.as_ref(), ptr::null_mut(), timeout.as_ref()) };
    match Errno::result(signal) {
        Ok(libc::SIGCHLD) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        signal => {
            let signal = Signal::try_from(signal.context("sigtimedwait")?)?;
            Err(Error::msg(signal).context("stopped"))
        }
    }
}

/// Writes `text` to stdout, at once. A missing reader (`| head -1`) is no error, unlike with `println!`.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write stdout"),
    }
}

/// Prints a line of a daemon's log. That it cannot be written (a full disk) is said once on stderr, and ends nothing.
///
/// It must be read, though: a pipe that nobody drains is full some day, and then this blocks, and with it any stop signal.
pub fn log(line: &str) {
    note(print(&format!("{line}\n")));
}

/// For a line that may be lost: says on stderr, once, that it could not be `printed`.
pub fn note(printed: Result<()>) {
    static SAID: Once = Once::new();
    if let Err(error) = printed {
        SAID.call_once(|| drop(io::stderr().write_all(format!("{error:#}\n").as_bytes())));
    }
}

/// The name of this process: the one given to [`Process::spawn`] or [`set_role`]. `None` if it has none.
pub fn role() -> Option<String> {
    ROLE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Names this process, where it was not started by [`Process::spawn`].
pub fn set_role(name: &str) {
    *ROLE.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
}

/// What the child does between fork and exit; returns its exit status.
fn run_child(name: &str, parent: Pid, body: impl FnOnce() -> Result<()>) -> i32 {
    let run = || {
        prctl::set_name(&CString::new(name)?).context("prctl PR_SET_NAME")?;
        set_role(name);
        LEVEL.fetch_add(1, Relaxed);
        prctl::set_pdeathsig(Signal::SIGKILL).context("prctl PR_SET_PDEATHSIG")?;
        // If the parent died before that call, nobody will send the signal any more. (0: it is in another pid
        // namespace, after unshare(2), and this process cannot see it.)
        ensure!([parent, Pid::from_raw(0)].contains(&getppid()), "the parent is gone");
        SIGNALS.into_iter().collect::<SigSet>().thread_unblock().context("pthread_sigmask")?;
        let done = body();
        done.and(print("")) // a line without its end is still in the buffer
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
        let _ = print("");
        PANICKED
    })
}

/// Sets SIGCHLD to its default: where it is ignored, the kernel throws away how a child ended, and sends no signal.
fn keep_statuses() -> Result<()> {
    // SAFETY: installs no handler. Not covered: one that other code in this process had set is gone.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map(drop).context("signal SIGCHLD")
}

/// An error if this process has more than one thread.
fn ensure_single_threaded() -> Result<()> {
    // The kernel can list a thread for 2 ms after it was joined, and offers nothing to wait for.
    let deadline = Instant::now() + GRACE;
    while fs::read_dir("/proc/self/task").context("read /proc/self/task")?.count() > 1 {
        ensure!(
            Instant::now() < deadline,
            "this process has other threads; do this before starting any"
        );
        std::thread::yield_now();
    }
    Ok(())
}
