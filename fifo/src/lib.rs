//! FIFOs (named pipes): pipes with a path, for processes that share nothing else.
//!
//! [`create`] makes one (mkfifo(3), `os.mkfifo`); [`open_reader`] and [`open_writer`] open it
//! as one end of a pipe. What comes back is a plain [`File`]; [`write_line`] and [`read_line`]
//! make messages of its bytes, so that `echo` and `cat` can be the other side.
//!
//! # Collecting lines
//!
//! A reader whose writers come and go holds a writing end itself, so that it never sees EOF between two
//! of them. (Opening again after EOF loses what is written in between, and calling
//! [`read_line`] again spins.)
//!
//! ```text
//! let mut lines = BufReader::new(fifo::open_reader(&path, None)?);
//! let _never_eof = fifo::open_writer(&path, None)?;
//! while let Some(line) = fifo::read_line(&mut lines)? {
//! ```
//!
//! An invalid line is an error of the kind `InvalidData`, after which the next line can be read. Run one collector
//! at a time, since two would share the lines; an exclusive flock(2) on the directory ensures that.
//!
//! # Hazards
//!
//! - Two processes that use two FIFOs must open them in the same order. In crossed orders each
//!   blocks in its first open, waiting for the other: a deadlock.
//! - `O_CREAT` on a path that does not exist yet makes a *regular file*, and the messages go to
//!   disk. `O_RDWR` makes open return at once, but keeps an end of your own open: you never see EOF or
//!   EPIPE. This library uses neither.
//! - A FIFO carries bytes, not messages: two writes can arrive as one read. Agree on a frame;
//!   here a message is a line.
//! - Writes of up to `PIPE_BUF` (4096) bytes are atomic; longer ones may interleave with those of
//!   other writers. `writeln!` on a bare [`File`] is several writes: format first, write once.
//! - With several readers, the bytes go to any of them; even lines may be split.
//! - Lines in a FIFO are lost when no process has it open any more; lines that a reader has buffered, when it
//!   closes. A line without its newline joins the next writer's line.
//! - Deadlock: a FIFO holds 64 KiB. Two sides that both write more than that before they read block forever.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo, pipe2};

/// The longest line in bytes, with its end: `PIPE_BUF`, which one write(2) puts in atomically.
pub const MAX_LINE: usize = 4096;

/// How often to look again where the kernel has no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Makes a FIFO at `path` that only this user may open: mkfifo(3) with mode 0600.
///
/// An existing FIFO of this user is accepted, whatever its mode: so both sides may call this, in either order, and one
/// made by hand can be used. Anything else at `path` is left alone, and the error says what it is.
pub fn create(path: &Path) -> io::Result<()> {
    let made = match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Err(Errno::EEXIST) => adopt(path),
        made => made.map_err(io::Error::from),
    };
    made.map_err(|error| named("mkfifo", path, error))
}

/// Opens the reading end: open(2) with `O_RDONLY`, which blocks until a writer opens it too.
///
/// With a `timeout`, fails with `TimedOut` when no writer came in time; with `None` it blocks as
/// long as it takes. Never creates anything, follows no symbolic link, and refuses what is not
/// a FIFO. Once the last writer is gone, a read returns 0 bytes: EOF.
pub fn open_reader(path: &Path, timeout: Option<Duration>) -> io::Result<File> {
    let open = |flags| open(path, OpenOptions::new().read(true), flags);
    let opened = match timeout {
        None => open(OFlag::empty()),
        Some(timeout) => open(OFlag::O_NONBLOCK)
            .and_then(|file| await_writer(&file, timeout).and_then(|()| blocking(file))),
    };
    opened.map_err(|error| named("open for reading", path, error))
}

/// Opens the writing end: open(2) with `O_WRONLY`, which blocks until a reader opens it too.
///
/// With a `timeout`, fails with `TimedOut` when no reader came in time; with `None` it blocks as
/// long as it takes. Never creates anything, follows no symbolic link, and refuses what is not
/// a FIFO. Once the last reader is gone, a write fails with `BrokenPipe`.
pub fn open_writer(path: &Path, timeout: Option<Duration>) -> io::Result<File> {
    let open = |flags| open(path, OpenOptions::new().write(true), flags);
    let opened = match timeout {
        None => open(OFlag::empty()),
        // Without a reader, the kernel says ENXIO.
        Some(timeout) => retry("reader", timeout, || match open(OFlag::O_NONBLOCK) {
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(None),
            opened => opened.and_then(blocking).map(Some),
        }),
    };
    opened.map_err(|error| named("open for writing", path, error))
}

/// Removes the FIFO at `path`, and unblocks whoever waits in open(2) for it: unlink(2).
///
/// Otherwise they would block forever, since no peer can find it any more. An unblocked reader gets EOF, a writer
/// `BrokenPipe`. Anything else at `path` is left alone, and is an error. Not covered: whoever has just looked up
/// the path, and begins to wait a moment later.
pub fn remove(path: &Path) -> io::Result<()> {
    let open = |options: &mut OpenOptions| match open(path, options, OFlag::O_NONBLOCK) {
        // Its mode does not let this user open it, nor anybody else of this user.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        opened => opened.map(Some),
    };
    let removed = || {
        // Both ends stay open until the name is gone: each unblocks whoever is opening the other one.
        let _reader = open(OpenOptions::new().read(true))?;
        let _writer =
            open(OpenOptions::new().write(true)).or_else(|error| match error.raw_os_error() {
                Some(errno) if errno == Errno::ENXIO as i32 => Ok(None), // no reader, not even ours
                _ => Err(error),
            })?;
        fs::remove_file(path)
    };
    removed().map_err(|error| named("unlink", path, error))
}

/// Waits until there is something to read, or EOF: ppoll(2), `select.select`.
///
/// False when `timeout` went by; with `None` it blocks as long as it takes. [`read_line`] may still block for the rest
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

/// Whether what already is at `path` can be used as our own FIFO.
fn adopt(path: &Path) -> io::Result<()> {
    let there = fs::symlink_metadata(path)?;
    require_fifo(&there)?;
    if there.uid() != geteuid().as_raw() {
        let what = format!("exists and belongs to user {}", there.uid());
        return Err(io::Error::new(ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// Opens a FIFO and nothing else.
fn open(path: &Path, options: &mut OpenOptions, flags: OFlag) -> io::Result<File> {
    // Looked at before, since opening another kind of file may block or have side effects; and after,
    // since it may have been replaced in between.
    require_fifo(&fs::symlink_metadata(path)?)?;
    let file = options.custom_flags((OFlag::O_NOFOLLOW | flags).bits()).open(path)?;
    require_fifo(&file.metadata()?)?;
    Ok(file)
}

/// Waits until a writer has opened the FIFO of which `reader` is the reading end.
fn await_writer(reader: &File, timeout: Duration) -> io::Result<()> {
    let (_scratch_reader, scratch) = pipe2(OFlag::O_CLOEXEC)?;
    retry("writer", timeout, || {
        // ppoll(2) knows whether a writer has written, or has come and gone, but not of one that has only
        // opened. So ask tee(2), which takes nothing away: 0 is "no writer", EAGAIN is "a writer, and
        // nothing written yet".
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if ppoll(&mut fds, Some(Duration::ZERO.into()), None)? > 0 {
            return Ok(Some(()));
        }
        match tee(reader, &scratch, 1, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => Ok(None),
            Ok(_) | Err(Errno::EAGAIN) => Ok(Some(())),
            Err(errno) => Err(errno.into()),
        }
    })
}

/// Tries until `attempt` has a result: poll(2) has no event for a process that opens the other end.
fn retry<T>(
    peer: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<T> {
    let deadline = Instant::now().checked_add(timeout);
    loop {
        match attempt() {
            Ok(Some(result)) => return Ok(result),
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {} // nobody yet, or a signal came
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let what = format!("no {peer} came in time");
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
        // Not `sleep`, which frequent signals can prolong.
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

fn require_fifo(there: &Metadata) -> io::Result<()> {
    let kind = there.file_type();
    let what = match kind {
        kind if kind.is_fifo() => return Ok(()),
        kind if kind.is_file() => "regular file",
        kind if kind.is_dir() => "directory",
        kind if kind.is_symlink() => "symbolic link",
        kind if kind.is_socket() => "socket",
        _ => "device",
    };
    let error = format!("exists and is a {what}");
    Err(io::Error::new(ErrorKind::AlreadyExists, error))
}

/// Clears `O_NONBLOCK`, so that reads and writes block again.
fn blocking(file: File) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
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
    const LATE: Option<Duration> = Some(Duration::from_secs(60));

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
        create(&path).unwrap();
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
        for (name, what) in [
            ("file", "regular file"),
            ("directory", "directory"),
            ("link", "symbolic link"),
            ("socket", "socket"),
        ] {
            let path = dir.path().join(name);
            let shown = path.display();
            for (call, error) in [
                ("mkfifo", create(&path).unwrap_err()),
                ("open for reading", open_reader(&path, None).unwrap_err()),
                ("open for reading", open_reader(&path, LATE).unwrap_err()),
                ("open for writing", open_writer(&path, None).unwrap_err()),
                ("open for writing", open_writer(&path, LATE).unwrap_err()),
            ] {
                let expected = format!("{call} {shown}: exists and is a {what}");
                assert_eq!(error.to_string(), expected);
            }
        }
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "precious");
        let error = open_reader(&dir.path().join("nothing"), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("nothing").exists());
    }

    #[test]
    fn open_times_out_without_a_peer() {
        let (_dir, path) = made();
        for (error, who) in [
            (open_reader(&path, SOON).unwrap_err(), "writer"),
            (open_writer(&path, SOON).unwrap_err(), "reader"),
        ] {
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            let end = format!("pipe.in: no {who} came in time");
            assert!(error.to_string().ends_with(&end), "{error}");
        }
    }

    /// Opens both ends in every combination of waiting, in two threads.
    #[test]
    fn both_ends_meet() {
        let (_dir, path) = made();
        for (reading, writing) in [(None, None), (None, LATE), (LATE, None), (LATE, LATE)] {
            let (mut reader, mut writer) = std::thread::scope(|scope| {
                let reader = scope.spawn(|| open_reader(&path, reading).unwrap());
                let writer = open_writer(&path, writing).unwrap();
                // The reader comes back although nothing was written yet.
                (reader.join().unwrap(), writer)
            });
            writer.write_all(b"msg 1\n").unwrap();
            let mut buffer = [0; 64];
            assert_eq!(reader.read(&mut buffer).unwrap(), 6);
            drop(writer);
            assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        }
    }

    #[test]
    fn whoever_waits_in_open_is_let_go_when_the_fifo_is_removed() {
        use std::sync::mpsc::channel;
        let (_dir, path) = made();
        let removed_while = |open: fn(&Path, Option<Duration>) -> io::Result<File>| {
            create(&path).unwrap();
            let (tell, thread) = channel();
            std::thread::scope(|scope| {
                let opened = scope.spawn(|| {
                    tell.send(nix::unistd::gettid()).unwrap();
                    open(&path, None)
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
        // One that was made by hand, so that this user may not open it.
        mkfifo(&path, Mode::empty()).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn poll_waits_for_a_line_or_the_end() {
        let (_dir, path) = made();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| BufReader::new(open_reader(&path, None).unwrap()));
            let mut writer = open_writer(&path, None).unwrap();
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

    #[test]
    fn a_writer_that_came_and_went_was_there() {
        let (_dir, path) = made();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| open_reader(&path, LATE).unwrap());
            drop(open_writer(&path, None).unwrap());
            assert_eq!(reader.join().unwrap().read(&mut [0; 8]).unwrap(), 0);
        });
    }

    /// What the docs say of collecting lines; each writer is gone before the next one comes.
    #[test]
    fn a_collector_gets_the_lines_of_all_writers() {
        let (_dir, path) = made();
        std::thread::scope(|scope| {
            let collector = scope.spawn(|| {
                let mut lines = io::BufReader::new(open_reader(&path, None).unwrap());
                let _never_eof = open_writer(&path, None).unwrap();
                (0..1000).all(|i| read_line(&mut lines).unwrap() == Some(format!("msg {i}")))
            });
            for i in 0..1000 {
                let mut writer = open_writer(&path, None).unwrap();
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
