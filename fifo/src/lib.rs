//! FIFOs (named pipes): pipes with a path, for processes that share nothing else.
//!
//! [`create`] makes one (mkfifo(3), `os.mkfifo`); [`open_reader`] and [`open_writer`] open it
//! as one end of a pipe. What comes back is a plain [`File`]; [`write_line`] and [`read_line`]
//! make messages of its bytes, so that `echo` and `cat` can be the other side.
//!
//! ```
//! use std::io::BufReader;
//!
//! let dir = fifo::PrivateDir::new()?;
//! let path = dir.join("pipe.in");
//! fifo::create(&path)?;
//!
//! // Opening waits for the other side, so the two ends need two processes (here: threads).
//! let writer = std::thread::spawn({
//!     let path = path.clone();
//!     move || fifo::write_line(&mut fifo::open_writer(&path, None)?, "msg 1")
//! });
//! let mut reader = BufReader::new(fifo::open_reader(&path, None)?);
//! assert_eq!(fifo::read_line(&mut reader)?.as_deref(), Some("msg 1"));
//! assert_eq!(fifo::read_line(&mut reader)?, None); // the last writer closed it
//! # writer.join().unwrap()?;
//! # std::io::Result::Ok(())
//! ```
//!
//! # Dangers
//!
//! - Two processes that use two FIFOs must open them in the same order. In crossed orders each
//!   waits in its first open for the other.
//! - `O_CREAT` on a path that is no FIFO yet makes a *regular file*, and the talk happens on
//!   disk. `O_RDWR` makes open return at once, but then the process is its own peer: it never
//!   sees the other side leave. This library uses neither.
//! - A FIFO carries bytes, not messages: two writes can arrive as one read. Agree on a frame;
//!   here a message is a line.
//! - Writes of up to `PIPE_BUF` (4096) bytes are whole even with several writers; longer ones
//!   may mix. `writeln!` on a bare [`File`] is several writes: format first, write once.
//! - With several readers, any of them gets the next bytes, and not even whole lines.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkdtemp, mkfifo, pipe2};

/// Makes a FIFO at `path` that only this user may open: mkfifo(3) with mode 0600.
///
/// A FIFO of this user that is there already is fine, so both sides may call this, whoever
/// comes first. Anything else at `path` is left alone, and the error says what it is.
pub fn create(path: &Path) -> io::Result<()> {
    let made = match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Err(Errno::EEXIST) => adopt(path),
        made => made.map_err(io::Error::from),
    };
    made.map_err(|error| named("mkfifo", path, error))
}

/// Opens the reading end: open(2) with `O_RDONLY`, which waits for a writer to open it too.
///
/// With a `timeout`, fails with `TimedOut` when no writer came in time; without, it waits as
/// long as it takes. Never creates anything, follows no symbolic link, and refuses what is not
/// a FIFO. Once the last writer is gone, a read returns 0 bytes: the end of the stream.
pub fn open_reader(path: &Path, timeout: Option<Duration>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    match timeout {
        None => open(path, &mut options, OFlag::empty()),
        Some(timeout) => open(path, &mut options, OFlag::O_NONBLOCK)
            .and_then(|file| await_writer(&file, timeout).and_then(|()| blocking(file))),
    }
    .map_err(|error| named("open for reading", path, error))
}

/// Opens the writing end: open(2) with `O_WRONLY`, which waits for a reader to open it too.
///
/// With a `timeout`, fails with `TimedOut` when no reader came in time; without, it waits as
/// long as it takes. Never creates anything, follows no symbolic link, and refuses what is not
/// a FIFO. Once the last reader is gone, a write fails with `BrokenPipe`.
pub fn open_writer(path: &Path, timeout: Option<Duration>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    match timeout {
        None => open(path, &mut options, OFlag::empty()),
        Some(timeout) => open_with_reader(path, &mut options, timeout).and_then(blocking),
    }
    .map_err(|error| named("open for writing", path, error))
}

/// The longest line in bytes, with its end: `PIPE_BUF`, what one write(2) puts in undivided.
pub const LONGEST_LINE: usize = 4096;

/// Writes a message and the end of its line in one write(2).
///
/// Waits while the pipe is full. Fails with `InvalidInput` if the message has a line's end in
/// it or is longer than [`LONGEST_LINE`], and with `BrokenPipe` when no reader is left.
pub fn write_line(fifo: &mut File, message: &str) -> io::Result<()> {
    let line = [message, "\n"].concat();
    if line.len() > LONGEST_LINE || message.contains('\n') {
        let what = format!("a message is one line of up to {} bytes", LONGEST_LINE - 1);
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    fifo.write_all(line.as_bytes())
}

/// Reads a message: the next line, without its end. `None` when the last writer is gone.
///
/// Fails with `UnexpectedEof` when the stream ends in the middle of a line, with `InvalidData` if
/// the line is not UTF-8 or longer than [`LONGEST_LINE`]. No more than that is ever kept in memory.
/// After an error, also a timeout, the part of a line that had come is lost: close it.
pub fn read_line(fifo: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let longest = LONGEST_LINE as u64;
    fifo.by_ref().take(longest).read_until(b'\n', &mut line)?;
    let invalid = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    match line.pop() {
        Some(b'\n') => {}
        None => return Ok(None),
        Some(_) if line.len() + 1 == LONGEST_LINE => {
            return Err(invalid(format!("a line is longer than {LONGEST_LINE} bytes")));
        }
        Some(_) => {
            let what = "the other side ended in the middle of a line";
            return Err(io::Error::new(ErrorKind::UnexpectedEof, what));
        }
    }
    let message = String::from_utf8(line).map_err(|_| invalid("a line is not UTF-8".into()))?;
    Ok(Some(message))
}

/// A directory that only this user may enter, removed with all that is in it when dropped.
///
/// FIFOs in a directory that others can write to could be replaced by theirs. Made by
/// mkdtemp(3) with mode 0700, under `TMPDIR` or else /tmp. After a fork, only the process that made
/// it removes it.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    owner: u32,
}

impl PrivateDir {
    /// Makes the directory.
    pub fn new() -> io::Result<PrivateDir> {
        let template = std::env::temp_dir().join("fifo-XXXXXX");
        let path = mkdtemp(&template).map_err(|errno| named("mkdtemp", &template, errno.into()))?;
        let owner = std::process::id();
        Ok(PrivateDir { path, owner })
    }

    /// The path of `name` in this directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // A forked child has a copy of this guard, but the directory is not its own.
        if std::process::id() == self.owner {
            let _ = fs::remove_dir_all(&self.path);
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
    // Looked at before, since opening some other thing can wait, or have effects; and after,
    // since it may have been replaced in between.
    require_fifo(&fs::symlink_metadata(path)?)?;
    let file = options.custom_flags((OFlag::O_NOFOLLOW | flags).bits()).open(path)?;
    require_fifo(&file.metadata()?)?;
    Ok(file)
}

/// Opens for writing as soon as there is a reader.
fn open_with_reader(path: &Path, options: &mut OpenOptions, timeout: Duration) -> io::Result<File> {
    let deadline = Instant::now().checked_add(timeout);
    loop {
        match open(path, options, OFlag::O_NONBLOCK) {
            // No reader yet. The kernel has no event for its coming: look again.
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
                require_time(deadline, "reader")?;
                // Not `sleep`: each signal makes that a little longer.
                std::thread::park_timeout(LOOK_AGAIN);
            }
            opened => return opened,
        }
    }
}

/// Waits until a writer has opened the FIFO of which `reader` is the reading end.
fn await_writer(reader: &File, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now().checked_add(timeout);
    let (_scratch_reader, scratch) = pipe2(OFlag::O_CLOEXEC)?;
    loop {
        // poll(2) wakes when a writer has written, or has come and gone, but not for one that has
        // only opened. So ask tee(2), which takes nothing away: 0 is "no writer", EAGAIN is
        // "a writer, and nothing written yet".
        match tee(reader, &scratch, 1, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => require_time(deadline, "writer")?,
            Ok(_) | Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, LOOK_AGAIN.as_millis() as u16) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How often to look for the other side where the kernel cannot wake us.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

fn require_time(deadline: Option<Instant>, who: &str) -> io::Result<()> {
    match deadline {
        Some(deadline) if Instant::now() >= deadline => {
            Err(io::Error::new(ErrorKind::TimedOut, format!("no {who} came in time")))
        }
        _ => Ok(()),
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

/// Clears `O_NONBLOCK`, so that reads and writes wait again.
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

    const SOON: Option<Duration> = Some(Duration::from_millis(5));
    const LATE: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn a_fifo_is_private_and_can_be_adopted() {
        let dir = PrivateDir::new().unwrap();
        let path = dir.join("pipe.in");
        create(&path).unwrap();
        create(&path).unwrap();
        let there = fs::symlink_metadata(&path).unwrap();
        assert!(there.file_type().is_fifo());
        assert_eq!(there.permissions().mode() & 0o777, 0o600);
        let parent = fs::symlink_metadata(&dir.path).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o700);
        drop(dir);
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn what_is_not_a_fifo_is_refused_and_left_alone() {
        let dir = PrivateDir::new().unwrap();
        fs::write(dir.join("file"), "precious").unwrap();
        fs::create_dir(dir.join("directory")).unwrap();
        create(&dir.join("fifo")).unwrap();
        symlink(dir.join("fifo"), dir.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        for (name, what) in [
            ("file", "regular file"),
            ("directory", "directory"),
            ("link", "symbolic link"),
            ("socket", "socket"),
        ] {
            let path = dir.join(name);
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
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "precious");
        let error = open_reader(&dir.join("nothing"), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!dir.join("nothing").exists());
    }

    #[test]
    fn nobody_comes() {
        let dir = PrivateDir::new().unwrap();
        let path = dir.join("pipe.in");
        create(&path).unwrap();
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
        let dir = PrivateDir::new().unwrap();
        let path = dir.join("pipe.in");
        create(&path).unwrap();
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
    fn a_writer_that_came_and_went_was_there() {
        let dir = PrivateDir::new().unwrap();
        let path = dir.join("pipe.in");
        create(&path).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| open_reader(&path, LATE).unwrap());
            drop(open_writer(&path, None).unwrap());
            assert_eq!(reader.join().unwrap().read(&mut [0; 8]).unwrap(), 0);
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
        for length in [LONGEST_LINE - 1, LONGEST_LINE] {
            let line = "x".repeat(length) + "\n";
            match read_line(&mut line.as_bytes()) {
                Ok(message) => assert_eq!(message.unwrap().len(), LONGEST_LINE - 1),
                Err(error) => {
                    assert_eq!(length, LONGEST_LINE);
                    assert_eq!(error.kind(), ErrorKind::InvalidData);
                }
            }
        }
        // Without an end it would go on for ever.
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert!(read_line(&mut endless).is_err());
    }

    #[test]
    fn a_message_that_is_no_line_is_not_written() {
        let dir = PrivateDir::new().unwrap();
        let mut file = File::create(dir.join("file")).unwrap();
        for message in ["two\nlines", &"x".repeat(LONGEST_LINE)] {
            let error = write_line(&mut file, message).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        write_line(&mut file, &"x".repeat(LONGEST_LINE - 1)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), LONGEST_LINE as u64);
    }
}
