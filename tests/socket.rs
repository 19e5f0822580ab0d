//! The socket program, as a user runs it.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use socket::{Stream, connect, read_line, write_line};
use tests::{
    Program, block, check_accidents, check_console_blocks, check_kills, check_story, check_usage,
    example, has, list, program, program_of_nobody, readme_shows, run, skip, succeeds, temp_dir,
};

const SOCKET: &str = env!("CARGO_BIN_EXE_socket");

const STORY: &str = "cargo run -q -p socket";

#[test]
fn what_the_readmes_show_is_what_it_prints() {
    check_console_blocks(SOCKET, "socket", &[]);
}

#[test]
fn the_story_is_the_one_in_the_readme() {
    check_story(SOCKET, &[], STORY, 20);
}

#[test]
fn errors_name_the_killed_process() {
    check_accidents(SOCKET, &[], &["server", "client"], &readme_shows(STORY));
    check_kills(SOCKET, &[], &["server", "client"]);
}

#[test]
fn bad_arguments_are_refused() {
    check_usage(SOCKET, "socket");
    for role in ["server", "client"] {
        for address in ["9000", "localhost:99999", "unix:"] {
            let error = format!("{address}: expected HOST:PORT, [IPV6]:PORT or unix:/PATH\n");
            run(&mut program(SOCKET, &[role, address])).failed(2, &[&error]);
        }
    }
}

/// A server in a terminal of its own, and the address that it says it listens on.
fn server(address: &str) -> (Program, String) {
    let mut server = Program::start(&mut program(SOCKET, &["server", address]));
    let line = server.line();
    let (_, address) = line.split_once("listens on ").unwrap();
    (server, address.to_owned())
}

/// Ends a server as Ctrl-C does, and returns what it printed.
#[track_caller]
fn stop(server: Program) -> String {
    server.kill_group(Signal::SIGINT);
    let finished = server.finish();
    assert_eq!((finished.code(), finished.stderr.as_str()), (130, ""));
    let (said, stopped) = finished.stdout.rsplit_once("server | stops: SIGINT\n").unwrap();
    assert_eq!(stopped, "");
    said.trim_end_matches(' ').to_owned()
}

fn open(address: &str) -> Stream {
    connect(address, None).unwrap()
}

#[track_caller]
fn check_echo(stream: &mut Stream, message: &str) {
    write_line(stream, message).unwrap();
    let reply = read_line(&mut BufReader::new(stream)).unwrap();
    assert_eq!(reply.as_deref(), Some(message));
}

/// What comes back for these bytes, until the server closes the connection.
fn last_answer(address: &str, bytes: &[u8]) -> String {
    let mut stream = open(address);
    stream.write_all(bytes).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn two_terminals_over_every_kind_of_address() {
    let dir = temp_dir();
    let unix = format!("unix:{}", dir.path().join("socket").display());
    for address in ["127.0.0.1:0", "[::1]:0", "localhost:0", &unix] {
        let (server, address) = server(address);
        let mut command = program(SOCKET, &["client", &address, "Hello", "Alpha_Panda"]);
        let printed = run(&mut command).succeeded();
        let printed: Vec<_> = printed.lines().map(str::trim).collect();
        let expected = [
            "client | send:   Hello",
            "client | recv:   Hello",
            "client | send:   Alpha_Panda",
            "client | recv:   Alpha_Panda",
        ];
        assert_eq!(printed, expected);
        let printed = stop(server);
        let user = format!("client 1: connected, user {}, process ", nix::unistd::geteuid());
        let connected = if address == unix { user.as_str() } else { "client 1: connected\n" };
        assert!(printed.contains(connected), "{printed}");
    }
    assert_eq!(list(dir.path()), [""; 0], "left behind");
}

#[test]
fn messages_can_be_piped_in() {
    let (server, address) = server("127.0.0.1:0");
    let mut client = Command::new(SOCKET)
        .args(["client", &address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"Hello\nAlpha_Panda").unwrap();
    let output = client.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let received = printed.lines().filter_map(|line| line.split_once("recv:   "));
    assert!(received.map(|(_, reply)| reply).eq(["Hello", "Alpha_Panda"]), "{printed}");
    assert!(output.status.success());
    stop(server);
}

#[test]
fn what_is_sent_is_what_was_typed() {
    let (server, address) = server("127.0.0.1:0");
    let printed = run(&mut program(SOCKET, &["client", &address, "Hello", "-h"])).succeeded();
    assert!(printed.ends_with("recv:   -h\n"), "{printed}");
    let client = |input: Stdio| {
        let mut client = Command::new(SOCKET);
        client.args(["client", &address]).stdin(input).output().unwrap()
    };
    let dir = temp_dir();
    fs::write(dir.path().join("input"), "CR\r\n\nlast").unwrap();
    let output = client(fs::File::open(dir.path().join("input")).unwrap().into());
    let printed = String::from_utf8(output.stdout).unwrap();
    let received = printed.lines().filter_map(|line| line.split_once("recv:   "));
    assert!(received.map(|(_, reply)| reply).eq(["CR\\r", "", "last"]), "{printed}");
    // Without an end it would take all memory.
    let output = client(fs::File::open("/dev/zero").unwrap().into());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("read stdin: a line is longer than 65536 bytes"), "{error}");
    assert_eq!(output.status.code(), Some(1));
    stop(server);
}

/// Longer ones could mix with those of other processes.
#[test]
fn lines_of_the_log_are_cut_at_pipe_buf() {
    let (server, address) = server("127.0.0.1:0");
    let message = "é".repeat(5000);
    let printed = run(&mut program(SOCKET, &["client", &address, &message])).succeeded();
    assert_eq!(printed.lines().count(), 2);
    for line in printed.split_inclusive('\n') {
        assert!(line.len() <= 4096 && line.len() > 4000, "{}", line.len());
        assert!(line.ends_with("é…\n"), "{line}");
    }
    stop(server);
}

#[test]
fn clients_are_served_at_the_same_time() {
    let (server, address) = server("127.0.0.1:0");
    let mut streams: Vec<_> = (0..500).map(|_| open(&address)).collect();
    // The last one is answered although all the others are still there.
    for (number, stream) in streams.iter_mut().enumerate().rev() {
        check_echo(stream, &format!("Hello from {number}"));
    }
    drop(streams);
    stop(server);
}

#[test]
fn a_client_may_be_slow_or_rude_and_the_others_are_served() {
    let (server, address) = server("127.0.0.1:0");
    let mut half = open(&address);
    half.write_all(b"half a li").unwrap();
    // A line that is too long is answered, and the connection closed.
    let answer = last_answer(&address, &[b'x'; socket::MAX_LINE + 1000]);
    assert_eq!(answer, "error: a line is longer than 65536 bytes\n");
    assert_eq!(last_answer(&address, b"\xff\n"), "error: a line is not UTF-8\n");
    // Somebody closes without waiting for the answer.
    let mut gone = open(&address);
    write_line(&mut gone, "Hello").unwrap();
    drop(gone);
    // Somebody sends forever without an end of line, and somebody never reads what comes back.
    let mut flood = open(&address);
    assert!((0..1024).any(|_| flood.write_all(&[b'x'; 1 << 20]).is_err()), "1 GiB");
    let mut deaf = open(&address);
    deaf.set_write_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    assert!((0..1024).any(|_| deaf.write_all(&[b'\n'; 1 << 20]).is_err()), "1 GiB");
    check_echo(&mut open(&address), "Hello");
    half.write_all(b"ne\n").unwrap();
    let reply = read_line(&mut BufReader::new(&mut half)).unwrap();
    assert_eq!(reply.unwrap(), "half a line");
    stop(server);
}

#[test]
fn too_many_clients_wait_for_one_to_leave() {
    let mut command = program("sh", &["-c", "ulimit -n 20; exec \"$0\" \"$@\"", SOCKET]);
    let mut server = Program::start(command.args(["server", "127.0.0.1:0"]));
    let line = server.line();
    let (_, address) = line.split_once("listens on ").unwrap();
    // All are connected, the later ones in the kernel's queue only.
    for mut stream in (0..100).map(|_| open(address)).collect::<Vec<_>>() {
        check_echo(&mut stream, "Hello"); // and leaves
    }
    let printed = stop(server);
    assert!(printed.contains("accept: Too many open files"), "{printed}");
}

#[test]
fn nc_can_be_the_client() {
    let (server, address) = server("127.0.0.1:0");
    let port = address.rsplit_once(':').unwrap().1;
    let mut nc = Command::new("nc");
    let nc = nc.args(["127.0.0.1", port]).stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Ok(mut nc) = nc.spawn() {
        nc.stdin.as_mut().unwrap().write_all(b"Hello\n").unwrap();
        let mut answer = BufReader::new(nc.stdout.take().unwrap());
        assert_eq!(read_line(&mut answer).unwrap().unwrap(), "Hello");
        nc.kill().unwrap();
        nc.wait().unwrap();
    } else {
        skip("no nc here: install netcat-openbsd");
    }
    stop(server);
}

#[test]
fn python_can_be_either_side() {
    if !has("python3") {
        return skip("no python3 here: install it");
    }
    let python = |code: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", code]).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let (server, address) = server("127.0.0.1:0");
    let port = address.rsplit_once(':').unwrap().1;
    let client = block("python", "# client.py: ").replace("9000", port);
    let output = python(&client).wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "Hello\n");
    stop(server);

    // Port 9000 may be taken: any free one, and told to us.
    let any_port = "
import socket
create_server = socket.create_server
def create_any(address):
    listener = create_server((address[0], 0))
    print(listener.getsockname()[1], flush=True)
    return listener
socket.create_server = create_any
";
    let mut server = python(&(any_port.to_owned() + block("python", "# server.py: ")));
    let mut port = BufReader::new(server.stdout.take().unwrap());
    let port = read_line(&mut port).unwrap().unwrap();
    let address = format!("127.0.0.1:{port}");
    let printed = run(&mut program(SOCKET, &["client", &address, "Hello"])).succeeded();
    assert!(printed.ends_with("recv:   Hello\n"), "{printed}");
    assert!(server.wait().unwrap().success());
}

/// Two hosts: network namespaces, joined by a cable (veth).
struct Hosts([String; 2]);

impl Hosts {
    fn new() -> Option<Hosts> {
        let id = std::process::id();
        let names = [format!("ipc-{id}-a"), format!("ipc-{id}-b")];
        let hosts = Hosts(names); // from here on they are removed
        let [a, b] = &hosts.0;
        let (x, y) = (format!("v{id}a"), format!("v{id}b"));
        for command in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {x} netns {a} type veth peer name {y} netns {b}"),
            format!("-n {a} address add 192.0.2.1/24 dev {x}"),
            format!("-n {b} address add 192.0.2.2/24 dev {y}"),
            format!("-n {a} link set {x} up"),
            format!("-n {b} link set {y} up"),
        ] {
            if !succeeds(Command::new("ip").args(command.split(' '))) {
                return None;
            }
        }
        Some(hosts)
    }

    /// Our program on one of the hosts.
    fn program(&self, host: usize, args: &[&str]) -> Command {
        let mut command = program("ip", &["netns", "exec", &self.0[host], SOCKET]);
        command.args(args);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

#[test]
fn a_client_on_another_host() {
    let Some(hosts) = Hosts::new() else {
        return skip("no network namespaces: they need root, and ip (install iproute2)");
    };
    let mut server = Program::start(&mut hosts.program(0, &["server", "192.0.2.1:9000"]));
    server.line_with("listens on 192.0.2.1:9000");
    let client = ["client", "192.0.2.1:9000", "Hello"];
    let printed = run(&mut hosts.program(1, &client)).succeeded();
    assert!(printed.ends_with("recv:   Hello\n"), "{printed}");
    stop(server);
    let refused = "connect 192.0.2.1:9000: Connection refused";
    run(&mut hosts.program(1, &client)).failed(1, &[refused]);
}

#[test]
fn a_socket_file_is_private_and_never_somebody_else_s() {
    let dir = temp_dir();
    let path = dir.path().join("socket");
    let address = format!("unix:{}", path.display());
    let (first, _) = server(&address);
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let busy = format!("listen {address}: another server listens there");
    run(&mut program(SOCKET, &["server", &address])).failed(1, &[&busy]);
    // What a killed server leaves is replaced.
    first.kill(first.pid(), Signal::SIGKILL);
    first.finish_killed();
    assert!(path.exists());
    let (second, _) = server(&address);
    check_echo(&mut open(&address), "Hello");
    stop(second);
    assert!(!path.exists());
    // Anything else is left alone.
    std::fs::write(&path, "precious").unwrap();
    let error = format!("listen {address}: exists and is not a socket");
    run(&mut program(SOCKET, &["server", &address])).failed(1, &[&error]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn errors_name_the_call_and_the_address() {
    let (server, address) = server("127.0.0.1:0");
    let error = format!("error: listen {address}: Address already in use");
    run(&mut program(SOCKET, &["server", &address])).failed(1, &[&error]);
    stop(server);
    let error = format!("client: error: connect {address}: Connection refused");
    run(&mut program(SOCKET, &["client", &address, "Hello"])).failed(1, &[&error]);
    let error = "connect unix:/nonexistent/socket: No such file or directory";
    run(&mut program(SOCKET, &["client", "unix:/nonexistent/socket"])).failed(1, &[error]);
    let error = "listen 192.0.2.99:9000: Cannot assign requested address";
    run(&mut program(SOCKET, &["server", "192.0.2.99:9000"])).failed(1, &[error]);
    // In many containers everyone may use every port.
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    match program_of_nobody(SOCKET, &["server", "127.0.0.1:80"]) {
        Some((mut nobody, _copy)) if first.is_ok_and(|first| first.trim() == "1024") => {
            run(&mut nobody).failed(1, &["listen 127.0.0.1:80: Permission denied"]);
        }
        _ => skip("a port that is not ours to bind (only root can be somebody else)"),
    }
    let error = "connect no-such-host.invalid:9000: ";
    run(&mut program(SOCKET, &["client", "no-such-host.invalid:9000"])).failed(1, &[error]);
}

#[test]
fn a_service_answers_json_and_ends_well() {
    let (service, client) = (example(SOCKET, "service"), example(SOCKET, "client"));
    let dir = temp_dir();
    let unix = format!("unix:{}", dir.path().join("socket").display());
    let expected = r#"{"id":1,"numbers":[1,2]} -> {"id":1,"sum":3.0}
{"id":2,"numbers":[2,4]} -> {"id":2,"sum":6.0}
{"id":3,"numbers":[3,6]} -> {"id":3,"sum":9.0}
"#;
    // The client may start first.
    let early = Program::start(&mut program(&client, &[&unix]));
    let mut server = Program::start(&mut program(&service, &[&unix]));
    server.line_with(&format!("listens on {unix}"));
    assert_eq!(early.finish().succeeded(), expected);
    run(&mut program(&service, &[&unix])).failed(1, &["another server listens there"]);
    server.kill_group(Signal::SIGTERM);
    assert!(server.finish().succeeded().ends_with("stops\n"));
    assert_eq!(list(dir.path()), [""; 0], "left behind");

    let mut server = Program::start(&mut program(&service, &["127.0.0.1:0"]));
    let line = server.line();
    let (_, address) = line.split_once("listens on ").unwrap();
    let clients: Vec<_> =
        (0..20).map(|_| Program::start(&mut program(&client, &[address]))).collect();
    clients.into_iter().for_each(|client| assert_eq!(client.finish().succeeded(), expected));
    let ask = |request: &str| {
        let mut stream = open(address);
        write_line(&mut stream, request).unwrap();
        read_line(&mut BufReader::new(&stream)).unwrap().unwrap()
    };
    assert!(ask("nonsense").contains("\"error\":"));
    for request in [r#"{"id":7}"#, r#"{"numbers":[1,"x"]}"#, "[]", "1"] {
        assert!(ask(request).contains("\"error\":\"invalid type:"), "{}", ask(request));
    }
    assert!(ask(r#"{"id":7}"#).ends_with(r#","id":7}"#), "which request it was");
    assert_eq!(ask(r#"{"numbers":[]}"#), r#"{"id":null,"sum":0.0}"#);
    // A reply that is longer than a line is an error line, too.
    let long = format!(r#"{{"id":[{}0],"numbers":[]}}"#, "1e15,".repeat(13_000));
    assert!(ask(&long) == r#"{"error":"too long a reply"}"#);
    // Too long a line is answered, and the connection closed.
    let answer = last_answer(address, &[b'x'; socket::MAX_LINE + 1000]);
    assert_eq!(answer, "{\"error\":\"a line is longer than 65536 bytes\"}\n");
    // Stopped while a client is connected: that one sees EOF.
    let mut idle = open(address);
    check_answer(&mut idle);
    server.kill_group(Signal::SIGINT);
    let finished = server.finish();
    assert_eq!(finished.code(), 0);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
}

fn check_answer(stream: &mut Stream) {
    write_line(stream, r#"{"id":1,"numbers":[0.5]}"#).unwrap();
    let reply = read_line(&mut BufReader::new(stream)).unwrap().unwrap();
    assert_eq!(reply, r#"{"id":1,"sum":0.5}"#);
}

/// A service that may open 40 files; 60 clients come, and leave.
#[test]
fn too_many_clients_end_no_service() {
    for server in [example(SOCKET, "service"), SOCKET.to_owned()] {
        let args = if server == SOCKET { "server 127.0.0.1:0" } else { "127.0.0.1:0" };
        let script = format!("ulimit -n 40; exec \"$0\" {args}");
        let mut service = Program::start(&mut program("sh", &["-c", &script, &server]));
        let line = service.line();
        let (_, address) = line.split_once("listens on ").unwrap();
        let mut clients: Vec<_> = (0..60).map(|_| open(address)).collect();
        for _ in 0..2 {
            for client in &mut clients[..20] {
                write_line(client, r#"{"id":1,"numbers":[0.5]}"#).unwrap();
                assert!(read_line(&mut BufReader::new(client)).unwrap().is_some());
            }
            // Said, and no reason to end.
            service.line_with("Too many open files (os error 24)");
            if server != SOCKET {
                break;
            }
        }
        drop(clients);
        let mut late = open(address);
        write_line(&mut late, r#"{"id":1,"numbers":[0.5]}"#).unwrap();
        assert!(read_line(&mut BufReader::new(&late)).unwrap().is_some());
        // Who has left holds no descriptor.
        let open = || list(format!("/proc/{}/fd", service.members().last().unwrap())).len();
        tests::wait_for("the clients' descriptors to be closed", &mut || open() < 12);
        drop(late);
        service.kill_group(Signal::SIGTERM);
        service.finish();
    }
}

/// Whatever its clients do; and what is being answered is answered.
#[test]
fn a_service_that_is_asked_to_stop_stops() {
    let service = example(SOCKET, "service");
    let dir = temp_dir();
    let address = format!("unix:{}", dir.path().join("socket").display());
    let request = |numbers: usize| format!("{{\"numbers\":[{}1]}}\n", "1,".repeat(numbers));
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        let mut server = Program::start(&mut program(&service, &[&address]));
        server.line();
        // One reads nothing, one has requests in flight, one sends nothing.
        let deaf = open(&address);
        deaf.set_write_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        while (&deaf).write_all(request(1).repeat(100).as_bytes()).is_ok() {}
        let busy = open(&address);
        let idle = open(&address);
        let flight = std::thread::scope(|scope| {
            let flight = scope.spawn(|| {
                let mut replies = BufReader::new(&busy);
                let mut count = 0;
                while (&busy).write_all(request(15_000).as_bytes()).is_ok() {
                    match read_line(&mut replies) {
                        Ok(Some(_)) => count += 1,
                        _ => break,
                    }
                }
                count
            });
            std::thread::sleep(std::time::Duration::from_millis(50)); // some go there and back
            let start = std::time::Instant::now();
            server.kill(server.pid(), signal);
            let finished = server.finish();
            assert_eq!((finished.code(), finished.stderr.as_str()), (0, ""));
            assert!(finished.stdout.ends_with("stops\n"));
            // Far less than the timeouts of a minute.
            assert!(start.elapsed() < std::time::Duration::from_secs(20));
            flight.join().unwrap()
        });
        assert!(flight > 0);
        assert_eq!((&idle).read(&mut [0]).unwrap(), 0);
        assert_eq!(list(dir.path()), [""; 0], "left behind");
    }
    // A second signal ends it at once, and the file is gone by then.
    let mut server = Program::start(&mut program(&service, &[&address]));
    server.line();
    let deaf = open(&address);
    deaf.set_write_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    while (&deaf).write_all(request(1).repeat(100).as_bytes()).is_ok() {}
    server.kill(server.pid(), Signal::SIGTERM);
    tests::wait_for("the socket file to be removed", &mut || list(dir.path()).is_empty());
    server.kill(server.pid(), Signal::SIGINT);
    let code = server.finish().code();
    assert!([0, 130].contains(&code), "{code}");
}

#[test]
fn a_server_goes_on_without_its_log() {
    let dir = temp_dir();
    let address = format!("unix:{}", dir.path().join("socket").display());
    let full = || Stdio::from(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let service = example(SOCKET, "service");
    let mut service = program(&service, &[&address]);
    let mut service = service.stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
    tests::wait_for("the service", &mut || connect(&address, None).is_ok());
    check_answer(&mut open(&address));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(service.id() as i32), Signal::SIGTERM)
        .unwrap();
    assert!(service.wait().unwrap().success());
    let stderr = std::io::read_to_string(service.stderr.take().unwrap()).unwrap();
    assert_eq!(stderr, "write stdout: No space left on device (os error 28)\n");
    // The server says where it listens, or ends. Its later lines may be lost: nobody reads them here.
    let (mut server, address) = server("127.0.0.1:0");
    server.close_stdout();
    (0..3).for_each(|_| check_echo(&mut open(&address), "Hello"));
    server.kill_group(Signal::SIGINT);
    assert_eq!(server.finish().code(), 130);
}

#[test]
fn a_server_can_be_started_again_at_once() {
    let dir = temp_dir();
    let unix = format!("unix:{}", dir.path().join("socket").display());
    for address in [unix.as_str(), "127.0.0.1:0"] {
        let (mut first, address) = server(address);
        for _ in 0..20 {
            first.kill(first.pid(), Signal::SIGKILL);
            let (next, _) = server(&address);
            std::mem::replace(&mut first, next).finish_killed();
        }
        stop(first);
    }
}

/// A name of two addresses is one server's.
#[test]
fn a_second_server_at_a_name_of_two_addresses_is_refused() {
    let dir = temp_dir();
    let script = "ip link set lo up; printf '127.0.0.1 localhost\\n::1 localhost\\n' > \"$1\"; \
                  mount --bind \"$1\" /etc/hosts; { exec \"$0\" server localhost:9000; } > /dev/null & \
                  sleep 0.3; \"$0\" server localhost:9000; kill $!; wait";
    let file = dir.path().join("hosts");
    let args = ["-mn", "bash", "-c", script, SOCKET, file.to_str().unwrap()];
    let mut command = program("unshare", &args);
    if !succeeds(Command::new("unshare").args(["-mn", "ip", "link"])) {
        return skip("a network namespace (only root may make one, with iproute2)");
    }
    let finished = run(&mut command);
    assert!(
        finished.stderr.contains("listen localhost:9000: Address already in use"),
        "{}",
        finished.stderr
    );
}

#[test]
fn underneath_are_the_system_calls_of_the_readme() {
    tests::check_underneath(SOCKET, "socket");
}
