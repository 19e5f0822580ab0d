//! Shared memory: a writer and a reader share one page.
//!
//! The article's section 共享内存. Its `tagname` exists on Windows only; here the memory has a POSIX name. The article
//! says that access must be synchronised by semaphores, and then sleeps instead; here two semaphores say whose turn
//! it is.
//!
//! ```text
//!  writer ──▶ │ cnblogs: 1024 bytes │ ──▶ reader
//! ```

mod isolation;
mod race;
mod terminals;

use std::ffi::CStr;

use anyhow::Result;
use common::{Process, block_signals, say, supervise, usage};
use shm::{Semaphore, SharedMemory, unique_name};

const NAME: &str = "/cnblogs";
const SIZE: usize = 1024;

const HELP: &str = "\
A writer and a reader share memory, and take turns by semaphores (mmap, tagname).

Usage: cargo run -p shm                  both, with a name of their own
       cargo run -p shm writer [NAME]    one of two that meet at NAME (default: /cnblogs)
       cargo run -p shm reader [NAME]    the other one
       cargo run -p shm isolation        what a fork shares, and what it does not
       cargo run -p shm race             two processes count, without and with a semaphore
";

fn main() -> std::process::ExitCode {
    common::main(HELP, |args| match args {
        [] => story(),
        [role @ ("writer" | "reader")] => terminals::run(role, NAME),
        [role @ ("writer" | "reader"), name] => terminals::run(role, name),
        ["isolation"] => isolation::run(),
        ["race"] => race::run(),
        args => usage(HELP, args),
    })
}

fn story() -> Result<()> {
    // From here on Ctrl-C waits for `supervise`: the name would stay in /dev/shm otherwise.
    block_signals()?;
    let name = unique_name(NAME);
    // Made once and opened by both, by its name; the semaphores have none, so the children inherit them.
    let _memory = SharedMemory::create(&name, SIZE)?;
    let empty = Semaphore::new(1)?;
    let filled = Semaphore::new(0)?;

    let writer = Process::spawn("writer", || writer(&name, &empty, &filled))?;
    let reader = Process::spawn("reader", || reader(&name, &empty, &filled))?;
    supervise([writer, reader])
}

fn writer(name: &str, empty: &Semaphore, filled: &Semaphore) -> Result<()> {
    let memory = SharedMemory::open(name)?;
    for data in ["Hello", "Alpha_Panda", ""] {
        empty.wait(None)?; // instead of the article's sleep after each text
        say!("write {data:?}")?;
        // From the start each time, as after seek(0). The NUL ends the text: a shorter text leaves the
        // tail of a longer one after it, and the article, which strips all NULs, would read both.
        memory.write(format!("{data}\0").as_bytes())?;
        // No flush: that is for a file on a disk, and here the reader sees the same physical page.
        filled.post();
    }
    Ok(())
}

fn reader(name: &str, empty: &Semaphore, filled: &Semaphore) -> Result<()> {
    // Mapped once, for reading and writing; the article maps it anew, read-only, for each text. Either way it is
    // unmapped at the end of the scope, as by contextlib.closing.
    let memory = SharedMemory::open(name)?;
    loop {
        filled.wait(None)?;
        let bytes = memory.read();
        let text = CStr::from_bytes_until_nul(&bytes)?.to_str()?;
        say!("read  {text:?}")?;
        // An empty text is the end. The article's reader ends when it finds the memory empty, because
        // Windows frees it with the writer's mapping; so it quits at once if it starts before the
        // writer.
        if text.is_empty() {
            return Ok(());
        }
        empty.post();
    }
}
