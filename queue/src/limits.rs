//! Limits: what a queue of capacity 1 does when it is full or empty.
//!
//! The article's three notes under 消息队列: beyond its capacity a queue raises Full; put and get
//! wait by default; and a process can take back what it has put itself.

use std::time::Duration;

use anyhow::{Result, bail};
use common::{Process, say, supervise};
use queue::{GetError, PutError, Queue};

/// How long the timeouts below wait for what never comes.
const TIMEOUT: Duration = Duration::from_millis(10);

pub fn all() -> Result<()> {
    full_and_empty()?;
    put_waits_for_get()?;
    own_item()
}

fn full_and_empty() -> Result<()> {
    let queue: Queue<String> = Queue::new(1)?;
    say!("a queue of capacity 1");
    queue.put("Orange".into())?;
    say!("put         \"Orange\"");
    // Both give the value back: it is not lost.
    match queue.try_put("Apple".into()) {
        Err(PutError::Full(value)) => say!("try_put     {value:?}: Full"),
        other => bail!("expected Full, not {other:?}"),
    }
    match queue.put_timeout("Apple".into(), TIMEOUT) {
        Err(PutError::Full(value)) => say!("put_timeout {value:?}: Full, after {TIMEOUT:?}"),
        other => bail!("expected Full, not {other:?}"),
    }
    say!("get         {:?}", queue.get()?);
    match queue.try_get() {
        Err(GetError::Empty) => say!("try_get     Empty"),
        other => bail!("expected Empty, not {other:?}"),
    }
    match queue.get_timeout(TIMEOUT) {
        Err(GetError::Empty) => say!("get_timeout Empty, after {TIMEOUT:?}"),
        other => bail!("expected Empty, not {other:?}"),
    }
    Ok(())
}

fn put_waits_for_get() -> Result<()> {
    let products: Queue<String> = Queue::new(1)?;
    let full: Queue<()> = Queue::new(1)?;
    let producer = Process::spawn("producer", || {
        say!("put         \"Orange\"");
        products.put("Orange".into())?;
        say!("put         \"Apple\": waits, the queue is full");
        full.put(())?;
        products.put("Apple".into())?;
        // Never before the consumer has said that it makes room.
        say!("put         \"Apple\": done");
        Ok(())
    })?;
    let consumer = Process::spawn("consumer", || {
        full.get()?;
        say!("get         makes room for one");
        products.get()?;
        Ok(())
    })?;
    supervise([producer, consumer])
}

/// Why two directions need two queues.
fn own_item() -> Result<()> {
    let shared: Queue<String> = Queue::new(1)?;
    let producer = Process::spawn("producer", || {
        say!("put         \"Orange\", for the consumer");
        shared.put("Orange".into())?;
        // Meant as "wait for the result". But whoever gets first gets it.
        say!("get         {:?}: its own, from the same queue", shared.get()?);
        Ok(())
    })?;
    supervise([producer])
}
