//! Messages over pipes, as `multiprocessing.Pipe` sends them.
//!
//! A pipe (pipe(2)) carries bytes in one direction and preserves no message boundaries: two writes can
//! arrive as one read, one write as two. So each message travels in a *frame*, the length followed by
//! the bytes. The frame is that of Python's `multiprocessing.connection`, whose
//! `send_bytes` and `recv_bytes` can be the peer:
//!
//! ```text
//!  up to 0x7fff_ffff bytes     | length: 4 bytes, big-endian, signed | body |
//!  more                        | -1: 4 bytes | length: 8 bytes, big-endian | body |
//! ```
//!
//! # Close the ends you do not use
//!
//! fork(2) copies both ends into the child. As long as *any* process holds a sending end, the
//! receiver blocks instead of seeing EOF; as long as any holds a receiving
//! end, the sender fills the pipe and blocks instead of getting `BrokenPipe`. So after a
//! fork each process drops the end that is not its own. The article's Python does not, and
//! its `recv()` blocks forever when the child is killed.
//!
//! A second child also inherits the parent's end to the first; see `Process::spawn_with` of process.rs.
//!
//! # Deadlock
//!
//! If both sides send more than the pipe holds before receiving, both block forever. A pipe holds 128 KiB, or 8 KiB
//! once an ordinary user has 512 pipes. Take turns, or split the [`Connection`] with [`Connection::into_parts`] and
//! receive in a separate thread. Likewise receive before you join the child: it may still be sending.
//! [`Sender::send`] has no timeout.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::unistd::pipe2;

/// Twice the default. More would use up a user's pipe memory (64 MiB) with fewer pipes.
const PIPE_CAPACITY: i32 = 128 * 1024;

/// So much of a message goes in one write(2) with its length: copying that costs less than a write of its own.
const COPY_MAX: usize = 16 * 1024;

/// The receiving end of a pipe: the first of the two that `Pipe(False)` returns.
///
/// It reads ahead: bytes of the next message may already be in its buffer. So do not read
/// from the same pipe by other means, nor in two processes.
#[derive(Debug)]
pub struct Receiver {
    reader: BufReader<File>,
}

/// The sending end of a pipe: the second of the two that `Pipe(False)` returns.
///
/// For one process: if several share an end after a fork, frames longer than `PIPE_BUF` (4096 bytes) may
/// interleave and corrupt the stream.
#[derive(Debug)]
pub struct Sender {
    file: File,
    /// Scratch buffer for a frame, reused.
    frame: Vec<u8>,
}

/// One side of a duplex pipe, as `Pipe(True)` returns two: it sends and receives.
#[derive(Debug)]
pub struct Connection {
    receiver: Receiver,
    sender: Sender,
}

/// A pipe with one direction: `Pipe(False)`, pipe2(2) with `O_CLOEXEC`.
///
/// Where Python raises "connection is write-only" at run time, the wrong direction does not
/// compile here:
///
/// ```compile_fail,E0599
/// let (mut receiver, sender) = pipe::simplex().unwrap();
/// receiver.send(b"the wrong way").unwrap();
/// ```
///
/// ```compile_fail,E0599
/// let (receiver, mut sender) = pipe::simplex().unwrap();
/// sender.recv().unwrap();
/// ```
pub fn simplex() -> io::Result<(Receiver, Sender)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| named("pipe2", e.into()))?;
    // For speed only: long messages take 0.6 of the time on two CPUs. If the request fails, the default stays.
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_CAPACITY));
    Ok((read.into(), write.into()))
}

/// A pipe with two directions: `Pipe(True)`.
///
/// It is made of two pipes, one for each direction. (Python makes it of a socket pair, which
/// takes twice as long for a round trip.)
pub fn duplex() -> io::Result<(Connection, Connection)> {
    let (here, to_here) = simplex()?;
    let (there, to_there) = simplex()?;
    Ok((
        Connection { receiver: here, sender: to_there },
        Connection { receiver: there, sender: to_here },
    ))
}

impl Sender {
    /// Sends one message: `Connection.send_bytes`; one write(2) up to 16 KiB, two above.
    ///
    /// Blocks while the pipe is full. Fails with `BrokenPipe` when every receiving end is
    /// closed. After an error a part of the message may have been sent, so the pipe is
    /// unusable.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.frame.clear();
        encode_length(&mut self.frame, message.len());
        let (start, rest) = message.split_at(message.len().min(COPY_MAX));
        self.frame.extend_from_slice(start);
        // (The rest of a short message is empty.)
        let sent = self.file.write_all(&self.frame).and_then(|()| self.file.write_all(rest));
        sent.map_err(|error| named("write", error))
    }
}

impl Receiver {
    /// Receives one message: `Connection.recv_bytes`.
    ///
    /// Blocks until a whole message has come, however long it is: memory grows as bytes arrive, and
    /// only the sender limits its size. `None` means EOF: the other side closed between
    /// two messages (Python raises EOFError). Fails with `UnexpectedEof` when it closed, or was
    /// killed, in the middle of one; with `InvalidData` when the length is impossible; and on a stream that has a read
    /// timeout with `TimedOut`. A part of a message may be lost then: after an error the pipe is unusable.
    pub fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.recv_frame().map_err(|error| named("read", error))
    }

    fn recv_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if self.reader.buffer().is_empty() {
            return Ok(None);
        }
        let (mut short, mut long) = ([0; 4], [0; 8]);
        self.reader.read_exact(&mut short)?;
        let length = match i32::from_be_bytes(short) {
            -1 => self.reader.read_exact(&mut long).map(|()| u64::from_be_bytes(long))?,
            short => u64::try_from(short).map_err(|_| {
                let what = format!("a message of length {short}");
                io::Error::new(ErrorKind::InvalidData, what)
            })?,
        };
        // The length is untrusted: reserve no more than 1 MiB for it, then grow as bytes arrive.
        let mut body = Vec::with_capacity(length.min(1 << 20) as usize);
        self.reader.by_ref().take(length).read_to_end(&mut body)?;
        match body.len() as u64 == length {
            true => Ok(Some(body)),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits until there is something to receive: `Connection.poll(timeout)`, ppoll(2).
    ///
    /// True when bytes have come, and also at EOF, where `recv` returns `None`
    /// at once. `recv` may still block for the rest of a long message. False when
    /// `timeout` went by; with `None` it blocks as long as it takes.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(true);
        }
        // A timeout that the clock cannot express is as good as none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut fds, left.map(Into::into), None) {
                Err(Errno::EINTR) => {} // with the time that is left
                ready => return ready.map(|ready| ready > 0).map_err(|e| named("ppoll", e.into())),
            }
        }
    }
}

impl Connection {
    /// Sends one message to the other side; see [`Sender::send`].
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.sender.send(message)
    }

    /// Receives one message from the other side; see [`Receiver::recv`].
    pub fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.receiver.recv()
    }

    /// Waits until there is something to receive; see [`Receiver::poll`].
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.receiver.poll(timeout)
    }

    /// Splits it, so that one thread can receive while another sends.
    pub fn into_parts(self) -> (Receiver, Sender) {
        (self.receiver, self.sender)
    }
}

/// To wait for several at once, by poll(2), as `multiprocessing.connection.wait` does. First ask [`Receiver::poll`] whether
/// there is something in its buffer, which the kernel does not know of.
impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }
}

/// The receiving end, to wait for several at once; see [`Receiver`].
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// The reading end of any pipe, FIFO or stream socket, for instance an inherited one.
///
/// It must be a blocking one: with `O_NONBLOCK`, `recv` fails with `WouldBlock` and loses what was
/// already read.
impl From<OwnedFd> for Receiver {
    fn from(fd: OwnedFd) -> Receiver {
        Receiver { reader: BufReader::new(fd.into()) }
    }
}

/// The writing end of any pipe, FIFO or stream socket, for instance an inherited one; it must be
/// blocking, too.
impl From<OwnedFd> for Sender {
    fn from(fd: OwnedFd) -> Sender {
        Sender { file: fd.into(), frame: Vec::new() }
    }
}

/// To hand to a `std::process::Command`, as its stdin, stdout or an inherited descriptor, before the first `recv`:
/// that reads ahead.
impl From<Receiver> for OwnedFd {
    fn from(receiver: Receiver) -> OwnedFd {
        receiver.reader.into_inner().into()
    }
}

/// To hand to a `std::process::Command`, likewise.
impl From<Sender> for OwnedFd {
    fn from(sender: Sender) -> OwnedFd {
        sender.file.into()
    }
}

/// Appends the length that goes before a message.
fn encode_length(frame: &mut Vec<u8>, length: usize) {
    match i32::try_from(length) {
        Ok(short) => frame.extend(short.to_be_bytes()),
        Err(_) => {
            frame.extend((-1i32).to_be_bytes());
            frame.extend((length as u64).to_be_bytes());
        }
    }
}

/// Names the call that failed.
fn named(call: &str, error: io::Error) -> io::Error {
    let (kind, what) = match error.kind() {
        ErrorKind::UnexpectedEof => {
            (error.kind(), "the other side ended in the middle of a message".to_owned())
        }
        // On a blocking descriptor it means that the timeout expired.
        ErrorKind::WouldBlock => (ErrorKind::TimedOut, "the other side was too slow".to_owned()),
        kind => (kind, error.to_string()),
    };
    io::Error::new(kind, format!("{call} (pipe): {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe into which a test writes raw bytes.
    fn raw() -> (Receiver, File) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (read.into(), write.into())
    }

    #[test]
    fn messages_keep_their_boundaries() {
        let (mut receiver, mut sender) = simplex().unwrap();
        for message in ["", "a", "Data@subprocess", ""] {
            sender.send(message.as_bytes()).unwrap();
        }
        for message in ["", "a", "Data@subprocess", ""] {
            assert_eq!(receiver.recv().unwrap().unwrap(), message.as_bytes());
        }
    }

    #[test]
    fn a_long_message_goes_through_in_parts() {
        for length in [8188, 8192, 8193, 5 << 20] {
            let message: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let (mut receiver, mut sender) = simplex().unwrap();
            let copy = message.clone();
            let thread = std::thread::spawn(move || sender.send(&copy).unwrap());
            assert!(receiver.recv().unwrap().unwrap() == message, "{length}");
            thread.join().unwrap();
            assert_eq!(receiver.recv().unwrap(), None);
        }
    }

    #[test]
    fn a_command_can_be_given_an_end() {
        use std::process::{Command, Stdio};
        let ((from_us, mut sender), (mut receiver, to_us)) =
            (simplex().unwrap(), simplex().unwrap());
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::from(OwnedFd::from(from_us))).stdout(Stdio::from(OwnedFd::from(to_us)));
        let mut child = cat.spawn().unwrap();
        drop(cat); // it keeps copies of both
        sender.send(b"Data@subprocess").unwrap();
        assert_eq!(receiver.recv().unwrap().unwrap(), b"Data@subprocess");
        drop(sender);
        assert_eq!(receiver.recv().unwrap(), None);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_duplex_pipe_goes_both_ways() {
        let (mut one, mut two) = duplex().unwrap();
        one.send(b"ping").unwrap();
        two.send(b"pong").unwrap();
        assert_eq!(one.recv().unwrap().unwrap(), b"pong");
        assert_eq!(two.recv().unwrap().unwrap(), b"ping");
    }

    /// More than the pipe holds, both ways at once: what the docs call a deadlock, without one.
    #[test]
    fn a_split_connection_sends_and_receives_at_once() {
        let message = vec![7; 4 << 20];
        let (one, two) = duplex().unwrap();
        std::thread::scope(|scope| {
            for connection in [one, two] {
                let (mut receiver, mut sender) = connection.into_parts();
                let message = &message;
                scope.spawn(move || sender.send(message).unwrap());
                scope.spawn(move || assert!(receiver.recv().unwrap().unwrap() == *message));
            }
        });
    }

    #[test]
    fn the_end_between_messages_is_none_and_within_one_an_error() {
        let whole = [0, 0, 0, 2, b'o', b'k'];
        for cut in 0..whole.len() {
            let (mut receiver, mut write) = raw();
            write.write_all(&whole).unwrap();
            write.write_all(&whole[..cut]).unwrap();
            drop(write);
            assert_eq!(receiver.recv().unwrap().unwrap(), b"ok");
            if cut == 0 {
                assert_eq!(receiver.recv().unwrap(), None);
            } else {
                let error = receiver.recv().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "cut at {cut}");
            }
        }
    }

    /// As on a socket; before a message nothing is lost by it.
    #[test]
    fn a_read_timeout_is_timed_out() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut receiver = Receiver::from(OwnedFd::from(ours));
        assert_eq!(receiver.recv().unwrap_err().kind(), ErrorKind::TimedOut);
        theirs.write_all(b"\0\0\0\x02ok\0\0\0\x02o").unwrap();
        assert_eq!(receiver.recv().unwrap().unwrap(), b"ok");
        let error = receiver.recv().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "read (pipe): the other side was too slow");
    }

    #[test]
    fn impossible_lengths_are_errors() {
        let (mut receiver, mut write) = raw();
        write.write_all(&(-2i32).to_be_bytes()).unwrap();
        let error = receiver.recv().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert_eq!(error.to_string(), "read (pipe): a message of length -2");
    }

    #[test]
    fn a_length_is_no_reason_to_allocate() {
        // 8 EiB announced, 3 bytes sent: were the length believed, this would abort.
        let (mut receiver, mut write) = raw();
        write.write_all(&(-1i32).to_be_bytes()).unwrap();
        write.write_all(&(1u64 << 63).to_be_bytes()).unwrap();
        write.write_all(b"abc").unwrap();
        drop(write);
        let error = receiver.recv().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_long_form_of_a_length_is_pythons() {
        let encode = |length| {
            let mut frame = Vec::new();
            encode_length(&mut frame, length);
            frame
        };
        assert_eq!(encode(0x7fff_ffff), [0x7f, 0xff, 0xff, 0xff]);
        #[cfg(target_pointer_width = "64")]
        assert_eq!(encode(0x8000_0000), [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0]);
    }

    #[test]
    fn sending_to_nobody_is_a_broken_pipe() {
        let (receiver, mut sender) = simplex().unwrap();
        drop(receiver);
        let error = sender.send(b"hello?").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert!(error.to_string().starts_with("write (pipe): "), "{error}");
    }

    #[test]
    fn poll_tells_of_messages_and_of_the_end() {
        let (mut receiver, mut sender) = simplex().unwrap();
        assert!(!receiver.poll(Some(Duration::ZERO)).unwrap());
        assert!(!receiver.poll(Some(Duration::from_micros(1))).unwrap());
        sender.send(b"one").unwrap();
        sender.send(b"two").unwrap();
        assert!(receiver.poll(None).unwrap());
        receiver.recv().unwrap();
        // The second came with the same read(2): it is in the buffer, not in the pipe.
        assert!(receiver.poll(Some(Duration::ZERO)).unwrap());
        receiver.recv().unwrap();
        drop(sender);
        assert!(receiver.poll(None).unwrap());
        assert_eq!(receiver.recv().unwrap(), None);
    }
}
