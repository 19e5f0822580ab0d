use std::fmt;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;

use crate::process::{print, role};

/// The longest role of the five programs, so that the lines of all processes align.
const WIDTH: usize = "subprocess".len();

/// Legible on a dark and on a light background: cyan, magenta, green, blue, red. With
/// five of them, no two roles of a story have the same.
const COLOURS: [u8; 5] = [36, 35, 32, 34, 31];

/// `PIPE_BUF`: a write of up to so many bytes is atomic.
const MAX_LINE: usize = 4096;

/// With `IPC_LOG=time`: when the program started; its children have the same.
static START: OnceLock<Instant> = OnceLock::new();

/// Prints one line to stdout, tagged with the role of the process that prints it.
///
/// Formatted like `println!`, but with a `Result`: a full disk is an error. With `IPC_LOG=time` in the environment,
/// the time and the process id come first. The whole line is one `write` of at most 4096 bytes (a longer one is
/// cut), so that lines of several processes never mix. A closed stdout (`| head -1`) is not an error: the exchange
/// still completes.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::say_line(format_args!($($arg)*)) };
}

/// What [`say!`] calls.
pub fn say_line(text: fmt::Arguments) -> Result<()> {
    let role = role().unwrap_or_else(|| "parent".to_owned());
    let mut line = START.get().map_or_else(String::new, |start| {
        let millis = start.elapsed().as_secs_f64() * 1e3;
        format!("{millis:>9.3} ms {:>7} ", std::process::id())
    });
    line += &match coloured() {
        true => format!("\x1b[{}m{role:>WIDTH$}\x1b[0m | ", colour(&role)),
        false => format!("{role:>WIDTH$} | "),
    };
    // What came from elsewhere must not move the cursor or start a line of its own.
    for char in text.to_string().chars() {
        match char {
            _ if line.len() > MAX_LINE - 16 => {
                line.push('…');
                break;
            }
            control if control.is_control() => line.extend(control.escape_default()),
            char => line.push(char),
        }
    }
    line.push('\n');
    print(&line)
}

/// The name of the program's file.
pub(crate) fn program() -> Option<String> {
    let path = std::env::args_os().next()?;
    Some(Path::new(&path).file_name()?.to_string_lossy().into_owned())
}

/// Starts the clock if `IPC_LOG=time`, and refuses any other value.
pub(crate) fn start() -> Result<()> {
    let value = std::env::var_os("IPC_LOG").unwrap_or_default();
    if value == "time" {
        START.get_or_init(Instant::now);
    } else if !value.is_empty() {
        let what = format!("IPC_LOG is {value:?}: expected \"time\"");
        return Err(io::Error::new(ErrorKind::InvalidInput, what).into());
    }
    Ok(())
}

/// The same role has the same colour in every program and every terminal.
fn colour(role: &str) -> u8 {
    COLOURS[role.bytes().map(usize::from).sum::<usize>() % COLOURS.len()]
}

/// See <https://no-color.org>.
fn coloured() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !no_color
}
