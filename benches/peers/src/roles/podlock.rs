//! podlock. A producer is a pod without a handler, so it claims nothing.

use std::time::Duration;

use podlock::{Config, HandlerError, NewRun, Outcome, Pod, Run};

use super::{Orders, Part, Task, batches, job, one_by_one, say};
use crate::Result;
use crate::system::Setting;

/// How long a pod may take to stop.
const GRACE: Duration = Duration::from_secs(10);
/// The runs of a pod at a time in the setting `fastest`; the default is 100.
const CAPACITY: usize = 1_000;

pub(super) async fn play(task: &Task) -> Result<()> {
    let config = Config::new(&task.url).name(format!("{}-{}", task.part.word(), std::process::id()));
    let config = match task.setting {
        Setting::Default => config,
        Setting::Fastest => config.capacity(CAPACITY),
    };
    match task.part {
        Part::Install => {
            podlock::migrate::up(&config).await?;
            Orders::ready().await?.end().await
        }
        Part::Enqueue => {
            let pod = Pod::builder(config).start().await?;
            let orders = Orders::ready().await?;
            one_by_one(task, {
                let pod = pod.clone();
                move |number| {
                    let pod = pod.clone();
                    async move { Ok(pod.submit(new_run(number)).await.map(drop)?) }
                }
            })
            .await?;
            say("done");
            orders.end().await?;
            Ok(pod.shutdown(GRACE).await.map(drop)?)
        }
        Part::EnqueueBatches => {
            let pod = Pod::builder(config).start().await?;
            let orders = Orders::ready().await?;
            for batch in batches(task.jobs) {
                for submitted in pod.submit_many(batch.into_iter().map(new_run)).await {
                    submitted?;
                }
            }
            say("done");
            orders.end().await?;
            Ok(pod.shutdown(GRACE).await.map(drop)?)
        }
        Part::Work | Part::Hold => {
            // A pod claims as soon as it has started, so its start counts as work.
            let orders = Orders::ready().await?;
            let pod = Pod::builder(config).handler("job", handler).start().await?;
            orders.end().await?;
            Ok(pod.shutdown(GRACE).await.map(drop)?)
        }
        Part::Start => {
            // A pod refuses to start more runs than it has room for, and starts are faster than ends.
            let pod =
                Pod::builder(config.capacity(usize::try_from(task.jobs)?)).handler("job", handler).start().await?;
            let orders = Orders::ready().await?;
            one_by_one(task, {
                let pod = pod.clone();
                move |number| {
                    let pod = pod.clone();
                    async move { Ok(pod.start(new_run(number)).await.map(drop)?) }
                }
            })
            .await?;
            say("done");
            orders.end().await?;
            Ok(pod.shutdown(GRACE).await.map(drop)?)
        }
    }
}

fn new_run(number: u64) -> NewRun {
    NewRun::new("job").input(number)
}

async fn handler(_run: Run) -> Result<Outcome, HandlerError> {
    job().await;
    Ok(Outcome::Done(serde_json::Value::Null))
}
