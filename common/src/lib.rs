//! Five ways for processes to communicate, and what their programs share.
//!
//! Each mechanism is a library which depends on nothing else here:
//!
//! | | Python | |
//! |---|---|---|
//! | [pipe](../pipe/index.html) | `multiprocessing.Pipe` | messages between parent and child |
//! | [fifo](../fifo/index.html) | `os.mkfifo` | a pipe with a path, for strangers |
//! | [queue](../queue/index.html) | `multiprocessing.Queue` | values, bounded, from many to many |
//! | [shm](../shm/index.html) | `mmap` | one page in two address spaces |
//! | [socket](../socket/index.html) | `socket` | streams, also between hosts |
//!
//! There is no IPC in this crate: it starts and watches processes ([`Process`], [`supervise`]), and
//! has the log ([`say!`]) and the command line ([`main`]).

mod cli;
mod log;
mod process;

pub use cli::{main, usage};
pub use log::say_line;
pub use process::{
    Process, block_signals, log, note, print, role, set_role, stop_signals, stop_status, supervise,
    unblock_signals,
};
