//! Workers on several machines: Redis holds the jobs.
//!
//! ```text
//!                  jobs           worker 1           results
//!  boss ── RPUSH ─▶ │ ◀─ BLMOVE ──   …    ── HSET ───▶ │ ◀── HGETALL ── collector
//!                                 worker n
//! ```
//!
//! Start `redis-server`, and then in any order, and on any host, `cargo run -p queue --example redis_pool worker URL RUN`, as
//! many as you like, and likewise one `boss` and one `collector`. URL is `redis://[:PASSWORD@]HOST[:PORT]` or
//! `redis+unix:///path`. RUN is a name for this run: what another one left counts for nothing.
//!
//! A worker takes a job by moving it into a list of its own. The collector puts back the jobs of a worker that is gone: so
//! whichever is killed, no job is lost; some may be done twice, and count once. The keys expire
//! a day after a collector is done. (That Redis itself keeps the jobs over a restart is its own setting.)

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::print;
use redis::Direction::{Left, Right};
use redis::{Commands, Connection, cmd};

const JOBS: u64 = 100;

/// How the result of a job that failed begins.
const FAILED: &str = "failed: ";

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [role, url, run] = &args[..] else {
        bail!(
            "expected: boss, worker or collector, the URL of a Redis server, and the name of the RUN"
        );
    };
    let redis = redis::Client::open(url.as_str())?;
    let redis = redis.get_connection_with_timeout(Duration::from_secs(10));
    let mut redis = redis.context("connect to Redis")?;
    let key = |what: &str| format!("cnblogs:{run}:{what}");
    match role.as_str() {
        "boss" => {
            let done: u64 = redis.hlen(key("results"))?;
            ensure!(done < JOBS, "{run} is done: take another name");
            Ok(redis.rpush(key("jobs"), (0..JOBS).collect::<Vec<_>>())?) // all, or none
        }
        "worker" => work(&mut redis, &key).context("a worker on Redis"),
        "collector" => {
            let failed = collect(&mut redis, &key).context("the collector on Redis")?;
            ensure!(failed == 0, "{failed} of {JOBS} jobs failed");
            Ok(())
        }
        _ => bail!("{role}: expected boss, worker or collector"),
    }
}

fn work(redis: &mut Connection, key: &dyn Fn(&str) -> String) -> Result<()> {
    // Redis knows by this name whether we are still connected. (Its own ids begin anew when it is started again.)
    let id: u64 = redis.incr(key("ids"), 1)?;
    cmd("CLIENT").arg(("SETNAME", key(&id.to_string()))).exec(redis)?;
    let doing = key(&format!("doing:{id}"));
    redis.sadd::<_, _, ()>(key("workers"), id)?;
    print(&format!("worker {id}\n"))?;
    while redis.hlen::<_, u64>(key("results"))? < JOBS {
        // Blocks until there is a job, or looks again whether all are done.
        let job: Option<u64> = redis.blmove(key("jobs"), &doing, Left, Right, 1.0)?;
        let Some(job) = job else { continue };
        // A job that fails or panics has a result, too, or it would end each worker in turn.
        let done = catch_unwind(|| square(job)).unwrap_or_else(|_| bail!("panicked"));
        let result = done.map_or_else(|error| format!("{FAILED}{error:#}"), |it| it.to_string());
        redis.hset::<_, _, _, ()>(key("results"), job, result)?;
        redis.lrem::<_, _, ()>(&doing, 1, job)?;
    }
    Ok(())
}

fn square(job: u64) -> Result<u64> {
    sleep(Duration::from_millis(5)); // stands for work
    job.checked_mul(job).context("too large")
}

/// Returns how many jobs failed.
fn collect(redis: &mut Connection, key: &dyn Fn(&str) -> String) -> Result<u64> {
    while redis.hlen::<_, u64>(key("results"))? < JOBS {
        let workers: Vec<u64> = redis.smembers(key("workers"))?;
        let connected: String = cmd("CLIENT").arg("LIST").query(redis)?; // after them: each was connected before
        for id in workers {
            if !connected.contains(&format!(" name={} ", key(&id.to_string()))) {
                let doing = key(&format!("doing:{id}"));
                let mut put_back =
                    || redis.lmove::<_, _, Option<u64>>(&doing, key("jobs"), Right, Left);
                while put_back()?.is_some() {}
                redis.srem::<_, _, ()>(key("workers"), id)?;
            }
        }
        sleep(Duration::from_millis(100)); // Redis has no event for a client that has gone
    }
    let mut failed = 0;
    for (job, result) in redis.hgetall::<_, BTreeMap<u64, String>>(key("results"))? {
        failed += u64::from(result.starts_with(FAILED));
        print(&format!("{job} squared: {result}\n"))?;
    }
    for what in ["jobs", "results", "workers", "ids"] {
        redis.expire::<_, ()>(key(what), 24 * 60 * 60)?;
    }
    print(&format!("{JOBS} jobs done, none lost\n"))?;
    Ok(failed)
}
