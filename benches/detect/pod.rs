//! A pod as a service has it: the library, a handler, and a few runs that never end by themselves.

use std::time::Duration;

use podlock::{Config, NewRun, Outcome, Pod, Run};
use serde_json::json;

use crate::process::{Says, say};
use crate::{Result, clock, floor};

const KIND: &str = "bench";

pub(crate) async fn play(url: &str, name: &str, schema: &str, lease: Duration, runs: usize) -> Result<()> {
    let config = Config::new(url).name(name).schema(schema).lease(lease).with(|c| c.push = schema != floor::POD_SCHEMA);
    let pod = Pod::builder(config).handler(KIND, handle).start().await?;
    for _ in 0..runs {
        pod.start(NewRun::new(KIND)).await?;
    }
    say(&Says::Ready { incarnation: Some(pod.incarnation()) })?;
    pod.closed().await;
    Err(format!("pod {name} has ended: {:?}", pod.failure()).into())
}

/// The first attempt lasts until its pod is killed; the next has shown what it is there for once it has begun.
async fn handle(run: Run) -> Result<Outcome> {
    let at = clock::now();
    say(&Says::Begun { run: run.id(), attempt: run.attempt(), at })?;
    if run.attempt() == 1 {
        run.stopped().await;
        return Ok(Outcome::Yield);
    }
    Ok(Outcome::Done(json!(null)))
}
