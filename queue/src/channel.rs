//! Channel: the producer and the consumer once more, over ipc-channel.
//!
//! A [`queue::Queue`] has no ends: any process puts, and any takes. A channel has two, and each process keeps its
//! own: when one process dies, the other learns of it. A sender can travel in a message, so each product brings the
//! sender for its result, and no process can take back what it has put itself.
//!
//! ```text
//!  producer ── (product, reply) ──▶ consumer
//!           ◀── result ── reply ───
//! ```

use anyhow::{Error, Result, anyhow, ensure};
use common::{Process, say, supervise};
use ipc_channel::IpcError;
use ipc_channel::ipc::{self, IpcReceiver, IpcSender};

/// A product, and where its result goes.
type Order = (String, IpcSender<String>);

/// Both roles, as children of this process.
pub fn run() -> Result<()> {
    let (products, orders) = ipc::channel::<Order>()?;
    // Each process keeps one end. Of the fork's copies, spawn_with closes the producer's receiver and our sender;
    // moving `orders` into the consumer closes our receiver.
    let (producer, orders) = Process::spawn_with("producer", (orders, products), producer)?;
    let consumer = Process::spawn("consumer", move || consumer(orders))?;
    supervise([producer, consumer])
}

pub fn producer(products: IpcSender<Order>) -> Result<()> {
    for product in ["Orange", "Apple", ""] {
        say!("put product {product:?}")?;
        // A channel for one result. Its sender goes with the product, so that only the consumer has it: were it
        // killed, `recv` would return `Disconnected` instead of blocking forever.
        let (reply, results) = ipc::channel()?;
        products.send((product.to_owned(), reply)).map_err(failed("put product"))?;
        let result = results.recv().map_err(failed("get result"))?;
        say!("got result  {result:?}")?;
        ensure!(result == "suc!", "expected \"suc!\", got {result:?}");
    }
    Ok(())
}

pub fn consumer(orders: IpcReceiver<Order>) -> Result<()> {
    let mut is_last = false;
    loop {
        let (product, reply) = match orders.recv() {
            // EOF: every sender is gone. Only the empty product tells the end of the work from a kill.
            Err(IpcError::Disconnected) if is_last => return say!("got Disconnected: the end"),
            order => order.map_err(failed("get product"))?,
        };
        say!("got product {product:?}, put result \"suc!\"")?;
        is_last = product.is_empty();
        reply.send("suc!".to_owned()).map_err(failed("put result"))?;
    }
}

/// Names the call. (An `IpcError` has its cause in its own text, which anyhow would print again.)
pub fn failed(call: &'static str) -> impl Fn(IpcError) -> Error {
    move |error| match error {
        IpcError::Io(error) => Error::new(error).context(call),
        IpcError::SerializationError(error) => Error::new(error).context(call),
        IpcError::Disconnected => anyhow!("{call}: the other side is gone"),
    }
}
