//! `queue::Queue` against two bare pipes, ipc-channel, and Python's `Queue`.
//!
//! All carry bytes: `serde_bytes::ByteBuf` here, `bytes` in Python. Queues have room for one value in
//! round trips, as in the article, and for 16 one way; the bare pipes for 64 KiB, and a channel for what
//! its socket buffers.

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::rc::Rc;

use anyhow::{Result, ensure};
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use measure::{
    ALL, Contender, Link, Peer, Python, compare, head, pin, pipes, places, scaling, scaling_wanted,
};
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
    head(&["bare", "ipc-channel", "Python"]);
    let (round_trips, one_way) = ALL.split_at(3);
    for place @ [here, there] in places()? {
        pin(here)?;
        for (capacity, rows) in [(1, round_trips), (CAPACITY, one_way)] {
            let mut ours = Peer::start(there, our_pair(capacity)?)?;
            if scaling_wanted() {
                return scaling("queue", &mut ours);
            }
            let mut bare = Peer::start(there, pipes()?)?;
            let python = PYTHON.replace("CAPACITY", &capacity.to_string());
            let mut python = Python::start(&python, place)?;
            let mut channel = Peer::start(there, channel_pair()?)?;
            let mut contenders: Vec<&mut dyn Contender> = vec![&mut ours, &mut bare, &mut channel];
            contenders.extend(python.iter_mut().map(|python| python as _));
            compare("queue", rows, place, &mut contenders)?;
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

struct Channels {
    to: IpcSender<ByteBuf>,
    from: IpcReceiver<ByteBuf>,
    message: ByteBuf,
}

fn channel_pair() -> Result<[Channels; 2]> {
    let ((to_there, there), (to_here, here)) = (ipc::channel()?, ipc::channel()?);
    let channels = |(to, from)| Channels { to, from, message: ByteBuf::new() };
    Ok([(to_there, here), (to_here, there)].map(channels))
}

impl Link for Channels {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.to.send(ByteBuf::from(message))?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = ByteBuf::new(); // the last one is done with
        self.message = self.from.recv()?;
        ensure!(self.message.len() == length);
        Ok(&self.message)
    }
}
