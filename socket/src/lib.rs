//! Stream sockets: the only one of the five that also goes between hosts.
//!
//! What Python's `socket` module does with `socket`, `bind`, `listen`, `accept` and `connect`, with
//! one [`Address`] type for TCP (`127.0.0.1:9000`, `[::1]:9000`, `localhost:9000`) and Unix-domain
//! sockets (`unix:/path`); [`listen`] and [`connect`] take the steps of the article's flow chart:
//!
//! ```text
//!  server: socket ─▶ bind ─▶ listen ─▶ accept ─▶ recv ─▶ send ─▶ close
//!  client: socket ─────────────────▶ connect ─▶ send ─▶ recv ─▶ close
//! ```
//!
//! ```
//! use std::io::BufReader;
//!
//! let listener = socket::listen(&"127.0.0.1:0".parse()?)?; // port 0: any that is free
//! let address = listener.local_address()?;
//!
//! // The kernel queues a connection before it is accepted, so this needs no second process.
//! let mut client = socket::connect(&address, None)?;
//! let mut server = BufReader::new(listener.accept()?);
//!
//! socket::write_line(&mut client, "Hello")?;
//! assert_eq!(socket::read_line(&mut server)?.as_deref(), Some("Hello"));
//! drop(client);
//! assert_eq!(socket::read_line(&mut server)?, None);
//! # std::io::Result::Ok(())
//! ```
//!
//! # Dangers
//!
//! - A stream keeps no boundaries: two sends can arrive as one receive, and one as two. Agree
//!   on a frame; here a message is a line. And use `write_all`, never a bare `write`.
//! - A peer that stays and says nothing holds a blocking reader for ever: set a read timeout.
//! - An address like `0.0.0.0:9000` listens to the whole network, without a password or a secret.
//! - Between hosts a peer can vanish without a word (a pulled cable); only a timeout tells.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// How many connections may wait to be accepted; the kernel lowers it to its own limit.
const BACKLOG: i32 = 4096;

/// Where a server listens: `host:port`, `[IPv6 address]:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP, for a name or an IP address (without brackets), and a port.
    Tcp(String, u16),
    /// A socket in the file system, on this host only.
    Unix(PathBuf),
}

/// A socket that accepts connections: socket(2), bind(2), listen(2).
///
/// Dropping it closes it, and removes the socket file that it made.
#[derive(Debug)]
pub struct Listener {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    // The file is dropped first: while it is there, a client can still connect.
    Unix(SocketFile, UnixListener),
}

/// One end of a connection; read from it and write to it.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix-domain socket.
    Unix(UnixStream),
}

/// Makes a socket that accepts connections at `address`: socket(2), bind(2), listen(2).
///
/// Port 0 stands for any free port; [`Listener::local_address`] tells which. A name is
/// resolved, and the first of its addresses that can be used is.
///
/// A socket file is made with mode 0600. If there is one already that nobody listens on any
/// more, it is replaced; anything else at that path is left alone, and is an error. To find
/// out, this connects: a server that does listen there sees a client come and go.
pub fn listen(address: &Address) -> io::Result<Listener> {
    let inner = match address {
        Address::Tcp(host, port) => {
            let listener =
                first(resolve(host, *port)?, |at| listen_tcp(at).map(TcpListener::from))?;
            Inner::Tcp(listener)
        }
        Address::Unix(path) => {
            let listener = listen_unix(path).map_err(|e| named("listen", address, e))?;
            let file = SocketFile::new(path).map_err(|e| named("stat", address, e))?;
            Inner::Unix(file, listener)
        }
    };
    Ok(Listener { inner })
}

/// Connects to a server: socket(2), connect(2).
///
/// Waits up to `timeout` (`None`: as long as the kernel tries, about two minutes for a host that
/// does not answer). It returns as soon as the server's kernel has queued the
/// connection, even before the server calls `accept`. A name is resolved, and each
/// of its addresses tried in turn, as long as there is time; resolving has no timeout.
///
/// Fails with `ConnectionRefused` or `NotFound` (Unix) when nobody listens, and `TimedOut`.
pub fn connect(address: &Address, timeout: Option<Duration>) -> io::Result<Stream> {
    // A timeout that the clock cannot express is as good as none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    match address {
        Address::Tcp(host, port) => first(resolve(host, *port)?, |at| {
            connect_tcp(at, deadline).map_err(|e| named("connect", &at.into(), e))
        }),
        Address::Unix(path) => {
            connect_unix(path, timeout).map_err(|e| named("connect", address, e))
        }
    }
}

/// The longest line in bytes, with its end: what a stranger can make us keep in memory.
pub const LONGEST_LINE: usize = 64 * 1024;

/// Writes a message and the end of its line, in one send(2) if the socket's buffer has room.
///
/// Waits while the buffer is full. Fails with `InvalidInput` if the message has a line's end in
/// it or is longer than [`LONGEST_LINE`], and with `BrokenPipe` or `ConnectionReset` when the other
/// side is gone.
pub fn write_line(stream: &mut impl Write, message: &str) -> io::Result<()> {
    let line = [message, "\n"].concat();
    if line.len() > LONGEST_LINE || message.contains('\n') {
        let what = format!("a message is one line of up to {} bytes", LONGEST_LINE - 1);
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    stream.write_all(line.as_bytes())
}

/// Reads a message: the next line, without its end. `None` when the other side has closed.
///
/// Fails with `UnexpectedEof` when the stream ends in the middle of a line, with `InvalidData` if
/// the line is not UTF-8 or longer than [`LONGEST_LINE`]. No more than that is ever kept in memory.
/// After an error, also a timeout, the part of a line that had come is lost: close it.
pub fn read_line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let longest = LONGEST_LINE as u64;
    stream.by_ref().take(longest).read_until(b'\n', &mut line)?;
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

impl Listener {
    /// The address that it listens on, with the real port: getsockname(2).
    pub fn local_address(&self) -> io::Result<Address> {
        match &self.inner {
            Inner::Tcp(listener) => Ok(listener.local_addr()?.into()),
            Inner::Unix(file, _) => Ok(Address::Unix(file.path.clone())),
        }
    }

    /// Waits for the next client: accept(2).
    ///
    /// A client that gave up while it was queued is passed over. Other errors (for instance too
    /// many open files) are about this moment: the listener stays usable.
    pub fn accept(&self) -> io::Result<Stream> {
        loop {
            let accepted = match &self.inner {
                Inner::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(stream))
                }),
                Inner::Unix(_, listener) => {
                    listener.accept().map(|(stream, _)| Stream::Unix(stream))
                }
            };
            match accepted {
                Err(error) if gave_up(&error) => {}
                Err(error) => {
                    let what = format!("accept: {error}");
                    return Err(io::Error::new(error.kind(), what));
                }
                accepted => return accepted,
            }
        }
    }
}

impl Stream {
    /// A second handle to the same connection, for instance to read and write in two threads.
    pub fn try_clone(&self) -> io::Result<Stream> {
        match self {
            Stream::Tcp(stream) => stream.try_clone().map(Stream::Tcp),
            Stream::Unix(stream) => stream.try_clone().map(Stream::Unix),
        }
    }

    /// Ends one direction or both, for all handles: shutdown(2).
    ///
    /// After `Shutdown::Write` the other side sees the end of the stream, and can still answer.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        }
    }

    /// Lets a read fail with `TimedOut` when nothing came for so long: `SO_RCVTIMEO`.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Lets a write fail with `TimedOut` when the other side read nothing for so long:
    /// `SO_SNDTIMEO`.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_write_timeout(timeout),
            Stream::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }
}

// As in std, a shared reference is enough: one thread can read while another writes.
impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
        }
        .map_err(|error| timed_out(error, "the other side sent nothing in time"))
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
        }
        .map_err(|error| timed_out(error, "the other side received nothing in time"))
    }

    /// Nothing is buffered on this side.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Address> {
        let invalid = || {
            let what = format!("address '{text}': expected HOST:PORT, [IPV6]:PORT or unix:/PATH");
            io::Error::new(ErrorKind::InvalidInput, what)
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(invalid()),
                path => Ok(Address::Unix(path.into())),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').ok_or_else(invalid)?,
            // In 2001:db8::1:9000 nobody can tell the port from the address.
            None if host.contains(':') => return Err(invalid()),
            None => host,
        };
        if host.is_empty() {
            return Err(invalid());
        }
        Ok(Address::Tcp(host.to_owned(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        let host = match address {
            // With its scope, which a link-local address needs: fe80::1%2
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        Address::Tcp(host, address.port())
    }
}

/// Tries one address after the other; the error is the last one's.
fn first<T>(
    addresses: Vec<SocketAddr>,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut result = Err(ErrorKind::AddrNotAvailable.into());
    for address in addresses {
        result = attempt(address);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// getaddrinfo(3)
fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match (host, port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(named("resolve", &Address::Tcp(host.to_owned(), port), error)),
    }
}

fn listen_tcp(at: SocketAddr) -> io::Result<Socket> {
    let failed = |call| move |error| named(call, &at.into(), error);
    let socket =
        Socket::new(Domain::for_address(at), Type::STREAM, None).map_err(failed("socket"))?;
    // Without it, bind fails for a minute after the last server of this port has ended.
    socket.set_reuse_address(true).map_err(failed("setsockopt"))?;
    socket.bind(&at.into()).map_err(failed("bind"))?;
    socket.listen(BACKLOG).map_err(failed("listen"))?;
    Ok(socket)
}

fn connect_tcp(at: SocketAddr, deadline: Option<Instant>) -> io::Result<Stream> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    // Small messages go out at once instead of waiting for company.
    socket.set_tcp_nodelay(true)?;
    let left = match deadline {
        Some(deadline) => deadline.saturating_duration_since(Instant::now()),
        None => Duration::MAX,
    };
    // Also without a timeout: a connect(2) that a signal interrupts goes on behind our back,
    // and only poll(2), which this uses, can wait for it.
    socket.connect_timeout(&at.into(), left)?;
    Ok(Stream::Tcp(socket.into()))
}

fn connect_unix(path: &Path, timeout: Option<Duration>) -> io::Result<Stream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Here connect(2) waits only while the server's queue is full, for this long. (0 would be
    // no timeout at all.)
    socket.set_write_timeout(timeout.map(|timeout| timeout.max(Duration::from_micros(1))))?;
    let address = SockAddr::unix(path)?;
    loop {
        match socket.connect(&address) {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let what = "the server's queue stayed full";
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            Err(error) => return Err(error),
        }
    }
    socket.set_write_timeout(None)?;
    Ok(Stream::Unix(socket.into()))
}

fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    let address = SockAddr::unix(path)?;
    // bind(2) gives the file the mode of the socket.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let socket = File::from(OwnedFd::from(socket));
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(socket));
    match socket.bind(&address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            remove_stale(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Removes a socket file that nobody listens on: what a killed server leaves behind.
///
/// Two servers that start at the very same moment may each take the other's for stale.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let what = "exists and is not a socket";
        return Err(io::Error::new(ErrorKind::AlreadyExists, what));
    }
    // Not waiting, should its queue be full: then there is a server.
    match connect_unix(path, Some(Duration::from_millis(1))) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
        _ => {
            let what = "another server listens there";
            Err(io::Error::new(ErrorKind::AddrInUse, what))
        }
    }
}

/// The file of a listening Unix socket; dropping it removes the file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
    owner: u32,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        let there = fs::symlink_metadata(path)?;
        Ok(SocketFile {
            path: path.to_owned(),
            id: (there.dev(), there.ino()),
            owner: std::process::id(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Neither a forked child's copy of this value removes it, nor do we remove what somebody has
        // put in its place.
        let same = |there: fs::Metadata| (there.dev(), there.ino()) == self.id;
        if self.owner == std::process::id() && fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether an error of accept(2) is about the connection, and not about accepting.
fn gave_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
    )
}

/// On a socket that waits, `WouldBlock` means that it has waited as long as it was told to.
fn timed_out(error: io::Error, what: &str) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => io::Error::new(ErrorKind::TimedOut, what),
        _ => error,
    }
}

/// Names the call that failed and its object.
fn named(call: &str, address: &Address, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{call} {address}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SOON: Option<Duration> = Some(Duration::from_millis(50));

    /// A directory of this test's own.
    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Dir {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("socket-test-{}-{count}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            fs::create_dir(&dir).unwrap();
            Dir(dir)
        }

        fn unix(&self, name: &str) -> (PathBuf, Address) {
            let path = self.0.join(name);
            (path.clone(), Address::Unix(path))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tcp(address: &str) -> Address {
        address.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, address) in [
            ("127.0.0.1:9000", Address::Tcp("127.0.0.1".into(), 9000)),
            ("[::1]:9000", Address::Tcp("::1".into(), 9000)),
            ("localhost:0", Address::Tcp("localhost".into(), 0)),
            ("unix:/tmp/a:b", Address::Unix("/tmp/a:b".into())),
            ("unix:relative", Address::Unix("relative".into())),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
        for text in ["", ":", ":9000", "localhost", "localhost:", "::1:9000", "[::1:9000"]
            .into_iter()
            .chain(["[]:1", "[::1]", "[::1]9000", "a:65536", "a:-1", "a:b", "unix:"])
        {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn a_line_goes_there_and_back() {
        let dir = Dir::new();
        let (path, unix) = dir.unix("socket");
        for address in [tcp("127.0.0.1:0"), tcp("[::1]:0"), tcp("localhost:0"), unix] {
            let listener = listen(&address).unwrap();
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
        let listener = listen(&tcp("127.0.0.1:0")).unwrap();
        let address = listener.local_address().unwrap();
        let client = connect(&address, SOON).unwrap();
        // The side that closes first keeps the port in TIME_WAIT.
        drop(listener.accept().unwrap());
        drop((client, listener));
        drop(listen(&address).unwrap());
    }

    #[test]
    fn a_socket_file_is_private_and_a_stale_one_is_replaced() {
        let dir = Dir::new();
        let (path, address) = dir.unix("socket");
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
    fn errors_name_the_call_and_the_address() {
        let listener = listen(&tcp("127.0.0.1:0")).unwrap();
        let address = listener.local_address().unwrap();
        let error = listen(&address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().starts_with(&format!("bind {address}: ")), "{error}");
        drop(listener);
        let error = connect(&address, SOON).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with(&format!("connect {address}: ")), "{error}");

        let nowhere = Address::Unix("/nonexistent/socket".into());
        let error = connect(&nowhere, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let long = Address::Unix("x".repeat(200).into());
        let error = listen(&long).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_full_queue_is_a_timeout() {
        let dir = Dir::new();
        let (path, address) = dir.unix("socket");
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
        for bad in [&b"\xff\n"[..], &[b'x'; LONGEST_LINE][..]] {
            assert_eq!(read_line(&mut &*bad).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        let mut sent = Vec::new();
        for bad in ["two\nlines", &"x".repeat(LONGEST_LINE)] {
            let error = write_line(&mut sent, bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        let longest = "x".repeat(LONGEST_LINE - 1);
        write_line(&mut sent, &longest).unwrap();
        assert_eq!(read_line(&mut &*sent).unwrap().unwrap(), longest);
    }

    #[test]
    fn a_read_timeout_ends_the_wait() {
        let listener = listen(&tcp("127.0.0.1:0")).unwrap();
        let mut client = connect(&listener.local_address().unwrap(), None).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    }
}
