//! Messages over pipes, as `multiprocessing.Pipe` sends them.
//!
//! A pipe (pipe(2)) carries bytes in one direction and keeps no boundaries: two writes can
//! arrive as one read, one write as two. So each message travels in a *frame*, its length
//! before its bytes. The frame is that of Python's `multiprocessing.connection`, whose
//! `send_bytes` and `recv_bytes` can be the other side:
//!
//! ```text
//!  up to 0x7fff_ffff bytes     | length: 4 bytes, big-endian, signed | body |
//!  more                        | -1: 4 bytes | length: 8 bytes, big-endian | body |
//! ```
//!
//! ```
//! let (mut receiver, mut sender) = pipe::simplex()?;
//! sender.send(b"Data@subprocess")?;
//! drop(sender);
//! assert_eq!(receiver.recv()?.as_deref(), Some(&b"Data@subprocess"[..]));
//! assert_eq!(receiver.recv()?, None); // every sender is gone: the end of the stream
//! # std::io::Result::Ok(())
//! ```
//!
//! # Close what is not yours
//!
//! fork(2) copies both ends into the child. As long as *any* process holds a sending end, the
//! receiver waits instead of seeing the end of the stream; as long as any holds a receiving
//! end, the sender fills the pipe and waits instead of getting `BrokenPipe`. So after a
//! fork each process drops the end that is not its own. The article's Python does not, and
//! its `recv()` waits for ever when the child was killed.
//!
//! # Both send before they receive
//!
//! A pipe holds 64 KiB, or 256 where the system grants [`simplex`] as much. Two sides that both send
//! more than that before they receive wait for each other for ever. Take turns, or receive in a
//! thread of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

/// How much a pipe of ours holds: four times what it would otherwise. A message of 64 KiB and its
/// length fit, and on one CPU the two sides need not take turns as often.
const ROOM: i32 = 256 * 1024;

/// How much is read ahead at most.
const CHUNK: usize = 128 * 1024;

/// Up to here it is faster to copy a message behind its length than to let writev(2) gather them.
const SMALL: usize = 8 * 1024;

/// How much room is made for a message before its first bytes have come.
const TRUST: usize = 1024 * 1024;

/// The receiving end of a pipe: the first of the two that `Pipe(False)` returns.
///
/// It reads ahead: bytes of the next message may already be in its buffer. So do not read
/// from the same pipe by other means.
#[derive(Debug)]
pub struct Receiver {
    reader: BufReader<File>,
}

/// The sending end of a pipe: the second of the two that `Pipe(False)` returns.
#[derive(Debug)]
pub struct Sender {
    file: File,
    /// A frame, put together.
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
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|e| failed("pipe2", e.into()))?;
    // For speed only: this user may have no more than a certain amount, and then it stays as it is.
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(ROOM));
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
    /// Sends one message: `Connection.send_bytes`; one write(2) up to 8 KiB, writev(2) above.
    ///
    /// Waits while the pipe is full. Fails with `BrokenPipe` when every receiving end is
    /// closed. After an error a part of the message may have been sent, so the pipe is of no
    /// further use.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let (header, header_len) = encode_length(message.len());
        if message.len() <= SMALL {
            self.frame.clear();
            self.frame.extend_from_slice(&header[..header_len]);
            append(&mut self.frame, message);
            return self.file.write_all(&self.frame).map_err(|error| failed("write", error));
        }
        let mut rest = &mut [IoSlice::new(&header[..header_len]), IoSlice::new(message)][..];
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(failed("write", ErrorKind::WriteZero.into())),
                // A signal came, or the pipe took only a part: go on with what is left.
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("write", error)),
            }
        }
        Ok(())
    }
}

impl Receiver {
    /// Receives one message: `Connection.recv_bytes`.
    ///
    /// Waits until a whole message has come, however long it is: memory grows with what has come, and
    /// nothing but the other side limits it. `None` means that the other side closed between
    /// two messages (Python raises EOFError). Fails with `UnexpectedEof` when it closed, or was
    /// killed, in the middle of one, and with `InvalidData` when the length is impossible; the
    /// pipe is of no further use then.
    pub fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.buffered()?.is_empty() {
            return Ok(None);
        }
        let length = i32::from_be_bytes(self.array()?);
        let length = match length {
            0.. => u64::from(length.unsigned_abs()),
            -1 => u64::from_be_bytes(self.array()?),
            _ => return Err(invalid(format!("a message of length {length}"))),
        };
        let Ok(length) = usize::try_from(length) else {
            return Err(invalid(format!("a message of length {length}")));
        };
        self.body(length).map(Some)
    }

    /// Waits until there is something to receive: `Connection.poll(timeout)`, poll(2).
    ///
    /// True when bytes have come, and also at the end of the stream, where `recv` returns `None`
    /// at once. `recv` may still have to wait for the rest of a long message. False when
    /// `timeout` went by; without one it waits as long as it takes.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(true);
        }
        // A timeout that the clock cannot express is as good as none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            // Rounded up: a wait of 0 ms for the last microseconds would be a busy loop.
            let millis = left.as_nanos().div_ceil(1_000_000);
            let wait = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, wait) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {} // look at the deadline again
                Ok(_) => return Ok(true),
                Err(errno) => return Err(failed("poll", errno.into())),
            }
        }
    }

    /// Takes the next `length` bytes.
    fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while body.len() < length {
            let buffered = self.buffered()?;
            if buffered.is_empty() {
                return Err(torn(ErrorKind::UnexpectedEof.into()));
            }
            let left = length - body.len();
            let buffered = &buffered[..left.min(buffered.len())];
            // The length is only the other side's word: the room for what is still to come grows
            // with what has come.
            if body.capacity() - body.len() < buffered.len() {
                body.reserve_exact(left.min(TRUST.max(body.len())));
            }
            append(&mut body, buffered);
            let taken = buffered.len();
            self.reader.consume(taken);
        }
        Ok(body)
    }

    /// Takes the next N bytes.
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.reader.read_exact(&mut array).map_err(torn)?;
        Ok(array)
    }

    /// What was read and not yet taken. If that is nothing, one read(2) gets more; nothing even
    /// then is the end of the stream.
    fn buffered(&mut self) -> io::Result<&[u8]> {
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                return Err(failed("read", error));
            }
        }
        Ok(self.reader.buffer())
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
}

/// The reading end of any pipe, FIFO or stream socket, for instance an inherited one.
impl From<OwnedFd> for Receiver {
    fn from(fd: OwnedFd) -> Receiver {
        Receiver { reader: BufReader::with_capacity(CHUNK, fd.into()) }
    }
}

/// The writing end of any pipe, FIFO or stream socket, for instance an inherited one.
impl From<OwnedFd> for Sender {
    fn from(fd: OwnedFd) -> Sender {
        Sender { file: fd.into(), frame: Vec::new() }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The length before a message, and how many of its bytes count.
fn encode_length(length: usize) -> ([u8; 12], usize) {
    let mut header = [0; 12];
    match i32::try_from(length) {
        Ok(short) => {
            header[..4].copy_from_slice(&short.to_be_bytes());
            (header, 4)
        }
        Err(_) => {
            header[..4].copy_from_slice(&(-1i32).to_be_bytes());
            header[4..].copy_from_slice(&(length as u64).to_be_bytes());
            (header, 12)
        }
    }
}

/// Appends a copy of `bytes`, a piece at a time.
///
/// glibc copies more than 2 KiB or so by `rep movsb`. On AMD's Zen 3 and 4 that takes twenty times as
/// long where the target lies a few bytes behind the source in its page, as it does when the length
/// before the message shifts everything by four.
fn append(to: &mut Vec<u8>, bytes: &[u8]) {
    bytes.chunks(2048).for_each(|piece| to.extend_from_slice(piece));
}

/// Names the call that failed.
fn failed(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} (pipe): {error}"))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("read (pipe): {what}"))
}

fn torn(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => {
            let what = "read (pipe): the other side ended in the middle of a message";
            io::Error::new(ErrorKind::UnexpectedEof, what)
        }
        _ => failed("read", error),
    }
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
        for length in [CHUNK - 4, CHUNK, CHUNK + 1, 5 << 20] {
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
    fn a_duplex_pipe_goes_both_ways() {
        let (mut one, mut two) = duplex().unwrap();
        one.send(b"ping").unwrap();
        two.send(b"pong").unwrap();
        assert_eq!(one.recv().unwrap().unwrap(), b"pong");
        assert_eq!(two.recv().unwrap().unwrap(), b"ping");
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
    fn the_long_form_of_a_length_is_python_s() {
        let (header, len) = encode_length(0x7fff_ffff);
        assert_eq!(header[..len], [0x7f, 0xff, 0xff, 0xff]);
        #[cfg(target_pointer_width = "64")]
        {
            let (header, len) = encode_length(0x8000_0000);
            let expected = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0];
            assert_eq!(header[..len], expected);
        }
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
