//! FIFOs (named pipes): pipes with a path, for processes that share nothing else.
//!
//! [`create`] makes one (mkfifo(3), `os.mkfifo`); [`open_reader`] and [`open_writer`] open it
//! as one end of a pipe. What comes back is a plain [`File`]; [`write_line`] and [`read_line`]
//! make messages of its bytes, so that `echo` and `cat` can be the other side.
//!
//! # Hazards
//!
//! - open(2) waits for a peer as long as it takes. Where that may be forever, let a child open it, under `supervise`, or
//!   use a Unix-domain socket, which connects or fails at once.
//! - Two processes that use two FIFOs must open them in the same order. In crossed orders each
//!   blocks in its first open, waiting for the other: a deadlock.
//! - Remove a FIFO with [`remove`], not `rm`: a process waiting in open would otherwise wait forever.
//! - `O_CREAT` on a path that does not exist yet makes a *regular file*, and the messages go to disk. `O_RDWR` keeps an
//!   end of your own open: you never see EOF or EPIPE. Only [`open_collector`] uses it, for just that.
//! - A FIFO carries bytes, not messages: two writes can arrive as one read. Agree on a frame;
//!   here a message is a line. A line without its newline joins the next writer's line.
//! - Writes of up to `PIPE_BUF` (4096) bytes are atomic; longer ones may interleave with those of
//!   other writers. `writeln!` on a bare [`File`] is several writes: format first, write once.
//! - With several readers, the bytes go to any of them; even lines may be split.
//! - Lines in a FIFO are lost when no process has it open any more; lines that a reader has buffered, when it closes.
//! - Deadlock: a FIFO holds 64 KiB. If both sides write more than that before they read, both block forever.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};

/// The longest line in bytes, with its end: `PIPE_BUF`, which one write(2) puts in atomically.
pub const MAX_LINE: usize = 4096;

/// Makes a FIFO at `path` that only this user may open: mkfifo(3) with mode 0600. Returns whether it made it.
///
/// An existing FIFO of this user is accepted, whatever its mode: so both sides may call this, in either order, and one
/// made by hand can be used. Only whoever made it should remove it, as a [`Guard`] does. Fails with `AlreadyExists` if
/// anything else is at `path`, which is left alone.
pub fn create(path: &Path) -> io::Result<bool> {
    let is_ours = |it: &Metadata| it.file_type().is_fifo() && it.uid() == geteuid().as_raw();
    loop {
        let made = mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR);
        if made != Err(Errno::EEXIST) {
            return made.map(|()| true).map_err(|errno| named("mkfifo", path, errno.into()));
        }
        match fs::symlink_metadata(path) {
            Ok(there) if is_ours(&there) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => {} // removed just now
            _ => {
                let what = "exists and is not a FIFO of this user";
                return Err(named("mkfifo", path, io::Error::new(ErrorKind::AlreadyExists, what)));
            }
        }
    }
}

/// Opens the reading end: open(2) with `O_RDONLY`, which blocks until a writer opens it too.
///
/// Never creates anything, follows no symbolic link, and refuses what is not a FIFO. Once the last writer is gone, a
/// read returns 0 bytes: EOF.
pub fn open_reader(path: &Path) -> io::Result<File> {
    open("open for reading", path, File::options().read(true), OFlag::empty())
}

/// Opens the writing end: open(2) with `O_WRONLY`, which blocks until a reader opens it too.
///
/// Never creates anything, follows no symbolic link, and refuses what is not a FIFO. Once the last reader is gone, a
/// write fails with `BrokenPipe`.
pub fn open_writer(path: &Path) -> io::Result<File> {
    open("open for writing", path, File::options().write(true), OFlag::empty())
}

/// Opens the reading end of a daemon whose writers come and go: open(2) with `O_RDWR`, which does not block.
///
/// Being a writer itself, it never sees EOF; without that it would read EOF after each `echo`, and what is written before
/// it opens again would be lost. Run one collector at a time, since two would share the lines: [`collect`] sees to that.
pub fn open_collector(path: &Path) -> io::Result<File> {
    open("open for collecting", path, File::options().read(true).write(true), OFlag::empty())
}

/// Makes a FIFO, or takes one of this user that is there, and opens it as its only collector: [`open_collector`], flock(2).
///
/// What it makes carries the sticky bit, which means nothing else for a FIFO: so whichever collector is the last removes
/// it, also after one that was killed, and leaves one that somebody made by hand. (`chmod g+w` keeps the bit, `chmod 620`
/// clears it.)
///
/// Fails with `ResourceBusy` if another process has locked it for 100 ms: one that was killed may still be dying, and one
/// that ends may be removing it.
pub fn collect(path: &Path) -> io::Result<Collector> {
    let fail = |kind, what: String| Err(named("collect", path, io::Error::new(kind, what)));
    for _ in 0..100 {
        let opened = open_collector(path);
        if opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_ISVTX) {
                Ok(()) | Err(Errno::EEXIST) => continue, // or by another: the lock decides
                Err(errno) => return Err(named("mkfifo", path, errno.into())),
            }
        }
        let file = opened?;
        let there = file.metadata()?;
        if there.uid() != geteuid().as_raw() {
            return fail(
                ErrorKind::PermissionDenied,
                format!("it belongs to user {}", there.uid()),
            );
        }
        #[expect(deprecated, reason = "`Flock` would unlock when a forked child drops its copy")]
        match nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockExclusiveNonblock) {
            Err(Errno::EWOULDBLOCK) => {}
            Err(errno) => return Err(named("flock", path, errno.into())),
            // Unless whoever had locked it has removed it, or another has its name by now.
            Ok(()) => match Guard::new(path, false) {
                Ok(mut guard) if id(&guard.fifo.metadata()?) == id(&there) => {
                    guard.remover = (there.mode() & Mode::S_ISVTX.bits() != 0).then(process::id);
                    return Ok(Collector { guard, file });
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        drop(file); // or it would be a reader of what another removes
        sleep(Duration::from_millis(1)); // flock(2) waits forever or not at all
    }
    fail(ErrorKind::ResourceBusy, "another process collects its lines".to_owned())
}

/// The only collector of a FIFO: the file that [`collect`] opens. The kernel unlocks it when the process dies, and its
/// forked children with it.
#[derive(Debug)]
pub struct Collector {
    // Dropped first: once it is unlocked, the next one may use it.
    guard: Guard,
    /// Locked until its last copy is closed.
    file: File,
}

impl Collector {
    /// Closes it, and removes the FIFO if a collector made it. Returns what lies in it, and what writers add before
    /// they notice: as [`remove`] does.
    pub fn remove(mut self) -> io::Result<Vec<u8>> {
        let removes = self.guard.removes();
        take_down(&self.guard.path, &self.guard.fifo, removes, true, Some(self.file))
    }
}

impl Deref for Collector {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// Removes the FIFO at `path`, and unblocks whoever waits in open(2) for it: unlink(2).
///
/// Otherwise they would block forever, since no peer can find it any more. An unblocked reader gets EOF, a writer
/// `BrokenPipe`. What a writer has written all the same, before it could be told, is returned, and so is what a process
/// that still has it open has not read yet: a [`Guard`] leaves that to it. Takes 51 ms, for processes just
/// looking the path up. Needs /proc and three descriptors; without them it fails, and nothing is removed.
/// Anything else at `path` is left alone, and is an error.
pub fn remove(path: &Path) -> io::Result<Vec<u8>> {
    let fifo = open("unlink", path, File::options().read(true), OFlag::O_PATH)?;
    take_down(path, &fifo, true, true, None)
}

/// Removes a FIFO from `path`, or only closes what is `open` here. What lies in it is returned, if `takes_all`; else it is
/// left to a process that reads it.
fn take_down(
    path: &Path,
    fifo: &File,
    removes: bool,
    takes_all: bool,
    open: Option<File>,
) -> io::Result<Vec<u8>> {
    let fail = |error| named("unlink", path, error);
    let by_descriptor = format!("/proc/self/fd/{}", fifo.as_raw_fd()); // the path may lead elsewhere by now
    let end = |it: &mut OpenOptions| it.custom_flags(OFlag::O_NONBLOCK.bits()).open(&by_descriptor);
    let reader = || end(File::options().read(true));
    let writer = || end(File::options().write(true)); // fails if nobody reads
    let mut unread = Vec::new();
    let mut close = |reader: File, takes: bool| {
        if takes {
            let _ = reader.take(1 << 20).read_to_end(&mut unread); // until it would block
        }
    };
    // Be the peer of those who wait.
    let is_read = writer().is_ok();
    let ours = reader().map_err(fail)?;
    let _keeps_what_lies_there = writer().map_err(fail)?;
    let made = fifo.metadata().map_err(fail)?;
    let is_there = removes && fs::symlink_metadata(path).is_ok_and(|it| id(&it) == id(&made));
    let removed = if is_there { fs::remove_file(path) } else { Ok(()) };
    drop(open);
    close(ours, takes_all || !is_read);
    // Now whoever has it open for writing can notice. And again, for those who were just looking the path up.
    for pause in [1, 10, 40] {
        sleep(Duration::from_millis(pause));
        let is_read = writer().is_ok(); // perhaps by the next collector
        let Ok(ours) = reader() else { break };
        close(ours, takes_all && removes || !is_read);
    }
    // What cannot be removed is no reason to lose what lies there.
    removed.map_err(|error| {
        let what = format!("{error}; unread: {:?}", String::from_utf8_lossy(&unread));
        fail(io::Error::new(error.kind(), what))
    })?;
    Ok(unread)
}

/// Removes a FIFO when dropped, if this process made it, and nothing else that has its name by then. (But for what is
/// given that name in the very moment of the removal.)
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    /// Open, as `O_PATH`, so that its inode number is not given to another file.
    fifo: File,
    /// The process that is to remove it. (A forked child has a copy of this value.)
    remover: Option<u32>,
}

impl Guard {
    /// [`create`], and a guard for what that made.
    pub fn create(path: &Path) -> io::Result<Guard> {
        let is_made = create(path)?;
        Guard::new(path, is_made).inspect_err(|_| {
            if is_made {
                let _ = fs::remove_file(path);
            }
        })
    }

    fn new(path: &Path, removes: bool) -> io::Result<Guard> {
        let fifo = open("open", path, File::options().read(true), OFlag::O_PATH)?;
        Ok(Guard { path: path.to_owned(), fifo, remover: removes.then(process::id) })
    }

    /// Removes it now; returns what [`remove`] does, unless somebody still reads: then it is left to that reader.
    pub fn remove(&mut self) -> io::Result<Vec<u8>> {
        match self.removes() {
            true => take_down(&self.path, &self.fifo, true, false, None),
            false => Ok(Vec::new()),
        }
    }

    /// Whether it is for this process to remove it: asked once.
    fn removes(&mut self) -> bool {
        self.remover.take() == Some(process::id())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// Waits until there is something to read, or EOF: ppoll(2), `select.select`.
///
/// False when `timeout` passed; with `None` it blocks as long as it takes. [`read_line`] may still block for the rest
/// of a line. At EOF it returns true at once.
pub fn poll(fifo: &BufReader<File>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    while fifo.buffer().is_empty() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(fifo.get_ref().as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, left.map(Into::into), None) {
            Err(Errno::EINTR) => {} // with the time that is left
            ready => return Ok(ready? > 0),
        }
    }
    Ok(true)
}

/// Writes a message and the end of its line in one write(2).
///
/// Blocks while the pipe is full. Fails with `InvalidInput` if the message contains a newline
/// or is longer than [`MAX_LINE`], and with `BrokenPipe` when no reader is left.
pub fn write_line(fifo: &mut File, message: &str) -> io::Result<()> {
    let line = [message, "\n"].concat();
    if line.len() > MAX_LINE || message.contains('\n') {
        let what = format!("a message is one line of up to {} bytes", MAX_LINE - 1);
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    fifo.write_all(line.as_bytes())
}

/// Reads a message: the next line, without its end. `None` means EOF: the last writer is gone.
///
/// Blocks until a whole line has come. Fails with `UnexpectedEof` at EOF in the middle of a line, and with
/// `InvalidData` if the line is not UTF-8 or longer than [`MAX_LINE`] (no more is ever kept in memory). Such a line is
/// skipped, and the next call reads the next one.
pub fn read_line(fifo: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    fifo.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    let fail = |kind, what: &str| Err(io::Error::new(kind, what));
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => match String::from_utf8(line) {
            Ok(message) => Ok(Some(message)),
            Err(_) => fail(ErrorKind::InvalidData, "a line is not UTF-8"),
        },
        Some(_) if line.len() + 1 < MAX_LINE => {
            fail(ErrorKind::UnexpectedEof, "the other side ended in the middle of a line")
        }
        _ => {
            fifo.skip_until(b'\n')?;
            fail(ErrorKind::InvalidData, &format!("a line is longer than {MAX_LINE} bytes"))
        }
    }
}

/// Which file it is.
fn id(it: &Metadata) -> (u64, u64) {
    (it.dev(), it.ino())
}

/// Opens a FIFO and nothing else, for this `call`.
fn open(call: &str, path: &Path, options: &mut OpenOptions, flags: OFlag) -> io::Result<File> {
    let opened = options.custom_flags((OFlag::O_NOFOLLOW | flags).bits()).open(path);
    let checked = opened.and_then(|file| match file.metadata()?.file_type().is_fifo() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::AlreadyExists, "it is not a FIFO")),
    });
    checked.map_err(|error| named(call, path, error))
}

/// Names the call that failed and its object.
fn named(call: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    const SOON: Option<Duration> = Some(Duration::from_millis(5));

    /// A FIFO, and the directory that removes it.
    fn made() -> (TempDir, std::path::PathBuf) {
        let dir = TempDir::new_in("/tmp").unwrap();
        let path = dir.path().join("pipe.in");
        create(&path).unwrap();
        (dir, path)
    }

    #[test]
    fn a_fifo_is_private_and_can_be_adopted() {
        let (_dir, path) = made();
        assert!(!create(&path).unwrap());
        let there = fs::symlink_metadata(&path).unwrap();
        assert!(there.file_type().is_fifo());
        assert_eq!(there.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_not_a_fifo_is_refused_and_left_alone() {
        let dir = TempDir::new_in("/tmp").unwrap();
        fs::write(dir.path().join("file"), "precious").unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        create(&dir.path().join("fifo")).unwrap();
        symlink(dir.path().join("fifo"), dir.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for name in ["file", "directory", "link", "socket"] {
            let path = dir.path().join(name);
            let shown = path.display();
            for (call, error) in [
                ("mkfifo", create(&path).unwrap_err()),
                ("open for reading", open_reader(&path).unwrap_err()),
                ("open for writing", open_writer(&path).unwrap_err()),
                ("open for collecting", open_collector(&path).unwrap_err()),
                ("unlink", remove(&path).unwrap_err()),
            ] {
                assert!(error.to_string().starts_with(&format!("{call} {shown}: ")), "{error}");
            }
        }
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "precious");
        let error = open_reader(&dir.path().join("nothing")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("nothing").exists());
    }

    #[test]
    fn both_ends_meet() {
        let (_dir, path) = made();
        let (mut reader, mut writer) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| open_reader(&path).unwrap());
            let writer = open_writer(&path).unwrap();
            // The reader comes back although nothing was written yet.
            (reader.join().unwrap(), writer)
        });
        writer.write_all(b"msg 1\n").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(reader.read(&mut buffer).unwrap(), 6);
        drop(writer);
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn whoever_waits_in_open_is_let_go_when_the_fifo_is_removed() {
        use std::sync::mpsc::channel;
        let (_dir, path) = made();
        let removed_while = |open: fn(&Path) -> io::Result<File>| {
            create(&path).unwrap();
            let (tell, thread) = channel();
            std::thread::scope(|scope| {
                let opened = scope.spawn(|| {
                    tell.send(nix::unistd::gettid()).unwrap();
                    open(&path)
                });
                // The number of the system call that it sleeps in.
                let call = format!("/proc/self/task/{}/syscall", thread.recv().unwrap());
                let in_open = format!("{} ", nix::libc::SYS_openat);
                while !fs::read_to_string(&call).unwrap().starts_with(&in_open) {
                    std::thread::yield_now();
                }
                remove(&path).unwrap();
                opened.join().unwrap().unwrap()
            })
        };
        for _ in 0..20 {
            assert_eq!(removed_while(open_reader).read(&mut [0]).unwrap(), 0);
            let error = write_line(&mut removed_while(open_writer), "msg 1").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        }
        fs::write(&path, "precious").unwrap();
        assert_eq!(remove(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        assert_eq!(remove(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }

    /// Also when the inode number of what was made is given to the next file.
    #[test]
    fn a_guard_removes_what_it_made_and_nothing_else() {
        let (_dir, path) = made();
        drop(Guard::create(&path).unwrap());
        assert!(path.exists(), "made by somebody else");
        fs::remove_file(&path).unwrap();
        drop(Guard::create(&path).unwrap());
        assert!(!path.exists());
        for _ in 0..20 {
            let guard = Guard::create(&path).unwrap();
            fs::remove_file(&path).unwrap();
            create(&path).unwrap();
            drop(guard);
            assert!(path.exists());
            fs::remove_file(&path).unwrap();
        }
    }

    /// Also where processes of several pid namespaces have the same id.
    #[test]
    fn of_many_collectors_with_one_process_id_one_collects() {
        let (_dir, path) = made();
        fs::remove_file(&path).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        match collect(&path) {
                            Ok(collector) => drop(collector),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::ResourceBusy),
                        }
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "left behind");
    }

    #[test]
    fn what_was_written_to_nobody_is_returned() {
        let (_dir, path) = made();
        let mut end = open_collector(&path).unwrap();
        write_line(&mut end, "msg 1").unwrap();
        assert_eq!(remove(&path).unwrap(), b"msg 1\n");
    }

    #[test]
    fn poll_waits_for_a_line_or_the_end() {
        let (_dir, path) = made();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| BufReader::new(open_reader(&path).unwrap()));
            let mut writer = open_writer(&path).unwrap();
            let mut reader = reader.join().unwrap();
            assert!(!poll(&reader, SOON).unwrap());
            writer.write_all(b"msg 1\nmsg 2\n").unwrap();
            for message in ["msg 1", "msg 2"] {
                assert!(poll(&reader, None).unwrap());
                assert_eq!(read_line(&mut reader).unwrap().unwrap(), message);
            }
            assert!(!poll(&reader, SOON).unwrap());
            drop(writer);
            assert!(poll(&reader, None).unwrap());
        });
    }

    /// Each writer is gone before the next one comes.
    #[test]
    fn a_collector_gets_the_lines_of_all_writers() {
        let (_dir, path) = made();
        std::thread::scope(|scope| {
            let collector = scope.spawn(|| {
                let mut lines = BufReader::new(open_collector(&path).unwrap());
                (0..1000).all(|i| read_line(&mut lines).unwrap() == Some(format!("msg {i}")))
            });
            for i in 0..1000 {
                let mut writer = open_writer(&path).unwrap();
                write_line(&mut writer, &format!("msg {i}")).unwrap();
            }
            assert!(collector.join().unwrap());
        });
    }

    #[test]
    fn lines_are_messages() {
        let mut fifo = &b"msg 1\n\nmsg 2\nexit\n"[..];
        for message in [Some("msg 1"), Some(""), Some("msg 2"), Some("exit"), None] {
            assert_eq!(read_line(&mut fifo).unwrap().as_deref(), message);
        }
        let error = read_line(&mut &b"torn"[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        let error = read_line(&mut &b"msg \xff\n"[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        for length in [MAX_LINE - 1, MAX_LINE] {
            let line = "x".repeat(length) + "\n";
            match read_line(&mut line.as_bytes()) {
                Ok(message) => assert_eq!(message.unwrap().len(), MAX_LINE - 1),
                Err(error) => {
                    assert_eq!(length, MAX_LINE);
                    assert_eq!(error.kind(), ErrorKind::InvalidData);
                }
            }
        }
        // Kept in memory is no more than a line, and the next one can be read.
        let mut long =
            io::BufReader::new(io::repeat(b'x').take(1 << 24).chain(&b"\nmsg \xff\nmsg 1\n"[..]));
        for _ in 0..2 {
            assert_eq!(read_line(&mut long).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        assert_eq!(read_line(&mut long).unwrap().unwrap(), "msg 1");
    }

    #[test]
    fn a_message_that_is_no_line_is_not_written() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let mut file = File::create(dir.path().join("file")).unwrap();
        for message in ["two\nlines", &"x".repeat(MAX_LINE)] {
            let error = write_line(&mut file, message).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        write_line(&mut file, &"x".repeat(MAX_LINE - 1)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), MAX_LINE as u64);
    }
}
