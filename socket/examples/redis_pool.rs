//! Workers on several machines: Redis holds the jobs, and we speak its inline commands, a line each.
//!
//! ```text
//!                  jobs           worker 1            results
//!  boss ── RPUSH ─▶ │ ◀─ BLMOVE ──   …    ── RPUSH ───▶ │ ◀─ BLMOVE ── collector
//!                                 worker n
//! ```
//!
//! Start `redis-server`, then `cargo run -p socket --example redis_pool worker 127.0.0.1:6379`, as many as you like, on any
//! host, and likewise `boss` and `collector`. A worker takes a job by moving it into a list of its own. What is in
//! the list of a worker that is gone, the collector puts back: a `kill -9` loses none. (A real project takes the
//! crate redis; here you see what it does.)

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket::{Stream, read_line, write_line};

const JOBS: u64 = 100;

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [role, address] = &args[..] else {
        bail!("expected: boss, worker or collector, and the ADDRESS of a Redis server");
    };
    let mut redis = Redis(BufReader::new(socket::connect(address, Some(Duration::from_secs(10)))?));
    match role.as_str() {
        "boss" => (0..JOBS).try_for_each(|job| redis.call(&format!("RPUSH jobs {job}")).map(drop)),
        "worker" => worker(redis),
        "collector" => collector(redis),
        _ => bail!("unknown role: {role}"),
    }
}

fn worker(mut redis: Redis) -> Result<()> {
    // Redis knows by this number whether we are still connected.
    let id = redis.call("CLIENT ID")?.concat();
    redis.call(&format!("SADD workers {id}"))?;
    println!("worker {id}");
    loop {
        // Blocks until there is a job. From here on it is in our list.
        let job = redis.call(&format!("BLMOVE jobs doing:{id} LEFT RIGHT 0"))?.concat();
        let number: u64 = job.parse()?;
        std::thread::sleep(Duration::from_millis(5)); // stands for work
        redis.call(&format!("RPUSH results {job}={}", number * number))?;
        redis.call(&format!("LREM doing:{id} 1 {job}"))?;
    }
}

fn collector(mut redis: Redis) -> Result<()> {
    // Killed between its last two commands, a worker leaves a job that is done again.
    let mut done = BTreeMap::new();
    while done.len() < JOBS as usize {
        let result = redis.call("BLMOVE results collected LEFT RIGHT 0.2")?.concat();
        match result.split_once('=') {
            Some((job, square)) => _ = done.insert(job.to_owned(), square.to_owned()),
            None => put_back(&mut redis)?, // none came in time
        }
    }
    redis.call("DEL collected")?;
    println!("{} jobs done, none lost", done.len());
    Ok(())
}

/// Puts the jobs back that are in the lists of workers which are gone.
fn put_back(redis: &mut Redis) -> Result<()> {
    for id in redis.call("SMEMBERS workers")? {
        if redis.call(&format!("CLIENT LIST ID {id}"))?.concat().is_empty() {
            while !redis.call(&format!("LMOVE doing:{id} jobs RIGHT LEFT"))?.is_empty() {}
            redis.call(&format!("SREM workers {id}"))?;
            println!("worker {id} is gone");
        }
    }
    Ok(())
}

struct Redis(BufReader<Stream>);

impl Redis {
    /// Sends a command, and returns the strings of its reply; none if that is nil.
    fn call(&mut self, command: &str) -> Result<Vec<String>> {
        write_line(self.0.get_mut(), command)?;
        self.reply().with_context(|| format!("redis: {command}"))
    }

    /// A reply: +text, -error, :number, $length and so many bytes, *count and so many replies.
    fn reply(&mut self) -> Result<Vec<String>> {
        let line = read_line(&mut self.0)?.context("the server closed")?;
        let (kind, rest) = line.trim_end().split_at_checked(1).context("an empty reply")?;
        match kind {
            "-" => bail!("{rest}"),
            "$" if rest != "-1" => {
                let mut bytes = vec![0; rest.parse::<usize>()? + 2]; // and \r\n
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(vec![String::from_utf8(bytes)?])
            }
            "$" => Ok(vec![]),
            "*" => (0..rest.parse::<i64>()?).try_fold(vec![], |mut all, _| {
                all.extend(self.reply()?);
                Ok(all)
            }),
            _ => Ok(vec![rest.to_owned()]),
        }
    }
}
