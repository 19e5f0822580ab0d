//! Shared memory: a writer and a reader have one page in common.
//!
//! The article's section 共享内存. It says that access must be kept in order by semaphores, and
//! then uses sleeps; here two semaphores say whose turn it is.
//!
//! ```text
//!  writer ──▶ │ cnblogs: 1024 bytes │ ──▶ reader
//! ```

mod isolation;
mod race;
mod terminals;

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;

use anyhow::{Context, Result};
use common::{Process, expected, hold_signals, say, supervise};
use shm::Mailbox;

const NAME: &str = "/cnblogs";
const SIZE: usize = 1024;

const HELP: &str = "\
A writer and a reader share memory, with semaphores to take turns (mmap, tagname).

Usage: cargo run -p shm                  both, with a name of their own
       cargo run -p shm writer [NAME]    the writer: Hello, Alpha_Panda, the end
       cargo run -p shm reader [NAME]    the reader, until the end
       cargo run -p shm isolation        what a fork shares, and what it does not
       cargo run -p shm race             two processes count, without and with a semaphore

Start writer and reader in two terminals, in either order. They meet at the
shared memory NAME (default: /cnblogs).
";

fn main() -> ExitCode {
    common::main(HELP, |args| match args {
        [] => both(),
        ["writer"] => terminals::writer(NAME),
        ["writer", name] => terminals::writer(name),
        ["reader"] => terminals::reader(NAME),
        ["reader", name] => terminals::reader(name),
        ["isolation"] => isolation::both(),
        ["race"] => race::all(),
        _ => expected(args, "nothing, 'writer [NAME]', 'reader [NAME]', 'isolation' or 'race'"),
    })
}

fn both() -> Result<()> {
    // From here on Ctrl-C waits for `supervise`: the name would stay in /dev/shm otherwise.
    hold_signals()?;
    let mailbox = Mailbox::create(&unguessable(), SIZE)?;

    // The children inherit it. Strangers open it by its name: see terminals.rs.
    let writer = Process::spawn("writer", || writer(&mailbox))?;
    let reader = Process::spawn("reader", || reader(&mailbox))?;
    supervise([writer, reader])
}

/// All users of this machine share these names, so this is one that nobody can have taken.
fn unguessable() -> String {
    format!("{NAME}-{:016x}", RandomState::new().hash_one(()))
}

fn writer(mailbox: &Mailbox) -> Result<()> {
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

fn reader(mailbox: &Mailbox) -> Result<()> {
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
