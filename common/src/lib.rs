//! What the five programs share, and nothing of what they show: starting and watching
//! processes ([`Process`], [`supervise`]), the log ([`say!`]) and the command line
//! ([`main`]). There is no IPC in here; each mechanism stands alone in its own `lib.rs`.

mod cli;
mod log;
mod process;

pub use cli::{Usage, expected, main};
pub use log::{say_line, set_role};
pub use process::{Process, Stopped, hold_signals, supervise};

// Compiles and runs the rust blocks of the READMEs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../README.zh-CN.md")]
mod readme {}
