//! Workers on several machines: Redis holds the jobs, and we speak its inline commands, a line each.
//!
//! ```text
//!                  jobs           worker 1            results
//!  boss ── RPUSH ─▶ │ ◀─ BLMOVE ──   …    ── RPUSH ───▶ │ ◀─ BLMOVE ── collector
//!                                 worker n
//! ```
//!
//! Start `redis-server`, then `cargo run -p socket --example redis_pool worker 127.0.0.1:6379`, as many as you like, on
//! any host, and likewise `boss` and one `collector`. A worker takes a job by moving it into a list of its own. The
//! collector puts back the jobs of a worker that is gone: a `kill -9` loses none. (A real project uses the redis crate;
//! this shows what it does.)

use std::collections::BTreeSet;
use std::io::{BufReader, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket::{Stream, read_line, write_line};

const JOBS: u64 = 100;

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let (run, address): (fn(Redis) -> Result<()>, _) = match &args[..] {
        [role, address] if role == "boss" => (boss, address),
        [role, address] if role == "worker" => (worker, address),
        [role, address] if role == "collector" => (collector, address),
        _ => bail!("expected: boss, worker or collector, and the ADDRESS of a Redis server"),
    };
    run(Redis(BufReader::new(socket::connect(address, Some(Duration::from_secs(10)))?)))
}

fn boss(mut redis: Redis) -> Result<()> {
    (0..JOBS).try_for_each(|job| redis.call(&format!("RPUSH jobs {job}")).map(drop))
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
    let mut done = BTreeSet::new();
    // First what an earlier collector has taken.
    let mut results = redis.call("LRANGE collected 0 -1")?;
    while done.len() < JOBS as usize {
        // Killed between its last two commands, a worker leaves a job that is done again.
        for result in results {
            done.insert(result.split('=').next().unwrap_or_default().to_owned());
        }
        results = redis.call("BLMOVE results collected LEFT RIGHT 0.2")?;
        if results.is_empty() {
            put_back(&mut redis)?; // none came in time
        }
    }
    println!("{} jobs done, none lost", done.len());
    redis.call("DEL collected").map(drop)
}

/// Puts the jobs back that are in the lists of workers which are gone.
fn put_back(redis: &mut Redis) -> Result<()> {
    for id in redis.call("SMEMBERS workers")? {
        if redis.call(&format!("CLIENT LIST ID {id}"))?.concat().is_empty() {
            while !redis.call(&format!("LMOVE doing:{id} jobs RIGHT LEFT"))?.is_empty() {}
            redis.call(&format!("SREM workers {id}"))?;
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
                Ok(vec![String::from_utf8(bytes)?.trim_end().to_owned()])
            }
            "$" => Ok(vec![]),
            "*" => {
                let all: Result<Vec<_>> = (0..rest.parse::<i64>()?).map(|_| self.reply()).collect();
                Ok(all?.concat())
            }
            _ => Ok(vec![rest.to_owned()]),
        }
    }
}
