//! Limits: what a queue of capacity 1 does when it is full or empty.
//!
//! The article's three notes under 消息队列: beyond its capacity a queue raises Full; put and get
//! block by default; and a process can take back what it has put itself.

use std::time::Duration;

use anyhow::Result;
use common::{Process, say, supervise};
use queue::Queue;

/// How long the calls below wait before they give up.
const TIMEOUT: Duration = Duration::from_millis(10);

pub fn run() -> Result<()> {
    full_and_empty()?;
    put_blocks()?;
    own_item()
}

fn full_and_empty() -> Result<()> {
    let queue: Queue<String> = Queue::new(1)?;
    say!("Queue::new(1)")?;
    say!("put(Orange)         {:?}", queue.put("Orange".into()))?;
    // Full gives the value back: it is not lost.
    say!("try_put(Apple)      {:?}", queue.try_put("Apple".into()))?;
    say!("put_timeout(Apple)  {:?}", queue.put_timeout("Apple".into(), TIMEOUT))?;
    say!("get()               {:?}", queue.get())?;
    say!("try_get()           {:?}", queue.try_get())?;
    say!("get_timeout()       {:?}", queue.get_timeout(TIMEOUT))
}

fn put_blocks() -> Result<()> {
    let products: Queue<String> = Queue::new(1)?;
    let full: Queue<()> = Queue::new(1)?;
    let producer = Process::spawn("producer", || {
        say!("put(Orange)         {:?}", products.put("Orange".into()))?;
        say!("put(Apple)          blocks: the queue is full")?;
        full.put(())?;
        let put = products.put("Apple".into());
        // Always printed after the consumer's line.
        say!("put(Apple)          {put:?}")
    })?;
    let consumer = Process::spawn("consumer", || {
        full.get()?;
        say!("get()               makes room for one")?;
        products.get()?;
        Ok(())
    })?;
    supervise([producer, consumer])
}

/// Why two directions need two queues, even though put and get block.
fn own_item() -> Result<()> {
    let shared: Queue<String> = Queue::new(1)?;
    let producer = Process::spawn("producer", || {
        say!("put(Orange)         {:?}, for the consumer", shared.put("Orange".into()))?;
        // Meant as "wait for the result". But whichever process calls get first takes it.
        say!("get()               {:?}: its own, from the same queue", shared.get())
    })?;
    supervise([producer])
}
