//! `graphile_worker`. The setting `fastest` is that of the benchmark in its repository (`benches/perf_test.rs`), with
//! recovery by heartbeats on.

use std::sync::Arc;
use std::time::Duration;

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, Worker, WorkerContext, WorkerOptions, WorkerUtils,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::{Orders, Part, Task, batches, job, one_by_one, pool, say};
use crate::Result;
use crate::system::Setting;

#[derive(Clone, Serialize, Deserialize)]
struct Job {
    number: u64,
}

impl TaskHandler for Job {
    const IDENTIFIER: &'static str = "job";

    async fn run(self, _context: WorkerContext) -> impl IntoTaskHandlerResult {
        job().await;
        Ok::<(), String>(())
    }
}

pub(super) async fn play(task: &Task) -> Result<()> {
    let pool = pool(&task.url).await?;
    match task.part {
        Part::Install => {
            worker(task.setting, pool).await?;
            Orders::ready().await?.end().await
        }
        Part::Enqueue => {
            let utils = Arc::new(WorkerUtils::new(pool, "graphile_worker"));
            let orders = Orders::ready().await?;
            one_by_one(task, move |number| {
                let utils = Arc::clone(&utils);
                async move { Ok(utils.add_job(Job { number }, JobSpec::default()).await.map(drop)?) }
            })
            .await?;
            say("done");
            orders.end().await
        }
        Part::EnqueueBatches => {
            let (utils, spec) = (WorkerUtils::new(pool, "graphile_worker"), JobSpec::default());
            let orders = Orders::ready().await?;
            for batch in batches(task.jobs) {
                let jobs: Vec<_> = batch.into_iter().map(|number| (Job { number }, &spec)).collect();
                utils.add_jobs(&jobs).await?;
            }
            say("done");
            orders.end().await
        }
        Part::Work | Part::Hold => {
            let worker = Arc::new(worker(task.setting, pool).await?);
            let orders = Orders::ready().await?;
            let running = tokio::spawn({
                let worker = Arc::clone(&worker);
                async move { worker.run().await }
            });
            orders.end().await?;
            worker.request_shutdown();
            Ok(running.await??)
        }
        Part::Start => Err("this peer has no such part".into()),
    }
}

async fn worker(setting: Setting, pool: PgPool) -> Result<Worker> {
    let options = WorkerOptions::default().pg_pool(pool).define_job::<Job>();
    let options = match setting {
        Setting::Default => options,
        Setting::Fastest => options
            .concurrency(500)
            .poll_interval(Duration::from_millis(5))
            .complete_job_batch_delay(Duration::from_millis(5))
            .local_queue(LocalQueueConfig::default().with_size(5_000))
            .heartbeat_interval(Duration::from_secs(1))
            .sweep_interval(Duration::from_secs(1))
            .sweep_threshold(Duration::from_secs(3))
            .recovery_delay(Duration::ZERO),
    };
    Ok(options.init().await?)
}
