//! `queue::Queue` against two bare pipes, and against Python's `Queue`.
//!
//! All carry bytes: `serde_bytes::ByteBuf` here, `bytes` in Python. Queues have room for one value in
//! round trips, as in the article, and for 16 one way; the bare pipes for 64 KiB.

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use anyhow::{Result, ensure};
use measure::{
    ALL, Bytes, Link, Peer, Python, compare, head, pin, places, scaling, scaling_wanted,
};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use queue::Queue;
use serde_bytes::ByteBuf;

/// How many values a queue holds one way. In round trips, as in the article, it is 1.
const CAPACITY: usize = 16;

const PYTHON: &str = "
from multiprocessing import Queue
a, b = Queue(CAPACITY), Queue(CAPACITY)
ends = [(a.put, lambda size: b.get()), (b.put, lambda size: a.get())]
";

fn main() -> Result<()> {
    head();
    let (round_trips, one_way) = ALL.split_at(3);
    for place @ [here, there] in places()? {
        pin(here)?;
        for (capacity, rows) in [(1, round_trips), (CAPACITY, one_way)] {
            let mut ours = Peer::start(there, our_pair(capacity)?)?;
            if scaling_wanted() {
                return scaling("queue", &mut ours);
            }
            let mut bare = Peer::start(there, bare_pair()?)?;
            let python = PYTHON.replace("CAPACITY", &capacity.to_string());
            let mut python = Python::start(&python, place)?;
            compare("queue", rows, place, &mut ours, &mut bare, python.as_mut())?;
        }
    }
    Ok(())
}

/// Both processes have both queues.
struct Ours {
    to: Rc<Queue<ByteBuf>>,
    from: Rc<Queue<ByteBuf>>,
    message: ByteBuf,
}

fn our_pair(capacity: usize) -> Result<[Ours; 2]> {
    let (one, two) = (Rc::new(Queue::new(capacity)?), Rc::new(Queue::new(capacity)?));
    let ours = |(to, from)| Ours { to, from, message: ByteBuf::new() };
    Ok([(one.clone(), two.clone()), (two, one)].map(ours))
}

impl Link for Ours {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.to.put(ByteBuf::from(message))?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = ByteBuf::new(); // the last one is done with
        self.message = self.from.get()?;
        ensure!(self.message.len() == length);
        Ok(&self.message)
    }
}

/// For each side the end it reads from, and the one it writes to.
fn bare_pair() -> Result<[Bytes<File, File>; 2]> {
    let (here, to_here) = pipe2(OFlag::O_CLOEXEC)?;
    let (there, to_there) = pipe2(OFlag::O_CLOEXEC)?;
    let bytes = |(read, write): (OwnedFd, OwnedFd)| Bytes::new((read.into(), write.into()));
    Ok([(here, to_there), (there, to_here)].map(bytes))
}
