//! Shared memory: a writer and a reader have one page in common.
//!
//! The article's section 共享内存. It says that access must be kept in order by semaphores, and
//! then uses sleeps; here two semaphores say whose turn it is.
//!
//! ```text
//!  writer ──▶ │ cnblogs: 1024 bytes │ ──▶ reader
//! ```

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;

use anyhow::{Context, Result};
use common::{Process, expected, hold_signals, say, supervise};
use shm::Mailbox;

const NAME: &str = "/cnblogs";
const SIZE: usize = 1024;

const HELP: &str = "\
A writer and a reader share memory, with semaphores to take turns (mmap, tagname).

Usage: cargo run -p shm
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        _ => expected(args, "no arguments"),
    })
}

fn both() -> Result<()> {
    // From here on Ctrl-C waits for `supervise`: the name would stay in /dev/shm otherwise.
    hold_signals()?;
    // All users of this machine share these names, so take one that nobody can have guessed.
    let name = format!("{NAME}-{:016x}", RandomState::new().hash_one(()));
    let _mailbox = Mailbox::create(&name, SIZE)?;

    let writer = Process::spawn("writer", || writer(&name))?;
    let reader = Process::spawn("reader", || reader(&name))?;
    supervise([writer, reader])
}

fn writer(name: &str) -> Result<()> {
    let mailbox = Mailbox::open(name, None)?;
    for data in ["Hello", "Alpha_Panda"] {
        say!("write {data}");
        mailbox.write(data.as_bytes(), None)?;
        // Without this we would say "write" again before the reader has said "read".
        mailbox.flush(None)?;
    }
    // The article's reader ends when it finds the memory empty: also when it starts first.
    say!("write an empty message: the end");
    mailbox.write(b"", None)?;
    Ok(())
}

fn reader(name: &str) -> Result<()> {
    let mailbox = Mailbox::open(name, None)?;
    loop {
        // The slot stays taken until `data` is dropped, so the writer waits while we print.
        let data = mailbox.hold(None)?;
        if data.is_empty() {
            say!("read  an empty message: the end");
            return Ok(());
        }
        let text = String::from_utf8(data.to_vec()).context("the message is not UTF-8")?;
        say!("read  {text}");
    }
}
