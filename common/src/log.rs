use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

/// The longest role of the five programs, so that the lines of all processes align.
const WIDTH: usize = "subprocess".len();

/// To be read on a dark and on a light background: cyan, magenta, green, blue, red. With
/// five of them, no two roles of a story have the same.
const COLOURS: [u8; 5] = [36, 35, 32, 34, 31];

/// Who speaks in this process; a fork copies it, and the child then sets its own.
static ROLE: Mutex<Option<Role>> = Mutex::new(None);

/// When the program started; its children have the same.
static START: OnceLock<Instant> = OnceLock::new();

struct Role {
    name: String,
    colour: u8,
}

/// Prints one line to stdout, tagged with the role of the process that speaks.
///
/// Formatted like `println!`. With `IPC_LOG=time` in the environment, the time and the process id
/// come first. The whole line is one `write`, so that lines of several
/// processes never mix. Unlike `println!` it does not panic when nobody reads stdout any more
/// (`| head -1`): the processes finish their talk unheard.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::say_line(format_args!($($arg)*)) };
}

/// Names the role of this process in the log. A process that
/// [`Process::spawn`](crate::Process::spawn) started has its role already.
pub fn set_role(name: &str) {
    // The same role has the same colour in every program and every terminal.
    let sum: usize = name.bytes().map(usize::from).sum();
    *lock() = Some(Role { name: name.to_owned(), colour: COLOURS[sum % COLOURS.len()] });
}

/// What [`say!`] calls.
pub fn say_line(text: fmt::Arguments) {
    // What came from elsewhere must not move the cursor or start a line of its own.
    let mut plain = String::new();
    for char in text.to_string().chars() {
        match char {
            control if control.is_control() => plain.extend(control.escape_default()),
            char => plain.push(char),
        }
    }
    let when = when();
    let line = match &*lock() {
        Some(Role { name, colour }) if coloured() => {
            format!("{when}\x1b[{colour}m{name:>WIDTH$}\x1b[0m | {plain}\n")
        }
        Some(Role { name, .. }) => format!("{when}{name:>WIDTH$} | {plain}\n"),
        None => format!("{when}{:>WIDTH$} | {plain}\n", "parent"),
    };
    // Like println!, for instance when the disk is full.
    print(&line).unwrap_or_else(|error| panic!("write stdout: {error}"));
}

/// Writes `text` to stdout in one piece. That nobody reads it any more is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints an error with its causes to stderr, named after the process that met it.
pub(crate) fn complain(error: &anyhow::Error) {
    let line = match &*lock() {
        Some(role) => format!("{}: error: {error:#}\n", role.name),
        None => format!("error: {error:#}\n"),
    };
    // If stderr is gone too, the exit status still tells.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Starts the clock of `IPC_LOG=time`.
pub(crate) fn start_clock() {
    START.get_or_init(Instant::now);
}

/// With `IPC_LOG=time`: the milliseconds since the program started, and the process id.
fn when() -> String {
    if std::env::var_os("IPC_LOG").is_none_or(|value| value != "time") {
        return String::new();
    }
    let millis = START.get_or_init(Instant::now).elapsed().as_secs_f64() * 1e3;
    format!("{millis:>9.3} ms {:>7} ", std::process::id())
}

/// See <https://no-color.org>.
fn coloured() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !no_color
}

fn lock() -> std::sync::MutexGuard<'static, Option<Role>> {
    ROLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
