//! A mailbox against a bare hand-over: copy in, signal, copy out. On one CPU two semaphores signal, on two CPUs a
//! flag that both sides spin on.

#![expect(unsafe_code, reason = "the bare hand-over is what a mailbox wraps")]

#[path = "../../common/benches/measure.rs"]
mod measure;

use std::hint::spin_loop;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Release};

use anyhow::{Result, ensure};
use measure::{
    ALL, Contender, Link, Peer, Python, compare, head, pin, places, scaling, scaling_wanted,
};
use nix::libc::{sem_init, sem_post, sem_t, sem_wait};
use nix::sys::mman::shm_unlink;
use shm::{Reader, SharedMemory, Writer};

/// The longest message, but for `scaling`.
const CAPACITY: usize = 1 << 20;

const PYTHON: &str = "
import mmap
from multiprocessing import Semaphore

def slot():
    memory, filled, empty = mmap.mmap(-1, 1 << 20), Semaphore(0), Semaphore(1)
    def send(message):
        empty.acquire()
        memory.seek(0)
        memory.write(message)
        filled.release()
    def recv(size):
        filled.acquire()
        memory.seek(0)
        message = memory.read(size)
        empty.release()
        return message
    return send, recv

(send_a, recv_a), (send_b, recv_b) = slot(), slot()
ends = [(send_a, recv_b), (send_b, recv_a)]
";

fn main() -> Result<()> {
    head(&["bare", "Python"]);
    for place @ [here, there] in places()? {
        pin(here)?;
        if scaling_wanted() {
            return scaling("shm", &mut Peer::start(there, our_pair(64 << 20)?)?);
        }
        let hand_over = if here == there { HandOver::Semaphores } else { HandOver::Flag };
        let mut ours = Peer::start(there, our_pair(CAPACITY)?)?;
        let mut bare = Peer::start(there, bare_pair(hand_over)?)?;
        let mut python = Python::start(PYTHON, place)?;
        let mut contenders: Vec<&mut dyn Contender> = vec![&mut ours, &mut bare];
        contenders.extend(python.iter_mut().map(|python| python as _));
        compare("shm", &ALL, place, &mut contenders)?;
    }
    Ok(())
}

struct Ours {
    to: Writer,
    from: Reader,
    message: Vec<u8>,
}

fn our_pair(capacity: usize) -> Result<[Ours; 2]> {
    let (here, to_here) = our_mailbox("here", capacity)?;
    let (there, to_there) = our_mailbox("there", capacity)?;
    Ok([(to_there, here), (to_here, there)].map(|(to, from)| Ours { to, from, message: vec![] }))
}

fn our_mailbox(which: &str, capacity: usize) -> Result<(Reader, Writer)> {
    let name = format!("/shm-bench-{}-{which}", std::process::id());
    let made = (Reader::open(&name, capacity)?, Writer::open(&name, capacity)?);
    shm_unlink(&*name)?; // at once, so that nothing is left even if we are killed
    Ok(made)
}

impl Link for Ours {
    fn send(&mut self, message: &str) -> Result<()> {
        Ok(self.to.write(message.as_bytes(), None)?)
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message = Vec::new(); // the last one is done with
        self.message = self.from.read(None)?.into_vec();
        ensure!(self.message.len() == length);
        Ok(&self.message)
    }
}

/// One direction: 64 bytes for the hand-over, then the message.
#[derive(Clone)]
struct Slot {
    memory: Rc<SharedMemory>,
    hand_over: HandOver,
}

#[derive(Clone, Copy)]
enum HandOver {
    /// `filled` and `empty`, in this order.
    Semaphores,
    /// The first word: whether there is a message.
    Flag,
}

impl Slot {
    fn new(hand_over: HandOver) -> Result<Slot> {
        let name = format!("/shm-bench-{}", std::process::id());
        let memory = Rc::new(SharedMemory::create(&name, 64 + CAPACITY)?);
        shm_unlink(&*name)?;
        let slot = Slot { memory, hand_over };
        if let HandOver::Semaphores = hand_over {
            // SAFETY: both lie in the first 64 bytes, and nobody else has the memory yet.
            unsafe {
                sem_init(slot.semaphore(0), 1, 0);
                sem_init(slot.semaphore(1), 1, 1);
            }
        }
        Ok(slot)
    }

    fn semaphore(&self, index: usize) -> *mut sem_t {
        self.base().cast::<sem_t>().wrapping_add(index)
    }

    fn base(&self) -> *mut u8 {
        self.memory.words().as_ptr().cast_mut().cast()
    }

    fn write(&self, message: &[u8]) {
        let flag = &self.memory.words()[0];
        // SAFETY: the slot is `CAPACITY` bytes long, and no message is longer. It is our turn
        // from the wait to the post. Not covered: a wait that fails.
        unsafe {
            match self.hand_over {
                HandOver::Semaphores => _ = sem_wait(self.semaphore(1)),
                HandOver::Flag => {
                    while flag.load(Acquire) != 0 {
                        spin_loop()
                    }
                }
            }
            self.base().add(64).copy_from_nonoverlapping(message.as_ptr(), message.len());
            match self.hand_over {
                HandOver::Semaphores => _ = sem_post(self.semaphore(0)),
                HandOver::Flag => flag.store(1, Release),
            }
        }
    }

    fn read(&self, message: &mut [u8]) {
        let flag = &self.memory.words()[0];
        // SAFETY: as in `write`.
        unsafe {
            match self.hand_over {
                HandOver::Semaphores => _ = sem_wait(self.semaphore(0)),
                HandOver::Flag => {
                    while flag.load(Acquire) == 0 {
                        spin_loop()
                    }
                }
            }
            self.base().add(64).copy_to_nonoverlapping(message.as_mut_ptr(), message.len());
            match self.hand_over {
                HandOver::Semaphores => _ = sem_post(self.semaphore(1)),
                HandOver::Flag => flag.store(0, Release),
            }
        }
    }
}

struct Bare {
    to: Slot,
    from: Slot,
    message: Vec<u8>,
}

fn bare_pair(hand_over: HandOver) -> Result<[Bare; 2]> {
    let (here, there) = (Slot::new(hand_over)?, Slot::new(hand_over)?);
    let bare = |(to, from)| Bare { to, from, message: Vec::new() };
    Ok([(there.clone(), here.clone()), (here, there)].map(bare))
}

impl Link for Bare {
    fn send(&mut self, message: &str) -> Result<()> {
        self.to.write(message.as_bytes());
        Ok(())
    }

    fn recv(&mut self, length: usize) -> Result<&[u8]> {
        self.message.resize(length, 0); // once: the messages of a batch are equally long
        self.from.read(&mut self.message);
        Ok(&self.message)
    }
}
