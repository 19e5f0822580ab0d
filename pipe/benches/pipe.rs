//! `pipe::Connection` against write(2) and read(2) on two bare pipes, and against Python's `Pipe`.

#[path = "../../common/benches/measure.rs"]
mod measure;

use anyhow::{Context, Result, ensure};
use measure::{
    ALL, Contender, Link, Peer, Python, compare, head, pin, pipes, places, scaling, scaling_wanted,
};
use pipe::Connection;

const PYTHON: &str = "
from multiprocessing import Pipe
ends = [(conn.send_bytes, lambda size, recv=conn.recv_bytes: recv()) for conn in Pipe()]
";

fn main() -> Result<()> {
    head(&["bare", "Python"]);
    for place @ [here, there] in places()? {
        pin(here)?;
        let mut ours = Peer::start(there, our_pair()?)?;
        if scaling_wanted() {
            return scaling("pipe", &mut ours);
        }
        let mut bare = Peer::start(there, pipes()?)?;
        let mut python = Python::start(PYTHON, place)?;
        let mut contenders: Vec<&mut dyn Contender> = vec![&mut ours, &mut bare];
        contenders.extend(python.iter_mut().map(|python| python as _));
        compare("pipe", &ALL, place, &mut contenders)?;
    }
    Ok(())
}

struct Ours {
    connection: Connection,
    message: Vec<u8>,
}

fn our_pair() -> Result<[Ours; 2]> {
    let (one, two) = pipe::duplex()?;
    Ok([one, two].map(|connection| Ours { connection, message: Vec::new() }))
}

impl Link for Ours {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.connection.send(message.as_bytes())?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = Vec::new(); // the last one is done with
        self.message = self.connection.recv()?.context("the other side closed")?;
        ensure!(self.message.len() == length);
        Ok(&self.message)
    }
}
