//! A lone start, checkpoint and end, in turns with the same statements by hand on one connection. The statements are
//! those that the server shows for the connections of the pod's pool.

use std::sync::Arc;
use std::time::Instant;

use podlock::{NewRun, Pod, Run};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::report::Spread;
use crate::stage::{KIND, Stage, checkpoint, config};
use crate::{Args, Result, SOON, connect};

const DATABASE: &str = "alone";
/// The median of a lone start, checkpoint and end, as a multiple of that of its statement by hand, in the last version
/// that did not group writes: the median of three measurements with `fsync` on (docs/performance.md).
pub(crate) const UNGROUPED: [f64; 3] = [1.12, 1.09, 1.16];
/// A lone write takes at most so many times what it took before writes were grouped.
pub(crate) const GOAL: f64 = 1.05;

/// A start, a checkpoint and an end.
pub(crate) struct Alone {
    pub(crate) podlock: [Spread; 3],
    pub(crate) by_hand: [Spread; 3],
}

/// Tells the handler to go on, and is told when it has.
#[derive(Default)]
struct Steps {
    go: Notify,
    done: Notify,
    took: Mutex<[Vec<f64>; 3]>,
}

impl Steps {
    async fn next(&self) {
        self.go.notify_one();
        self.done.notified().await;
    }

    async fn add(&self, step: usize, began: Instant) {
        self.took.lock().await[step].push(began.elapsed().as_secs_f64() * 1e3);
    }
}

pub(crate) async fn measure(stage: &Stage, args: &Args) -> Result<Alone> {
    let steps = Arc::new(Steps::default());
    let url = stage.database(DATABASE).await?;
    let pod = pod(&url, &steps).await?;
    let statements = shown(&connect(&url).await?, &pod, &steps).await?;
    let by_hand = Hand::new(&stage.database("alone_floor").await?, &statements).await?;
    // The first calls are slower.
    for _ in 0..100 {
        by_hand.run(&mut Default::default()).await?;
        once(&pod, &steps).await?;
    }
    *steps.took.lock().await = Default::default();
    let (mut took, until) = (Default::default(), Instant::now() + args.time() * 2);
    while Instant::now() < until {
        by_hand.run(&mut took).await?;
        once(&pod, &steps).await?;
    }
    pod.shutdown(SOON).await?;
    let podlock = std::mem::take(&mut *steps.took.lock().await).map(Spread::of);
    Ok(Alone { podlock, by_hand: took.map(Spread::of) })
}

async fn pod(url: &str, steps: &Arc<Steps>) -> Result<Pod> {
    let steps = Arc::clone(steps);
    let handler = move |run: Run| {
        let steps = Arc::clone(&steps);
        async move {
            steps.go.notified().await;
            let began = Instant::now();
            run.checkpoint(checkpoint(0)).await?;
            steps.add(1, began).await;
            steps.done.notify_one();
            steps.go.notified().await;
            let began = Instant::now();
            let ended = run.finish(json!(null)).await?;
            steps.add(2, began).await;
            steps.done.notify_one();
            Ok(ended)
        }
    };
    Ok(Pod::builder(config(url, "alone")).handler(KIND, handler).start().await?)
}

async fn begin(pod: &Pod, steps: &Steps) -> Result<()> {
    let began = Instant::now();
    pod.start(NewRun::new(KIND).input(json!(1))).await?;
    steps.add(0, began).await;
    Ok(())
}

async fn once(pod: &Pod, steps: &Steps) -> Result<()> {
    begin(pod, steps).await?;
    steps.next().await;
    steps.next().await;
    Ok(())
}

/// The statements of a start, a checkpoint and an end.
async fn shown(client: &Client, pod: &Pod, steps: &Steps) -> Result<[String; 3]> {
    let sql = "SELECT query FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'podlock/%/pool' \
               AND query LIKE $2 AND query NOT LIKE '%unnest%' LIMIT 1";
    let mut statements = [const { None }; 3];
    // Another statement of the pod may follow on the same connection before this one looks.
    for _ in 0..20 {
        begin(pod, steps).await?;
        for (step, like) in ["%studio_runs (run_id%", "%SET checkpoint =%", "%SET state =%"].iter().enumerate() {
            if step > 0 {
                steps.next().await;
            }
            let row = client.query_opt(sql, &[&DATABASE, like]).await?;
            statements[step] = statements[step].take().or(row.map(|row| row.get::<_, String>(0)));
        }
        if let [Some(start), Some(checkpoint), Some(end)] = statements {
            return Ok([start, checkpoint, end]);
        }
    }
    Err(format!("the server does not show the statements: {statements:?}").into())
}

/// The same statements on a connection of ours.
struct Hand {
    client: Client,
    own: Uuid,
    statements: [Statement; 3],
}

impl Hand {
    async fn new(url: &str, texts: &[String; 3]) -> Result<Self> {
        let (client, own) = (connect(url).await?, Uuid::now_v7());
        // A start looks its owner up.
        let sql = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                                            liveness_pid, liveness_started) \
                   VALUES ('by hand', '', 0, $1, 1, 2, 1, now())";
        client.execute(sql, &[&own]).await?;
        client
            .batch_execute(
                "SET jit = off; SET plan_cache_mode = force_generic_plan; SET search_path = pg_catalog, pg_temp",
            )
            .await?;
        let [start, checkpoint, end] = texts;
        let statements = [client.prepare(start).await?, client.prepare(checkpoint).await?, client.prepare(end).await?];
        Ok(Self { client, own, statements })
    }

    async fn run(&self, took: &mut [Vec<f64>; 3]) -> Result<()> {
        let (run_id, none) = (Uuid::now_v7(), None::<String>);
        let (input, saved, result, nothing) = (json!(1), checkpoint(0), json!(null), "");
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let start: [&(dyn ToSql + Sync); 8] = [&self.own, &run_id, &KIND, &none, &input, &0_i64, &false, &trace];
        let row = self.step(0, &start, took).await?;
        let fence: i64 = row.get::<_, Option<i64>>(0).ok_or("a start by hand was refused")?;
        let of_run: [&(dyn ToSql + Sync); 3] = [&run_id, &self.own, &fence];
        let none_of: (Option<i32>, Option<i64>, Option<&Value>) = (None, None, Some(&result));
        let save: [&(dyn ToSql + Sync); 3] = [&1_i64, &saved, &none_of.1];
        self.step(1, &[of_run, save].concat(), took).await?;
        let end: [&(dyn ToSql + Sync); 10] =
            [&"succeeded", &none_of.2, &none, &nothing, &nothing, &none_of.0, &false, &none, &none_of.1, &2_i64];
        self.step(2, &[&of_run[..], &end[..]].concat(), took).await?;
        Ok(())
    }

    async fn step(
        &self,
        step: usize,
        params: &[&(dyn ToSql + Sync)],
        took: &mut [Vec<f64>; 3],
    ) -> Result<tokio_postgres::Row> {
        let began = Instant::now();
        let row = self.client.query_one(&self.statements[step], params).await?;
        took[step].push(began.elapsed().as_secs_f64() * 1e3);
        Ok(row)
    }
}
