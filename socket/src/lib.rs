//! Stream sockets: the only mechanism of the five that works across hosts.
//!
//! What Python's `socket` module does with `socket`, `bind`, `listen`, `accept` and `connect`.
//! [`listen`] and [`connect`] take the steps of the article's flow chart:
//!
//! ```text
//!  server: socket ─▶ bind ─▶ listen ─▶ accept ─▶ recv ─▶ send ─▶ close
//!  client: socket ─────────────────▶ connect ─▶ send ─▶ recv ─▶ close
//! ```
//!
//! An address is text: `127.0.0.1:9000`, `[::1]:9000` or `localhost:9000` for TCP, `unix:/path` for
//! a Unix-domain socket. A connection is a [`Stream`], the same type for both.
//!
//! # Hazards
//!
//! - A stream has no message boundaries: two sends can arrive as one receive, and one as two. Agree
//!   on a frame; here a message is a line. And use `write_all`, never a bare `write`.
//! - A peer that stays and sends nothing blocks a reader forever: set a read timeout. It restarts with each byte.
//! - Deadlock: if both sides send more than the buffers hold before receiving, both block forever. A Unix-domain socket
//!   holds some 280 messages, however short.
//! - Closing with replies unread resets a TCP connection, and the peer may lose what was sent before: shut down the
//!   writing side, read to EOF, then close.
//! - Large or binary messages: `pipe::Sender` and `pipe::Receiver` over the stream (`From<OwnedFd>`), with frames that
//!   Python's `multiprocessing.connection` reads, too.
//! - An address like `0.0.0.0:9000` lets the whole network connect, without authentication.
//! - Between hosts a peer can vanish silently (a pulled cable); only a timeout detects it.

use std::fs::{self, File};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, fchmod};
use socket2::{SockAddr, Socket, Type};

/// One end of a connection: read from it and write to it, also by shared reference, in two threads.
///
/// `set_read_timeout` and `set_write_timeout` limit how long that may block, `shutdown` ends one direction.
pub use socket2::Socket as Stream;

/// How many connections may wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: i32 = 4096;

/// The longest line in bytes, with its end: it bounds the memory that an untrusted peer can make us use.
pub const MAX_LINE: usize = 64 * 1024;

/// How long a server tries for its address before it takes it for another's: one that was killed may still be dying.
const LISTEN_TIMEOUT: Duration = Duration::from_millis(200);

/// How long to sleep between two looks, where the kernel has no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A socket that accepts connections: socket(2), bind(2), listen(2).
///
/// A server that can be stopped polls it together with a descriptor that tells it to stop, such as a pipe or a
/// signalfd(2):
///
/// ```text
/// let mut fds = [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
/// poll(&mut fds, PollTimeout::NONE)?; // stop has ended, or a client waits
/// ```
///
/// Dropping it closes it, and removes the socket file that it made. Moving it into a child would drop the parent's
/// copy, and so remove the file: let the child borrow it instead.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    file: Option<SocketFile>,
}

/// The file of a Unix-domain socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Its device and inode, and the process that made it.
    id: (u64, u64),
    process: u32,
}

/// Makes a socket that accepts connections at `address`: socket(2), bind(2), listen(2).
///
/// Port 0 stands for any free port; [`Listener::local_address`] tells which. Of the addresses of a name the first is
/// used that is of a kind which this host has.
///
/// A socket file is made with mode 0600: to let others in, call `std::fs::set_permissions` afterwards (they need to
/// write to it, and to enter its directory). A stale one, to which nobody can connect, is replaced; anything else at
/// that path is left alone, and is an error. Two servers that start at once are kept apart by a lock on the directory,
/// unless somebody else holds that for a second.
///
/// Fails with `InvalidInput` if `address` is not valid, and with `AddrInUse` if somebody listens there for 200 ms.
pub fn listen(address: &str) -> io::Result<Listener> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    loop {
        match listen_at_first(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(LISTEN_TIMEOUT / 10); // each look is a client to whoever listens there
            }
            result => return result.map_err(|error| named("listen", address, error)),
        }
    }
}

/// Listens at the first address of a kind that this host has.
fn listen_at_first(address: &str) -> io::Result<Listener> {
    let mut result = Err(ErrorKind::AddrNotAvailable.into());
    for at in resolve(address)? {
        result = listen_at(&at);
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw);
        if !matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)) {
            break;
        }
    }
    result
}

fn listen_at(at: &SockAddr) -> io::Result<Listener> {
    let socket = Socket::new(at.domain(), Type::STREAM, None)?;
    let Some(path) = at.as_pathname() else {
        // Without it, bind fails for a minute after the last server of this port has ended.
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?; // for what it accepts: small messages go out at once
        socket.bind(at)?;
        socket.listen(BACKLOG)?;
        return Ok(Listener { socket, file: None });
    };
    // Until this returns: between its bind and its listen, a server looks stale.
    let _turn = take_turn(path);
    remove_stale(at, path)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?; // bind(2) gives this mode to the file
    socket.bind(at)?;
    let (id, process) = (file_id(path)?, std::process::id());
    // Absolute, so that we can still remove it after a chdir.
    let file = SocketFile { path: std::path::absolute(path)?, id, process };
    let listener = Listener { socket, file: Some(file) };
    listener.socket.listen(BACKLOG)?; // if that fails, the drop of `listener` removes the file
    Ok(listener)
}

/// Connects to a server: socket(2), connect(2).
///
/// A client that may start before its server tries again on `ConnectionRefused` and `NotFound`, now and then, until a
/// deadline: there is no event to wait for.
///
/// Blocks up to `timeout` (`None`: as long as the kernel tries, about two minutes for a host that
/// does not answer). It returns as soon as the server's kernel has queued the
/// connection, even before the server calls `accept`. A name is resolved, and each
/// of its addresses tried in turn, as long as there is time; resolving has no timeout.
///
/// Fails with `InvalidInput` if `address` is not valid, with `ConnectionRefused` or `NotFound` (Unix) when
/// nobody listens, and with `TimedOut`.
pub fn connect(address: &str, timeout: Option<Duration>) -> io::Result<Stream> {
    // A timeout that the clock cannot express is as good as none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut result = Err(ErrorKind::AddrNotAvailable.into());
    for at in resolve(address).map_err(|error| named("connect", address, error))? {
        result = connect_to(&at, deadline);
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|error| named("connect", address, error))
}

fn connect_to(at: &SockAddr, deadline: Option<Instant>) -> io::Result<Stream> {
    let stream = Socket::new(at.domain(), Type::STREAM, None)?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // SO_SNDTIMEO limits connect(2), too. (0 would be no limit.)
        stream.set_write_timeout(left.map(|left| left.max(Duration::from_micros(1))))?;
        let Err(error) = stream.connect(at) else {
            break;
        };
        match error.raw_os_error().map(Errno::from_raw) {
            // A signal came. Calling again waits for the same connection, with the time that is left.
            Some(Errno::EINTR) if left != Some(Duration::ZERO) => {}
            // Out of time: over TCP nobody answered; on a Unix socket the server's queue stayed full.
            Some(Errno::EINTR | Errno::EINPROGRESS | Errno::EALREADY | Errno::EAGAIN) => {
                let what = "the server did not answer in time";
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            _ => return Err(error),
        }
    }
    stream.set_write_timeout(None)?;
    if at.as_pathname().is_none() {
        stream.set_tcp_nodelay(true)?; // small messages go out at once
        // The kernel picks our port at random. If it picks the one we connect to, and nobody listens there, a TCP
        // socket connects to itself.
        if matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(its)) if ours == its) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
    }
    Ok(stream)
}

impl Listener {
    /// The address that it listens on, with the real port: getsockname(2).
    pub fn local_address(&self) -> io::Result<String> {
        Ok(text(&self.socket.local_addr()?))
    }

    /// Blocks until the next client comes: accept(2).
    ///
    /// A client that gave up while it was queued is skipped. Other errors (for instance too
    /// many open files) are transient: the listener stays usable. But poll(2) goes on to say that a client waits, so
    /// pause before the next call.
    pub fn accept(&self) -> io::Result<Stream> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(stream),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    kind => return Err(io::Error::new(kind, format!("accept: {error}"))),
                },
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Neither a forked child's copy of this value removes the file, nor do we remove what somebody has put in its
        // place. (While the socket is open, no other file gets its inode number.)
        let Some(file) = &self.file else { return };
        if file.process == std::process::id() && file_id(&file.path).ok() == Some(file.id) {
            let _ = fs::remove_file(&file.path);
        }
    }
}

/// For poll(2): readable when a client waits, so that a server can wait for a stop request as well.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Writes a message and the end of its line, in one send(2) if the socket's buffer has room.
///
/// Blocks while the buffer is full. Fails with `InvalidInput` if the message contains a newline
/// or is longer than [`MAX_LINE`], with `BrokenPipe` or `ConnectionReset` when the other
/// side is gone, and with `TimedOut` if the stream has a write timeout. After an error a part of the line may have
/// been sent: close the stream. (A program that has restored SIGPIPE, which Rust ignores, is killed by it instead.)
pub fn write_line(stream: &mut impl Write, message: &str) -> io::Result<()> {
    let line = [message, "\n"].concat();
    if line.len() > MAX_LINE || message.contains('\n') {
        let what = format!("a message is one line of up to {} bytes", MAX_LINE - 1);
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    let written = stream.write_all(line.as_bytes());
    written.map_err(|error| timed_out(error, "the other side did not read in time"))
}

/// Reads a message: the next line, without its end. `None` means EOF: the other side has closed.
///
/// Blocks until a whole line has come. Fails with `UnexpectedEof` at EOF in the middle of a line, with
/// `InvalidData` if the line is not UTF-8 or longer than [`MAX_LINE`] (no more is ever kept in memory), and
/// with `TimedOut` if the stream has a read timeout. After an error, also a timeout, the part of a line
/// that had come is lost: close the stream.
pub fn read_line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let read = stream.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
    read.map_err(|error| timed_out(error, "the other side sent nothing in time"))?;
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
        _ => fail(ErrorKind::InvalidData, &format!("a line is longer than {MAX_LINE} bytes")),
    }
}

/// What an address stands for: a path, or what getaddrinfo(3) makes of a name.
fn resolve(address: &str) -> io::Result<Vec<SockAddr>> {
    let expected = "expected HOST:PORT, [IPV6]:PORT or unix:/PATH";
    let invalid = Err(io::Error::new(ErrorKind::InvalidInput, expected));
    match address.strip_prefix("unix:") {
        // Those would be names in the abstract namespace, without a file.
        Some(path) if path.is_empty() || path.starts_with('\0') => invalid,
        Some(path) => Ok(vec![SockAddr::unix(path)?]),
        None => match address.to_socket_addrs() {
            Err(error) if error.kind() == ErrorKind::InvalidInput => invalid,
            found => Ok(found?.map(SockAddr::from).collect()),
        },
    }
}

/// Lets one server at a time start in a directory, until what this returns is dropped: flock(2).
///
/// None if another process holds it for a second (anybody who may read the directory can), or it cannot be opened.
fn take_turn(path: &Path) -> Option<Flock<File>> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut dir = File::open(dir.unwrap_or(Path::new("."))).ok()?;
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((same, _)) => dir = same,
        }
        sleep(POLL_INTERVAL);
    }
    None
}

/// Removes a socket file that nobody listens on: what a killed server leaves behind.
fn remove_stale(at: &SockAddr, path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "exists and is not a socket"));
        }
        Err(_) => return Ok(()), // and bind(2) says what is wrong
    }
    // Without waiting: a full queue also proves that a server is there.
    match connect_to(at, Some(Instant::now())) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "another server listens there")),
    }
}

/// Which file is at a path: its device and inode.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}

/// An address as text.
fn text(at: &SockAddr) -> String {
    match at.as_socket() {
        Some(at) => at.to_string(),
        None => format!("unix:{}", at.as_pathname().unwrap_or(Path::new("")).display()),
    }
}

/// On a blocking socket, `WouldBlock` means that the timeout expired.
fn timed_out(error: io::Error, what: &str) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, what),
        _ => error,
    }
}

/// Names the call that failed and its object.
fn named(call: &str, object: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} {object}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;
    use std::net::Shutdown;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use socket2::Domain;
    use tempfile::TempDir;

    const SOON: Option<Duration> = Some(Duration::from_millis(50));

    fn unix(dir: &TempDir) -> (PathBuf, String) {
        let path = dir.path().join("socket");
        let address = format!("unix:{}", path.display());
        (path, address)
    }

    #[test]
    fn addresses_are_read_and_shown() {
        let read = |address| resolve(address).map(|all| text(&all[0]));
        for address in ["127.0.0.1:9000", "[::1]:9000", "unix:/tmp/a:b", "unix:relative"] {
            assert_eq!(read(address).unwrap(), address);
        }
        assert!(read("localhost:0").unwrap().ends_with(":0"));
        for address in
            ["", ":", "localhost", "localhost:", "[::1]", "unix:", "unix:\0a", "a:65536", "a:b"]
        {
            assert_eq!(read(address).unwrap_err().kind(), ErrorKind::InvalidInput, "{address}");
        }
    }

    #[test]
    fn a_line_goes_there_and_back() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let (path, unix) = unix(&dir);
        for address in ["127.0.0.1:0", "[::1]:0", "localhost:0", &unix] {
            let listener = listen(address).unwrap();
            let mut client = connect(&listener.local_address().unwrap(), SOON).unwrap();
            let server = listener.accept().unwrap();
            client.write_all(b"Hello\n").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut lines = BufReader::new(server.try_clone().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "Hello");
            assert!(lines.next().is_none());
            let mut writer = server;
            writer.write_all(b"suc!").unwrap();
            drop((writer, lines));
            let mut reply = String::new();
            client.read_to_string(&mut reply).unwrap();
            assert_eq!(reply, "suc!");
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_port_can_be_used_again_at_once() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap();
        let client = connect(&address, SOON).unwrap();
        // The side that closes first keeps the port in TIME_WAIT.
        drop(listener.accept().unwrap());
        drop((client, listener));
        drop(listen(&address).unwrap());
    }

    #[test]
    fn a_socket_file_is_private_and_a_stale_one_is_replaced() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let (path, address) = unix(&dir);
        drop(UnixListener::bind(&path).unwrap()); // leaves its file behind
        assert!(path.exists());
        let error = connect(&address, SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

        let listener = listen(&address).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = listen(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        connect(&address, SOON).unwrap();

        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&address).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_socket_file_is_removed_only_by_its_server() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let (path, address) = unix(&dir);
        let first = listen(&address).unwrap();
        fs::remove_file(&path).unwrap();
        let second = listen(&address).unwrap();
        drop(first);
        connect(&address, SOON).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    /// As a killed one does whose children are still dying.
    #[test]
    fn a_server_that_is_about_to_end_is_waited_for() {
        let dir = TempDir::new_in("/tmp").unwrap();
        for address in ["127.0.0.1:0", &unix(&dir).1] {
            let first = listen(address).unwrap();
            let address = first.local_address().unwrap();
            std::thread::scope(|scope| {
                let second = scope.spawn(|| listen(&address));
                std::thread::sleep(Duration::from_millis(5));
                drop(first);
                second.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn errors_name_the_call_and_the_address() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap();
        let error = listen(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().starts_with(&format!("listen {address}: ")), "{error}");
        drop(listener);
        let error = connect(&address, SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with(&format!("connect {address}: ")), "{error}");

        let error = connect("unix:/nonexistent/socket", None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error = listen(&format!("unix:{}", "x".repeat(200))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_full_queue_is_a_timeout() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let (path, address) = unix(&dir);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let _first = connect(&address, SOON).unwrap();
        for timeout in [SOON, Some(Duration::ZERO)] {
            let error = connect(&address, timeout).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        }
        // Such a server is there, so its file is not stale.
        assert_eq!(listen(&address).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn lines_are_messages() {
        let mut stream = &b"Hello\n\nAlpha_Panda\n"[..];
        for message in [Some("Hello"), Some(""), Some("Alpha_Panda"), None] {
            assert_eq!(read_line(&mut stream).unwrap().as_deref(), message);
        }
        let error = read_line(&mut &b"torn"[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        for bad in [&b"\xff\n"[..], &[b'x'; MAX_LINE][..]] {
            assert_eq!(read_line(&mut &*bad).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        let mut sent = Vec::new();
        for bad in ["two\nlines", &"x".repeat(MAX_LINE)] {
            let error = write_line(&mut sent, bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        let longest = "x".repeat(MAX_LINE - 1);
        write_line(&mut sent, &longest).unwrap();
        assert_eq!(read_line(&mut &*sent).unwrap().unwrap(), longest);
    }

    #[test]
    fn a_timeout_of_the_stream_is_timed_out() {
        let listener = listen("127.0.0.1:0").unwrap();
        let client = connect(&listener.local_address().unwrap(), None).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let error = read_line(&mut BufReader::new(&client)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "the other side sent nothing in time");
        client.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        let line = "x".repeat(MAX_LINE - 1);
        let error = (0..1000).find_map(|_| write_line(&mut &client, &line).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "the other side did not read in time");
    }
}
