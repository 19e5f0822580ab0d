//! Runs the real programs as a user would, and looks at what they leave behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::mem::{replace, take};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, killpg, sigaction};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use crate::{PACKAGES, TOO_LONG, list, root, succeeds, temp_dir, wait_for};

/// What a program printed, and how it ended.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it printed to stderr.
    pub stderr: String,
}

impl Finished {
    /// The exit status as a shell shows it: 128 + signal for a signal.
    pub fn code(&self) -> i32 {
        let signal = self.status.signal().map(|signal| 128 + signal);
        self.status.code().or(signal).unwrap()
    }

    /// Checks that the program succeeded, and returns what it printed.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!((self.code(), self.stderr.as_str()), (0, ""), "\n{}", self.stdout);
        self.stdout
    }

    /// Checks the exit status and that stderr contains all of `parts`.
    #[track_caller]
    pub fn failed(self, code: i32, parts: &[&str]) {
        let stderr = &self.stderr;
        assert_eq!(self.code(), code, "\n{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "'{part}' is not in:\n{stderr}");
        }
    }
}

/// A program in a process group and a temporary directory of its own. It is killed if it takes [`TOO_LONG`], so no
/// test waits forever for its output.
pub struct Program {
    child: Child,
    temp: Option<TempDir>,
    pub(crate) stdout: BufReader<File>,
    /// What [`Program::line`] has read of it.
    printed: String,
    stderr: File,
    shm_before: Vec<String>,
    /// Closed when the program is done with.
    _watchdog: Sender<()>,
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    Program::start(command).finish()
}

/// The program of the crate whose test this is, by its path from `CARGO_BIN_EXE_…`.
pub fn program(exe: &str, args: &[&str]) -> Command {
    let mut command = Command::new(exe);
    command.args(args).env_remove("NO_COLOR").env_remove("IPC_LOG");
    #[expect(unsafe_code, reason = "only a child may change what it does on a signal")]
    // SAFETY: sigaction is async-signal-safe. Not covered: nothing.
    unsafe {
        command.pre_exec(stop_signals_as_usual);
    }
    command
}

/// An example of the crate whose program this is. `cargo test` has built it; `cargo test --test NAME` does not, so cargo
/// builds here what is older than its source.
pub fn example(exe: &str, name: &str) -> String {
    let profile = Path::new(exe).parent().unwrap();
    let target = profile.parent().unwrap();
    let package = Path::new(exe).file_name().unwrap().to_str().unwrap();
    let example = profile.join("examples").join(name);
    let folders = PACKAGES
        .into_iter()
        .chain(["common"])
        .flat_map(|package| ["src", "examples"].map(|folder| root().join(package).join(folder)));
    let sources = folders
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| list(&folder).into_iter().map(move |file| folder.join(file)));
    let newest = sources.map(|file| fs::metadata(file).unwrap().modified().unwrap()).max();
    if fs::metadata(&example).is_ok_and(|built| built.modified().ok() > newest) {
        return example.to_str().unwrap().to_owned();
    }
    let release = if profile.ends_with("release") { &["--release"][..] } else { &[] };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "-q", "--offline", "-p", package, "--example", name]).args(release);
    let output = cargo.arg("--target-dir").arg(target).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    example.to_str().unwrap().to_owned()
}

/// Under nohup, and in the background of a script, stop signals are ignored, and the programs respect that.
pub(crate) fn stop_signals_as_usual() -> std::io::Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        #[expect(unsafe_code, reason = "there is no safe way")]
        // SAFETY: installs no handler. Not covered: nothing.
        unsafe { sigaction(signal, &default) }?;
    }
    Ok(())
}

/// Likewise as a user who owns nothing; with it the directory of the copy that this user may execute.
/// `None` if that cannot be arranged.
pub fn program_of_nobody(exe: &str, args: &[&str]) -> Option<(Command, TempDir)> {
    let dir = temp_dir();
    let may_enter = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o001 != 0;
    let parent = dir.path().parent().unwrap();
    if !give_to_nobody(dir.path()) || !parent.ancestors().all(may_enter) {
        return None;
    }
    let copy = dir.path().join("program");
    // By another process: one that another thread forks now would have it open for writing ("text file busy").
    assert!(Command::new("cp").arg(exe).arg(&copy).status().unwrap().success());
    let mut command = program(copy.to_str().unwrap(), args);
    command.uid(NOBODY).gid(NOBODY);
    Some((command, dir))
}

/// Makes a file that of a user who owns nothing else. False if we may not: only root may, and not in a user
/// namespace that has no such user.
pub fn give_to_nobody(path: &Path) -> bool {
    geteuid().is_root() && chown(path, Some(NOBODY), None).is_ok()
}

const NOBODY: u32 = 65534;

impl Program {
    /// Starts a program whose output is read when it has finished.
    pub fn start(command: &mut Command) -> Program {
        Program::start_with_room(command, None)
    }

    /// Starts a program that can print `room` bytes and no more, until [`Program::finish`] reads them.
    ///
    /// So it stops at an exact line: the process whose turn it is waits in write(2), and the
    /// others wait for it or have ended.
    pub fn start_stopped_at(command: &mut Command, room: usize) -> Program {
        let program = Program::start_with_room(command, Some(room));
        let mut before = Vec::new();
        wait_for("all processes to wait", &mut || {
            // Nothing runs if two looks in a row find all asleep, and none has run in between.
            let now: Vec<_> = program.members().into_iter().map(state).collect();
            let asleep = now.iter().all(|state| state.starts_with(['S', 'Z']));
            let same = replace(&mut before, now) == before;
            asleep && same && program.members().into_iter().any(waits_in_write)
        });
        program
    }

    fn start_with_room(command: &mut Command, room: Option<usize>) -> Program {
        let temp = temp_dir();
        let (stdout, mut print) = pipe();
        let (stderr, print_error) = pipe();
        if let Some(room) = room {
            let size = fcntl(&print, FcntlArg::F_SETPIPE_SZ(4096)).unwrap() as usize;
            // Filled in front of the program's own output; `finish` takes it off again.
            print.write_all(&vec![FILLER; size - room]).unwrap();
        }
        let shm_before = shm_names();
        let child = command
            .env("TMPDIR", temp.path())
            .stdin(Stdio::null())
            .stdout(print)
            .stderr(print_error)
            .process_group(0)
            .spawn()
            .unwrap();
        // `command` keeps our copies of the writing ends; drop it, or the readers never see EOF.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (watchdog, done) = channel();
        let group = Pid::from_raw(child.id() as i32);
        thread::spawn(move || {
            if done.recv_timeout(TOO_LONG) == Err(RecvTimeoutError::Timeout) {
                let _ = killpg(group, Signal::SIGKILL);
            }
        });
        Program {
            child,
            temp: Some(temp),
            stdout: BufReader::new(stdout),
            printed: String::new(),
            stderr,
            shm_before,
            _watchdog: watchdog,
        }
    }

    /// Stops reading what it prints, for good: as a pager or logger that has left.
    pub fn close_stdout(&mut self) {
        self.stdout = BufReader::new(pipe().0);
    }

    /// The first process, which is also the process group.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// The child process with this role, as its name says.
    #[track_caller]
    pub fn role(&self, role: &str) -> Pid {
        let mut found = None;
        wait_for(role, &mut || {
            found = self.members().into_iter().find(|pid| name(*pid) == role);
            found.is_some()
        });
        found.unwrap()
    }

    /// Sends a signal to one process of the program.
    pub fn kill(&self, pid: Pid, signal: Signal) {
        kill(pid, signal).unwrap();
    }

    /// Sends a signal to all its processes, as Ctrl-C does.
    pub fn kill_group(&self, signal: Signal) {
        killpg(self.pid(), signal).unwrap();
    }

    /// Waits for the next line of output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        self.printed.push_str(&line);
        assert!(line.ends_with('\n'), "it ended; so far:\n{}", self.printed);
        line.trim().to_owned()
    }

    /// Waits for a line of output that ends like this.
    #[track_caller]
    pub fn line_with(&mut self, end: &str) -> String {
        loop {
            let line = self.line();
            if line.ends_with(end) {
                return line;
            }
        }
    }

    /// Reads all output until the end, and checks that nothing is left behind.
    #[track_caller]
    pub fn finish(self) -> Finished {
        let (finished, temp) = self.read_to_end();
        assert_eq!(list(temp.path()), [""; 0], "left in TMPDIR");
        finished
    }

    /// Like `finish`, after `kill -9` of the first process: its children end, but files may be left.
    #[track_caller]
    pub fn finish_killed(self) -> Finished {
        // Only then is the output read: a child that waits to print must not go on.
        wait_for("the process group to end", &mut || !group_runs(self.pid()));
        self.read_to_end().0
    }

    fn read_to_end(mut self) -> (Finished, TempDir) {
        let mut stderr = String::new();
        let mut stdout = Vec::new();
        // The end of both comes when the last process that holds them has ended.
        std::thread::scope(|scope| {
            scope.spawn(|| self.stderr.read_to_string(&mut stderr).unwrap());
            self.stdout.read_to_end(&mut stdout).unwrap();
        });
        let status = self.child.wait().unwrap();
        wait_for("the process group to end", &mut || !group_runs(self.pid()));
        // Other tests make shared memory of these names at the same time, but it goes away again.
        let mut new = shm_names().into_iter().filter(|name| !self.shm_before.contains(name));
        if status.signal() != Some(Signal::SIGKILL as i32) {
            new.by_ref().for_each(|name| {
                wait_for(&format!("/dev/shm/{name} to be removed"), &mut || {
                    !Path::new("/dev/shm").join(&name).exists()
                });
            });
        }
        let filler = stdout.iter().take_while(|byte| **byte == FILLER).count();
        let finished = Finished {
            status,
            stdout: take(&mut self.printed) + &String::from_utf8(stdout.split_off(filler)).unwrap(),
            stderr,
        };
        (finished, self.temp.take().unwrap())
    }

    /// The processes of the program: the first, and its children.
    pub fn members(&self) -> Vec<Pid> {
        let pid = self.pid();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().map(|id| id.parse().unwrap());
        [pid.as_raw()].into_iter().chain(children).map(Pid::from_raw).collect()
    }
}

impl Drop for Program {
    /// Where a test fails, too, nothing stays: no process, and no memory.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let memory: Vec<_> = self.members().into_iter().flat_map(shared_memory).collect();
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
            memory.iter().for_each(|file| drop(fs::remove_file(file)));
        }
    }
}

/// A pipe that no child inherits but as its stdout or stderr.
pub(crate) fn pipe() -> (File, File) {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    (read.into(), write.into())
}

const FILLER: u8 = b'#';

/// Whether a process of this group runs. One that ended and waits for init to reap it does not.
fn group_runs(group: Pid) -> bool {
    list("/proc").iter().any(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // After the name in brackets: state, parent, group.
        let mut fields = stat.rsplit(") ").next().unwrap().split(' ');
        fields.next() != Some("Z") && fields.nth(1) == Some(&group.to_string())
    })
}

/// The names in /dev/shm, which may be missing, that the programs may have made.
fn shm_names() -> Vec<String> {
    let mut names = if Path::new("/dev/shm").is_dir() { list("/dev/shm") } else { Vec::new() };
    names.retain(|name| name.starts_with("cnblogs"));
    names
}

/// The files of POSIX shared memory that a process has open.
pub(crate) fn shared_memory(pid: Pid) -> BTreeSet<PathBuf> {
    // It may have ended by now.
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = fds.flat_map(|fd| fs::read_link(fd.path()));
    files.filter(|file| file.starts_with("/dev/shm")).collect()
}

/// The name that a process has in ps.
pub(crate) fn name(pid: Pid) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Whether a process sleeps ("S"), and how often it has slept.
pub(crate) fn state(pid: Pid) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let fields = ["State:\t", "voluntary_ctxt_switches:\t"];
    let lines = status.lines();
    lines.filter_map(|line| fields.iter().find_map(|field| line.strip_prefix(field))).collect()
}

/// Whether a process sleeps in write(2) to its stdout.
fn waits_in_write(pid: Pid) -> bool {
    waits_in(pid, nix::libc::SYS_write) && system_call(pid).split(' ').nth(1) == Some("0x1")
}

/// Whether a process sleeps in this system call.
pub fn waits_in(pid: Pid, call: i64) -> bool {
    system_call(pid).split(' ').next() == Some(&call.to_string())
}

/// "running", or the number of the system call that a process sleeps in, and its arguments.
fn system_call(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default()
}

/// A command that runs a program where a mount of this kind hides `dir`, if we may mount.
pub fn with_tmpfs(dir: &Path, options: &str, command: &str) -> Option<Command> {
    let mount = format!("mount -t tmpfs -o {options} none '{}'", dir.display());
    let in_sh = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "sh", "-c", script]);
        unshare
    };
    succeeds(&mut in_sh(&mount)).then(|| in_sh(&format!("{mount} && {command}")))
}
