use std::ffi::CString;
use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};

use crate::log;

/// Exit status of a child that panicked; Rust's own for a panic in `main`.
const PANICKED: i32 = 101;

/// The signals that ask a program to stop.
const STOP_SIGNALS: [Signal; 4] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The signal mask from before [`hold_signals`], for the children to go back to.
static ORIGINAL_MASK: Mutex<Option<SigSet>> = Mutex::new(None);

/// A child process: `multiprocessing.Process(target=f, args=…)` with `start()` called.
///
/// Dropping it kills the child and reaps it, so no child is left behind on any path.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    parent: Pid,
    reaped: bool,
}

/// The error of [`supervise`] when a signal asked the program to stop.
#[derive(Debug)]
pub struct Stopped(
    /// The signal: SIGHUP, SIGINT, SIGQUIT or SIGTERM.
    pub Signal,
);

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}", self.0)
    }
}

impl std::error::Error for Stopped {}

impl Process {
    /// Forks a child that runs `body` and ends; `name` is its role in the log and in errors.
    ///
    /// A value moved into `body` is dropped in the parent right after the fork: that closes
    /// the parent's copy of a descriptor. Everything else that is open stays open in both,
    /// and as long as *any* process keeps a copy of the far end of a pipe, its reader sees no
    /// end of stream; [`Process::spawn_with`] closes the other's end too.
    ///
    /// The child's exit status is 0, 1 after an error (printed with its causes) or 101 after a
    /// panic. It is killed when this thread ends, so that no child outlives its parent.
    ///
    /// Fails when this process has other threads: the child would hold copies of their locks
    /// with nobody left to unlock them. Fails as fork(2) does otherwise.
    pub fn spawn(name: &str, body: impl FnOnce() -> Result<()>) -> Result<Process> {
        refuse_threads().with_context(|| format!("spawn {name}"))?;
        // What is still in the buffer would be in the child's too, and printed twice.
        // A closed stdout is the log's business, not ours.
        let _ = io::stdout().flush();
        // Where whoever started us ignored SIGCHLD, the kernel would throw the status away.
        sys::default_sigchld().context("sigaction SIGCHLD")?;
        let parent = getpid();
        match sys::fork().with_context(|| format!("fork {name}"))? {
            Some(pid) => Ok(Process { name: name.to_owned(), pid, parent, reaped: false }),
            None => {
                log::set_role(name);
                sys::exit(run_child(name, parent, body));
            }
        }
    }

    /// Like [`Process::spawn`], for two processes that each get one of a pair of `ends`.
    ///
    /// The child closes the parent's end and runs `body` with its own; the parent closes the
    /// child's end and gets its own back. So when one of the two ends, however it ends, the
    /// other sees the end of the stream instead of waiting for ever.
    pub fn spawn_with<P, C>(
        name: &str,
        ends: (P, C),
        body: impl FnOnce(C) -> Result<()>,
    ) -> Result<(Process, P)> {
        let (parents, childs) = ends;
        // In an Option, so that the child can drop what the parent will return.
        let mut parents = Some(parents);
        let process = Process::spawn(name, || {
            drop(parents.take());
            body(childs)
        })?;
        let parents = parents.context("only the child drops the parent's end")?;
        Ok((process, parents))
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// The name given to [`Process::spawn`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the child has ended: waitpid(2), `Process.join()`.
    ///
    /// Unlike Python's, it is an error when the child failed, panicked or was killed.
    pub fn join(mut self) -> Result<()> {
        match self.wait(None)? {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// Plays the parent's `part` of a talk, then joins the child.
    ///
    /// When both fail, the error of the parent's part has the child's as its cause: that the
    /// child is gone is why the talk ended. `part` must own the parent's end, so that the end
    /// is closed when it returns, and a child that still waits for an answer can leave.
    pub fn join_after(self, part: impl FnOnce() -> Result<()>) -> Result<()> {
        let part = part();
        match (part, self.join()) {
            (part, Ok(())) => part,
            (Ok(()), child) => child,
            (Err(part), Err(child)) => Err(child.context(format!("{part:#}"))),
        }
    }

    /// Reaps the child if it has ended (with WNOHANG), or waits until it has.
    /// Returns how it failed; `None` when it succeeded or still runs.
    fn wait(&mut self, flags: Option<WaitPidFlag>) -> Result<Option<Failure>> {
        let status = loop {
            match waitpid(self.pid, flags) {
                Err(Errno::EINTR) => {}
                status => break status.with_context(|| format!("waitpid {}", self.name))?,
            }
        };
        self.reaped = status != WaitStatus::StillAlive;
        let name = &self.name;
        Ok(match status {
            WaitStatus::StillAlive | WaitStatus::Exited(_, 0) => None,
            WaitStatus::Signaled(_, signal, _) => {
                Some(Failure::Killed(format!("{name} was killed by {signal}")))
            }
            WaitStatus::Exited(_, PANICKED) => Some(Failure::Panicked(format!("{name} panicked"))),
            WaitStatus::Exited(_, code) => {
                Some(Failure::Failed(format!("{name} failed with exit status {code}")))
            }
            other => Some(Failure::Failed(format!("{name} ended: {other:?}"))),
        })
    }

    /// Whether the child is on its way out, and cannot be stopped or killed any more.
    fn is_ending(&self) -> bool {
        const PF_EXITING: u32 = 4;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The flags are the seventh field after the name, which is in brackets: proc(5).
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let flags = fields.split(' ').nth(6).and_then(|flags| flags.parse().ok());
        flags.unwrap_or(0) & PF_EXITING != 0
    }
}

/// How a child failed. Of several, the least is the likeliest cause of the others.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Killed(String),
    Panicked(String),
    Failed(String),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> anyhow::Error {
        let (Failure::Killed(what) | Failure::Panicked(what) | Failure::Failed(what)) = failure;
        anyhow::Error::msg(what)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A copy of this value in another child is not that child's to kill.
        if !self.reaped && getpid() == self.parent {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = self.wait(None);
        }
    }
}

/// Lets Ctrl-C and the other stop signals wait from now on, until [`supervise`] takes them.
///
/// Call it before making what must be removed at the end (a file, a directory, a name): a
/// signal that killed the program in between would leave it behind. Children are not
/// affected. Calling it again does nothing.
pub fn hold_signals() -> Result<()> {
    let mut original = original_mask();
    if original.is_some() {
        return Ok(());
    }
    // What we were started to ignore stays ignored (nohup, a shell's background job): held, it
    // would be delivered.
    let ignored = ignored_signals()?;
    let mut held = supervised_signals();
    ignored.iter().for_each(|signal| held.remove(signal));
    let mask = held.thread_swap_mask(SigmaskHow::SIG_BLOCK).context("pthread_sigmask")?;
    *original = Some(mask);
    Ok(())
}

/// The stop signals that this process ignores: proc_pid_status(5).
fn ignored_signals() -> Result<SigSet> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let mask = mask.context("read /proc/self/status: no SigIgn")?;
    let ignored = |signal: &Signal| mask >> (*signal as i32 - 1) & 1 == 1;
    Ok(STOP_SIGNALS.into_iter().filter(ignored).collect())
}

fn original_mask() -> MutexGuard<'static, Option<SigSet>> {
    ORIGINAL_MASK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for all `processes`. The first that fails, or a signal that asks to stop, ends the others.
///
/// The parent sleeps in sigwait(3) until SIGCHLD says that a child ended. Stop signals stay
/// on hold afterwards (see [`hold_signals`]), so that nothing cuts the clean-up short.
///
/// Fails with an error that names the process, or with [`Stopped`].
pub fn supervise(processes: impl IntoIterator<Item = Process>) -> Result<()> {
    hold_signals()?;
    let mut running: Vec<Process> = processes.into_iter().collect();
    loop {
        let mut failures = Vec::new();
        for process in &mut running {
            failures.extend(process.wait(Some(WaitPidFlag::WNOHANG))?);
        }
        if !failures.is_empty() {
            // When one is killed, the others may fail for want of it, and even be gone before it
            // is. So who is ending by itself may still say how.
            running.retain(|process| !process.reaped);
            for process in running.iter_mut().filter(|process| process.is_ending()) {
                failures.extend(process.wait(None)?);
            }
            drop(running); // kills and reaps the others
            // Ctrl-C goes to the children too, and one may be gone before we look at our own
            // signals. With SIGCHLD pending sigwait(3) does not wait, and it takes the lowest:
            // the stop signals come before SIGCHLD.
            kill(getpid(), Signal::SIGCHLD).context("kill")?;
            stop_if_asked()?;
            return Err(failures.into_iter().min().context("at least one")?.into());
        }
        running.retain(|process| !process.reaped);
        if running.is_empty() {
            return Ok(());
        }
        stop_if_asked()?;
    }
}

/// Waits for a signal; all but SIGCHLD are an error.
fn stop_if_asked() -> Result<()> {
    match supervised_signals().wait().context("sigwait")? {
        Signal::SIGCHLD => Ok(()),
        signal => Err(Stopped(signal).into()),
    }
}

fn supervised_signals() -> SigSet {
    STOP_SIGNALS.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// What the child does between fork and exit; returns its exit status.
fn run_child(name: &str, parent: Pid, body: impl FnOnce() -> Result<()>) -> i32 {
    // A panic must not unwind into the parent's code: the child has a copy of that stack, and
    // would go on as a second parent.
    let result = catch_unwind(AssertUnwindSafe(|| {
        // What ps and top show; the kernel keeps the first 15 bytes.
        set_name(&CString::new(name)?).context("prctl PR_SET_NAME")?;
        set_pdeathsig(Signal::SIGKILL).context("prctl PR_SET_PDEATHSIG")?;
        // If the parent died before that call, nobody will send the signal any more.
        if getppid() != parent {
            bail!("the parent is gone");
        }
        // Taken, so that a child which supervises children of its own holds the signals anew.
        if let Some(mask) = original_mask().take() {
            mask.thread_set_mask().context("pthread_sigmask")?;
        }
        body()
    }));
    match result {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            log::complain(&error);
            1
        }
        Err(_) => {
            log::complain(&anyhow::anyhow!("panicked"));
            PANICKED
        }
    }
}

/// An error if this process has more than one thread.
fn refuse_threads() -> Result<()> {
    // The kernel can list a thread for 2 ms after it was joined, and offers nothing to wait for.
    let deadline = Instant::now() + Duration::from_millis(100);
    loop {
        let threads = std::fs::read_dir("/proc/self/task").context("read /proc/self/task")?.count();
        if threads == 1 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("this process has {threads} threads; fork before starting any");
        }
        std::thread::yield_now();
    }
}

/// The calls that Rust cannot check.
mod sys {
    #![expect(unsafe_code, reason = "fork, _exit and sigaction have no safe form")]

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    use nix::unistd::{ForkResult, Pid, fork as fork_unchecked};

    /// fork(2): the child's id in the parent, `None` in the child.
    /// The caller has made sure that there are no other threads.
    pub fn fork() -> nix::Result<Option<Pid>> {
        // SAFETY: with one thread the child is a complete copy: no lock is held by a thread
        // that is not there. Not covered: a thread that foreign code starts between the
        // caller's check and this call (none of ours can).
        match unsafe { fork_unchecked() }? {
            ForkResult::Parent { child } => Ok(Some(child)),
            ForkResult::Child => Ok(None),
        }
    }

    /// _exit(2): ends the process at once, without the parent's exit handlers and buffers.
    pub fn exit(status: i32) -> ! {
        // SAFETY: takes no pointer and does not return. Not covered: other buffers than the
        // log's, which flushes each line, are lost.
        unsafe { nix::libc::_exit(status) }
    }

    /// Sets SIGCHLD to its default: children stay until waitpid(2) takes their status.
    pub fn default_sigchld() -> nix::Result<()> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: installs no handler, so no code of ours runs in signal context. Not covered:
        // a handler that other code in this process had set is gone.
        unsafe { sigaction(Signal::SIGCHLD, &default) }.map(drop)
    }
}
