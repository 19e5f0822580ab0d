//! Queue: a producer and a consumer exchange values through bounded queues.
//!
//! The article's section 消息队列. As printed it ends in a TypeError, for want of a comma in `args=(que)`.
//! It uses one queue for both directions, and its sleeps only make it rare that a process takes back what it
//! has just put. Here each direction has its own.
//!
//! ```text
//!  producer ── products ──▶ consumer
//!           ◀── results ───
//! ```

mod channel;
mod limits;
mod terminals;
mod workers;

use anyhow::{Result, ensure};
use common::{Process, say, supervise, usage};
use queue::Queue;

const HELP: &str = "\
A producer and a consumer exchange values through two bounded queues (multiprocessing.Queue).

Usage: cargo run -p queue                  both
       cargo run -p queue limits           Full, Empty, blocking, and a trap
       cargo run -p queue workers          several workers share one queue
       cargo run -p queue channel          both, over ipc-channel
       cargo run -p queue consumer         likewise, the consumer; prints the command for the producer
       cargo run -p queue producer NAME    the producer of that command
";

fn main() -> std::process::ExitCode {
    common::main(HELP, |args| match args {
        [] => story(),
        ["limits"] => limits::run(),
        ["workers"] => workers::run(),
        ["channel"] => channel::run(),
        ["consumer"] => terminals::consume(),
        ["producer", name] => terminals::produce(name),
        args => usage(HELP, args),
    })
}

fn story() -> Result<()> {
    // Made before the fork, so that both children inherit them. Queue(1): a capacity of one value.
    let products = Queue::new(1)?;
    let results = Queue::new(1)?;

    let producer = Process::spawn("producer", || producer(&products, &results))?;
    let consumer = Process::spawn("consumer", || consumer(&products, &results))?;
    // A queue has no EOF: if one dies, the other would block forever. So the parent watches both.
    supervise([producer, consumer])
}

fn producer(products: &Queue<String>, results: &Queue<String>) -> Result<()> {
    for product in ["Orange", "Apple", ""] {
        say!("put product {product:?}")?;
        products.put(product.to_owned())?;
        let result = results.get()?;
        say!("got result  {result:?}")?;
        ensure!(result == "suc!", "expected \"suc!\", got {result:?}");
    }
    Ok(())
}

fn consumer(products: &Queue<String>, results: &Queue<String>) -> Result<()> {
    loop {
        let product = products.get()?;
        say!("got product {product:?}, put result \"suc!\"")?;
        results.put("suc!".to_owned())?;
        // The empty product is the end.
        if product.is_empty() {
            return Ok(());
        }
    }
}
