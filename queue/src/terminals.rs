//! Channels between strangers: the consumer and the producer of [`channel`](crate::channel) in two terminals.
//!
//! ```text
//!  terminal 1: cargo run -p queue consumer      terminal 2: cargo run -p queue producer NAME
//! ```

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{Process, block_signals, say, set_role, supervise};
use ipc_channel::ipc::{self, IpcOneShotServer, IpcSender};
use nix::sys::stat::{Mode, umask};

use crate::channel::{consumer, failed, producer};

/// The consumer in a terminal of its own: a child, so that the parent can clean up however the child ends.
pub fn consume() -> Result<()> {
    set_role("consumer");
    block_signals()?;
    // The library creates a directory with mode 0777 less the umask, and panics if it cannot. So give it a parent
    // directory that exists, and that is removed with this process.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let dir = tempfile::Builder::new().prefix("cnblogs-").tempdir();
    let dir = dir.context("make a directory for the socket")?;
    check(&dir.path().join(".tmp123456/socket"))?;
    let _ = tempfile::env::override_temp_dir(dir.path());

    supervise([Process::spawn("consumer", || {
        let (server, name) = IpcOneShotServer::new().context("make a server")?;
        // accept has no timeout: it waits as long as it takes, for one client.
        say!("waits for: cargo run -p queue producer {name}")?;
        // The only message is the receiving end of the producer's channel: a receiver can be sent, too.
        let (_, orders) = server.accept().map_err(failed("accept a producer"))?;
        consumer(orders)
    })?])
}

/// The producer in a terminal of its own.
pub fn produce(name: &str) -> Result<()> {
    set_role("producer");
    check(name.as_ref())?;
    let consumer = IpcSender::connect(name.to_owned());
    let consumer = consumer.with_context(|| format!("connect {name}"))?;
    let (products, orders) = ipc::channel()?;
    consumer.send(orders).map_err(failed("send the receiving end"))?;
    producer(products)
}

/// Refuses a socket path that the library would truncate, or panic on.
fn check(path: &Path) -> Result<()> {
    let fits = path.to_str().is_some_and(|path| path.len() < 108);
    ensure!(fits, "{}: the path of a socket is UTF-8, and up to 107 bytes long", path.display());
    Ok(())
}
