//! `pipe::Connection` against write(2) and read(2) on two bare pipes.

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use measure::{ALL, Bytes, Link, Peer, compare, cpus, head, pin, scaling, scaling_wanted};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use pipe::Connection;

fn main() -> Result<()> {
    let cpu = cpus()?[0];
    pin(cpu)?;
    let mut ours = Peer::start(cpu, our_pair()?)?;
    if scaling_wanted() {
        return scaling("pipe", &mut ours);
    }
    head("ours", "bare");
    let mut bare = Peer::start(cpu, bare_pair()?)?;
    compare("pipe", &ALL, &mut ours, &mut bare)
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

fn bare_pair() -> Result<[Bytes<File, File>; 2]> {
    let (here, to_here) = pipe2(OFlag::O_CLOEXEC)?;
    let (there, to_there) = pipe2(OFlag::O_CLOEXEC)?;
    let bare = |(read, write): (OwnedFd, OwnedFd)| Bytes::new((read.into(), write.into()));
    Ok([(here, to_there), (there, to_here)].map(bare))
}
