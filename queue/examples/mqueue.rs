//! The kernel's own message queue (mq_overview(7)), between strangers: it has a name, and outlives the processes.
//!
//! ```text
//!  terminal 1: … mqueue consumer      terminal 2: … mqueue producer      /cnblogs, up to 10 messages of 8 KiB
//! ```
//!
//! Run it with `cargo run -p queue --example mqueue consumer [NAME]`, and `producer [NAME]`, in either order. Whole messages,
//! the highest priority first; `mq_send` blocks while the queue is full. Like the article's queue it has no EOF: an empty
//! message says that it is the end, and whoever waits sets a timeout. A killed process takes nothing with it; the name, and
//! what is in the queue, stays until the consumer removes it.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use common::print;
use nix::errno::Errno;
use nix::mqueue::{
    MQ_OFlag, MqAttr, MqdT, mq_getattr, mq_open, mq_send, mq_timedreceive, mq_unlink,
};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;

/// What an ordinary user may have (`/proc/sys/fs/mqueue`): so many messages, of so many bytes.
const CAPACITY: i64 = 10;
const LONGEST: usize = 8192;

/// How long a consumer waits for a message.
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (role, name) = (args.next(), args.next());
    let name = name.as_deref().unwrap_or("/cnblogs");
    match role.as_deref() {
        Some("producer") => produce(&open(name)?),
        Some("consumer") => consume(&open(name)?, name),
        _ => bail!("expected: producer or consumer, and perhaps the NAME of the queue"),
    }
}

/// Makes the queue, or opens the one that is there: it must be like ours.
fn open(name: &str) -> Result<MqdT> {
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR | MQ_OFlag::O_CLOEXEC;
    let attributes = MqAttr::new(0, CAPACITY, LONGEST as i64, 0);
    let queue = mq_open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attributes));
    if queue.as_ref().err() == Some(&Errno::ENOSYS) {
        bail!("mq_open {name}: this kernel has no message queues");
    }
    let queue = queue.with_context(|| format!("mq_open {name}"))?;
    let there = mq_getattr(&queue).context("mq_getattr")?;
    let (capacity, longest) = (there.maxmsg(), there.msgsize());
    let is_like_ours = (capacity, longest) == (CAPACITY, LONGEST as i64);
    ensure!(is_like_ours, "{name} holds {capacity} messages of {longest} bytes: somebody else's");
    Ok(queue)
}

fn produce(queue: &MqdT) -> Result<()> {
    for product in ["Orange", "Apple", ""] {
        print(&format!("put product {product:?}\n"))?;
        mq_send(queue, product.as_bytes(), 0).context("mq_send")?; // EMSGSIZE above 8 KiB
    }
    Ok(())
}

fn consume(queue: &MqdT, name: &str) -> Result<()> {
    let mut buffer = [0; LONGEST];
    loop {
        // The deadline goes by the wall clock, which may be set.
        let deadline = TimeSpec::from_duration(
            (SystemTime::now() + TIMEOUT).duration_since(SystemTime::UNIX_EPOCH)?,
        );
        let length =
            mq_timedreceive(queue, &mut buffer, &mut 0, &deadline).context("mq_timedreceive")?;
        let product = std::str::from_utf8(&buffer[..length])?;
        print(&format!("got product {product:?}\n"))?;
        if product.is_empty() {
            return mq_unlink(name).context("mq_unlink");
        }
    }
}
