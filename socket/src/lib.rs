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

use std::fs;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

/// One end of a connection: read from it and write to it, also by shared reference, in two threads.
///
/// `set_read_timeout` and `set_write_timeout` limit how long that may block, `shutdown` ends one direction.
pub use socket2::Socket as Stream;

/// How many connections may wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: i32 = 4096;

/// The longest line in bytes, with its end: it bounds the memory that an untrusted peer can make us use.
pub const MAX_LINE: usize = 64 * 1024;

/// How long to wait for another server that starts at the same path.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to look whether it has started: the kernel has no event for that.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A socket that accepts connections: socket(2), bind(2), listen(2).
///
/// A server that can be stopped polls it together with a descriptor that tells it to stop, such as a pipe or a
/// signalfd(2):
///
/// ```text
/// let mut fds = [&listener.as_fd(), &stop.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
/// poll(&mut fds, PollTimeout::NONE)?; // stop has ended, or a client waits
/// ```
///
/// Dropping it closes it, and removes the socket file that it made. Moving it into a child would drop the parent's
/// copy, and so remove the file: let the child borrow it instead.
#[derive(Debug)]
pub struct Listener {
    // Dropped first: while the file is there, a client can still connect.
    file: Option<SocketFile>,
    socket: Socket,
}

/// Makes a socket that accepts connections at `address`: socket(2), bind(2), listen(2).
///
/// Port 0 stands for any free port; [`Listener::local_address`] tells which. A name is
/// resolved, and the first usable address is used.
///
/// A socket file is made with mode 0600: to let others in, call `std::fs::set_permissions` afterwards (they need to
/// write to it, and to enter its directory). If there is a stale one, it is replaced; anything else at that path is
/// left alone, and is an error. Staleness is tested by connecting: a live server sees a client come and go, and one
/// that has bound and does not listen yet (unlike one made here) is taken for stale.
///
/// Fails with `InvalidInput` if `address` is not valid, and with `AddrInUse` if somebody listens there.
pub fn listen(address: &str) -> io::Result<Listener> {
    first(resolve(address)?.iter().map(|at| {
        let failed = |call| move |error| named(call, &text(at), error);
        let socket = Socket::new(at.domain(), Type::STREAM, None).map_err(failed("socket"))?;
        if let Some(path) = at.as_pathname() {
            let file = listen_unix(&socket, at, path).map_err(failed("listen"))?;
            return Ok(Listener { file: Some(file), socket });
        }
        // Without it, bind fails for a minute after the last server of this port has ended.
        socket.set_reuse_address(true).map_err(failed("setsockopt SO_REUSEADDR"))?;
        socket.bind(at).map_err(failed("bind"))?;
        socket.listen(BACKLOG).map_err(failed("listen"))?;
        Ok(Listener { file: None, socket })
    }))
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
    first(
        resolve(address)?
            .iter()
            .map(|at| connect_to(at, deadline).map_err(|error| named("connect", &text(at), error))),
    )
}

impl Listener {
    /// The address that it listens on, with the real port: getsockname(2).
    pub fn local_address(&self) -> io::Result<String> {
        Ok(text(&self.socket.local_addr()?))
    }

    /// Blocks until the next client comes: accept(2).
    ///
    /// A client that gave up while it was queued is skipped. Other errors (for instance too
    /// many open files) are transient: the listener stays usable.
    pub fn accept(&self) -> io::Result<Stream> {
        loop {
            return match self.socket.accept() {
                Ok((stream, _)) if self.file.is_some() => Ok(stream),
                // Small messages go out at once.
                Ok((stream, _)) => stream.set_tcp_nodelay(true).map(|()| stream),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    kind => Err(io::Error::new(kind, format!("accept: {error}"))),
                },
            };
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
/// been sent: close the stream.
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
    let what = format!("address '{address}'");
    let invalid =
        |why: &str| Err(io::Error::new(ErrorKind::InvalidInput, format!("{what}: {why}")));
    if let Some(path) = address.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        if path.starts_with(['@', '\0']) {
            return invalid(
                "no name in the abstract namespace, which is open to all (a file: unix:./@name)",
            );
        }
        if path.contains('\0') {
            return invalid("a path has no NUL");
        }
        return SockAddr::unix(path)
            .map(|at| vec![at])
            .or_else(|error| invalid(&error.to_string()));
    }
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    // An IPv6 address needs its brackets: in 2001:db8::1:9000 nobody can tell which part is the port.
    let in_brackets = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || port.is_empty() || host.contains(':') != in_brackets {
        return invalid("expected HOST:PORT, [IPV6]:PORT or unix:/PATH");
    }
    let Ok(port) = port.parse::<u16>() else {
        return invalid("a port is a number up to 65535");
    };
    // Only without the brackets does getaddrinfo(3) understand a scope, as in fe80::1%eth0.
    let found = (host.trim_matches(['[', ']']), port).to_socket_addrs();
    Ok(found.map_err(|error| named("resolve", address, error))?.map(SockAddr::from).collect())
}

/// The first success, or the first error that says more than that this host has no such kind of address.
fn first<T>(results: impl Iterator<Item = io::Result<T>>) -> io::Result<T> {
    let mut told = io::Error::from(ErrorKind::AddrNotAvailable);
    for result in results {
        match result {
            Err(error) if told.kind() == ErrorKind::AddrNotAvailable => told = error,
            Err(_) => {}
            success => return success,
        }
    }
    Err(told)
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
            // Over TCP nobody answered; on a Unix socket the server's queue stayed full.
            Some(Errno::EINTR | Errno::EINPROGRESS | Errno::EALREADY | Errno::EAGAIN) => {
                let what = "the server did not answer in time";
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            _ => return Err(error),
        }
    }
    stream.set_write_timeout(None)?;
    if at.as_pathname().is_none() {
        stream.set_tcp_nodelay(true)?;
        // The kernel picks our port at random. If that is the one we connect to, and nobody listens
        // there, a TCP socket connects to itself.
        if matches!((stream.local_addr(), stream.peer_addr()), (Ok(ours), Ok(its)) if ours == its) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
    }
    Ok(stream)
}

fn listen_unix(socket: &Socket, at: &SockAddr, path: &Path) -> io::Result<SocketFile> {
    // Two servers that start at once must not mistake each other's socket, which does not listen yet, for a
    // stale one.
    let _turn = take_turn(path)?;
    // bind(2) gives the file the mode of the socket.
    fchmod(socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(at).or_else(|error| match error.kind() {
        ErrorKind::AddrInUse => remove_stale(at, path).and_then(|()| socket.bind(at)),
        _ => Err(error),
    })?;
    let (id, owner) = (file_id(path)?, std::process::id());
    // Absolute, so that we can still remove it after a chdir.
    let file = SocketFile { path: std::path::absolute(path)?, id, owner };
    socket.listen(BACKLOG)?;
    Ok(file)
}

/// Lets one server at a time start at a path, until the returned guard is dropped.
///
/// It binds a name in the abstract namespace (unix(7)), which leaves no file behind. If the name is taken, another
/// server is starting there, unless a stranger holds it. Not covered: servers in different network namespaces.
fn take_turn(path: &Path) -> io::Result<Socket> {
    let dir = fs::metadata(path.parent().unwrap_or(path).join("."))?;
    // Such a name is short, so it has a hash of the file's name: FNV-1a, the same in every program.
    let file = path.file_name().unwrap_or_default().as_bytes().iter();
    let hash = file.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let name = format!("listen {:x}:{:x}:{hash:x}", dir.dev(), dir.ino());
    let at = SockAddr::unix(format!("\0{name}"))?;
    let turn = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    // The other server is soon done. So is a program that another thread is starting, which has a copy of our last
    // turn until exec.
    let deadline = Instant::now() + TURN_TIMEOUT;
    let mut taken = turn.bind(&at);
    while matches!(&taken, Err(e) if e.kind() == ErrorKind::AddrInUse) && Instant::now() < deadline
    {
        std::thread::park_timeout(POLL_INTERVAL);
        taken = turn.bind(&at);
    }
    taken.map(|()| turn).map_err(|error| {
        let what = format!(
            "another server is starting there, or somebody keeps the name '@{name}': {error}"
        );
        io::Error::new(error.kind(), what)
    })
}

/// Removes a socket file that nobody listens on: what a killed server leaves behind.
fn remove_stale(at: &SockAddr, path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let what = "exists and is not a socket";
        return Err(io::Error::new(ErrorKind::AlreadyExists, what));
    }
    // Without waiting: a full queue also proves that a server is there.
    match connect_to(at, Some(Instant::now())) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "another server listens there")),
    }
}

/// The file of a listening Unix socket; dropping it removes the file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
    owner: u32,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Neither a forked child's copy of this value removes it, nor do we remove what somebody has
        // put in its place.
        if self.owner == std::process::id() && file_id(&self.path).ok() == Some(self.id) {
            let _ = fs::remove_file(&self.path);
        }
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

    use tempfile::TempDir;

    const SOON: Option<Duration> = Some(Duration::from_millis(50));

    fn unix(dir: &TempDir) -> (PathBuf, String) {
        let path = dir.path().join("socket");
        let address = format!("unix:{}", path.display());
        (path, address)
    }

    #[test]
    fn addresses_are_read_and_shown() {
        for address in ["127.0.0.1:9000", "[::1]:9000", "unix:/tmp/a:b", "unix:relative"] {
            assert_eq!(text(&resolve(address).unwrap()[0]), address);
        }
        assert!(!resolve("localhost:0").unwrap().is_empty());
        let shape = "expected HOST:PORT, [IPV6]:PORT or unix:/PATH";
        for address in ["", ":", ":9000", "localhost", "localhost:", "::1:9000", "[::1:9000"]
            .into_iter()
            .chain(["[]:1", "[::1]", "[::1]9000", "unix:"])
        {
            let error = resolve(address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{address}");
            assert_eq!(error.to_string(), format!("address '{address}': {shape}"));
        }
        for address in ["localhost:99999", "a:65536", "a:-1", "a:b"] {
            let error = resolve(address).unwrap_err().to_string();
            assert_eq!(error, format!("address '{address}': a port is a number up to 65535"));
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

        // What somebody has put in its place is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(listener);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let error = listen(&address).unwrap_err().to_string();
        assert_eq!(error, format!("listen {address}: exists and is not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_is_a_path_and_no_abstract_name() {
        for (path, why) in
            [("unix:@name", "abstract"), ("unix:\0name", "abstract"), ("unix:/tmp/a\0b", "NUL")]
        {
            for error in [listen(path).unwrap_err(), connect(path, SOON).unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains(why), "{error}");
            }
        }
        // Only the kernel knows whether there is a device of that number.
        assert_eq!(text(&resolve("[fe80::1%7]:9").unwrap()[0]), "[fe80::1%7]:9");
    }

    /// Their names differ in the last byte only.
    #[test]
    fn servers_with_different_paths_never_refuse_each_other() {
        let dir = TempDir::new_in("/tmp").unwrap();
        for _ in 0..300 {
            let start = std::sync::Barrier::new(2);
            let server = |number: u8| {
                let name = format!("{}/my-application-worker-{number}.sock", dir.path().display());
                start.wait();
                listen(&format!("unix:{name}")).unwrap()
            };
            std::thread::scope(|scope| {
                scope.spawn(|| server(1));
                server(2);
            });
        }
    }

    #[test]
    fn a_name_that_is_kept_is_named_in_the_error() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let (path, address) = unix(&dir);
        let kept = take_turn(&path).unwrap();
        let error = listen(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("somebody keeps the name '@listen "), "{error}");
        drop(kept);
        listen(&address).unwrap();
    }

    #[test]
    fn the_error_that_tells_most_is_the_one_that_is_shown() {
        let results = |kinds: &[ErrorKind]| {
            let errors = kinds.iter().map(|kind| Err::<(), _>(io::Error::from(*kind)));
            first(errors.collect::<Vec<_>>().into_iter()).unwrap_err().kind()
        };
        use ErrorKind::{AddrInUse, AddrNotAvailable, ConnectionRefused};
        assert_eq!(results(&[AddrNotAvailable, ConnectionRefused]), ConnectionRefused);
        assert_eq!(results(&[ConnectionRefused, AddrNotAvailable]), ConnectionRefused);
        assert_eq!(results(&[AddrInUse, ConnectionRefused]), AddrInUse);
        assert_eq!(results(&[AddrNotAvailable]), AddrNotAvailable);
        assert_eq!(results(&[]), AddrNotAvailable);
    }

    /// Each would take the other's socket, which does not listen yet, for stale.
    #[test]
    fn of_two_servers_that_start_at_once_one_serves() {
        let dir = TempDir::new_in("/tmp").unwrap();
        let (path, address) = unix(&dir);
        for _ in 0..100 {
            drop(UnixListener::bind(&path).unwrap()); // a stale file
            let start = std::sync::Barrier::new(2);
            let server = || {
                start.wait();
                listen(&address)
            };
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(server);
                (server(), one.join().unwrap())
            });
            let (Ok(served), Err(refused)) =
                (if one.is_ok() { (one, other) } else { (other, one) })
            else {
                panic!("two servers at {address}");
            };
            assert_eq!(refused.kind(), ErrorKind::AddrInUse);
            // The one that left took nothing with it.
            connect(&address, SOON).unwrap();
            drop(served);
            assert!(!path.exists());
        }
    }

    #[test]
    fn errors_name_the_call_and_the_address() {
        let listener = listen("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap();
        let error = listen(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().starts_with(&format!("bind {address}: ")), "{error}");
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
