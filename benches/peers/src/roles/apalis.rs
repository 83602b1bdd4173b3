//! `apalis-postgres`. The setting `fastest` is that of `examples/basic.rs` in its repository, with larger batches and a
//! shorter time-out of heartbeats.

use std::time::Duration;

use apalis::prelude::{BoxDynError, ParallelizeExt as _, TaskSink as _, WorkerBuilder};
use apalis_postgres::{Config, PostgresStorage};
use sqlx::PgPool;

use super::{Orders, Part, Task, batches, job, one_by_one, pool, say};
use crate::Result;
use crate::system::Setting;

pub(super) async fn play(task: &Task) -> Result<()> {
    let pool = pool(&task.url).await?;
    match task.part {
        Part::Install => {
            PostgresStorage::setup(&pool).await?;
            Orders::ready().await?.end().await
        }
        Part::Enqueue => {
            let storage = storage(&pool, task.setting);
            let orders = Orders::ready().await?;
            one_by_one(task, move |number| {
                let mut storage = storage.clone();
                async move { Ok(storage.push(number).await?) }
            })
            .await?;
            say("done");
            orders.end().await
        }
        Part::EnqueueBatches => {
            let mut storage = storage(&pool, task.setting);
            let orders = Orders::ready().await?;
            for batch in batches(task.jobs) {
                storage.push_bulk(batch).await?;
            }
            say("done");
            orders.end().await
        }
        Part::Work | Part::Hold => {
            let (storage, builder) = (storage(&pool, task.setting), builder_name(task));
            let orders = Orders::ready().await?;
            // The worker has no end of its own: it ends with the process, when no job is left.
            let ended = match task.setting {
                Setting::Default => {
                    let worker = WorkerBuilder::new(builder).backend(storage).build(handler);
                    tokio::select! { ended = worker.run() => ended, told = orders.end() => return told }
                }
                Setting::Fastest => {
                    let builder = WorkerBuilder::new(builder).backend(storage.with_pubsub());
                    let worker = builder.parallelize(tokio::spawn).build(handler);
                    tokio::select! { ended = worker.run() => ended, told = orders.end() => return told }
                }
            };
            Err(format!("the worker ended by itself: {ended:?}").into())
        }
        Part::Start => Err("this peer has no such part".into()),
    }
}

async fn handler(_number: u64) -> Result<(), BoxDynError> {
    job().await;
    Ok(())
}

fn builder_name(task: &Task) -> String {
    format!("{}-{}", task.part.word(), std::process::id())
}

fn storage(pool: &PgPool, setting: Setting) -> PostgresStorage<u64> {
    let config = Config::default().queue("bench");
    let config = match setting {
        Setting::Default => config,
        Setting::Fastest => {
            config.batch_size(500).lock_tasks(false).heartbeat_interval(Duration::from_secs(1)).missed_heartbeats(3)
        }
    };
    PostgresStorage::new(pool).with_config(config)
}
