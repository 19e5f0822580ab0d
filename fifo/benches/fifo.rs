//! Our FIFOs against bare ones: mkfifo(3), open(2), write(2), read(2).
//!
//! What `open_reader` and `open_writer` return is a plain file, so bytes cost the same. A line
//! costs more: `write_line` and `read_line` look for its end and check that it is text.

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::fs::{File, OpenOptions};
use std::io::BufReader;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use measure::{ALL, Bytes, LINES, Link, Peer, compare, head, pin, places, scaling, scaling_wanted};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

fn main() -> Result<()> {
    head(&["bare"]);
    for place @ [here, there] in places()? {
        pin(here)?;
        let mut ours = Peer::start(there, pair(open_ours)?.map(Bytes::new))?;
        if scaling_wanted() {
            return scaling("fifo", &mut ours);
        }
        let mut lines = Peer::start(there, pair(open_ours)?.map(Lines::new))?;
        let mut bare = Peer::start(there, pair(open_bare)?.map(Bytes::new))?;
        compare("fifo", &ALL, place, &mut [&mut ours, &mut bare])?;
        compare("fifo, lines", &LINES, place, &mut [&mut lines, &mut bare])?;
    }
    Ok(())
}

/// A FIFO's reading end and its writing end.
type Ends = (File, File);

fn open_ours(path: &Path) -> Result<Ends> {
    fifo::create(path)?;
    // Each open waits for the other.
    thread::scope(|scope| {
        let reader = scope.spawn(|| fifo::open_reader(path, None));
        let writer = fifo::open_writer(path, None)?;
        Ok((reader.join().unwrap()?, writer))
    })
}

fn open_bare(path: &Path) -> Result<Ends> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| File::open(path));
        let writer = OpenOptions::new().write(true).open(path)?;
        Ok((reader.join().unwrap()?, writer))
    })
}

/// Two FIFOs, one for each direction: what each of two processes reads and writes.
fn pair(open: impl Fn(&Path) -> Result<Ends>) -> Result<[Ends; 2]> {
    // Removed at the end of this function: what is open needs no name.
    let dir = tempfile::tempdir()?;
    let (here, to_here) = open(&dir.path().join("pipe.in"))?;
    let (there, to_there) = open(&dir.path().join("pipe.out"))?;
    Ok([(here, to_there), (there, to_here)])
}

struct Lines {
    read: BufReader<File>,
    write: File,
    message: String,
}

impl Lines {
    fn new((read, write): Ends) -> Lines {
        Lines { read: BufReader::new(read), write, message: String::new() }
    }
}

impl Link for Lines {
    fn send(&mut self, message: &str) -> Result<()> {
        // The line's end is one of the bytes.
        Ok(fifo::write_line(&mut self.write, &message[..message.len() - 1])?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = String::new(); // the last one is done with
        self.message = fifo::read_line(&mut self.read)?.context("the other side closed")?;
        ensure!(self.message.len() == length - 1);
        Ok(self.message.as_bytes())
    }
}
