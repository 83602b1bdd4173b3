//! Pods, as a service has them, that find what another has left.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use podlock::{Config, Outcome, Pod, Run};
use tokio::sync::Notify;

use crate::{Result, SOON, connect, leave_orphans};

/// How long it took until the handler of the last one had begun, and how many each pod had then.
pub(crate) async fn claim(url: &str, survivors: usize, orphans: i64) -> Result<(Duration, Vec<i64>)> {
    let (begun, all) = (Arc::new(AtomicI64::new(0)), Arc::new(Notify::new()));
    let mut pods = Vec::new();
    for n in 0..survivors {
        let (begun, all) = (Arc::clone(&begun), Arc::clone(&all));
        let config = Config::new(url).name(format!("survivor-{n}")).lease(Duration::from_secs(60));
        let config = config.capacity(usize::try_from(orphans)?);
        let work = move |_run: Run| {
            if begun.fetch_add(1, Ordering::AcqRel) + 1 == orphans {
                all.notify_one();
            }
            // It is dropped with its pod.
            std::future::pending::<Result<Outcome, podlock::HandlerError>>()
        };
        pods.push(Pod::builder(config).handler("work", work).start().await?);
    }
    let admin = connect(url).await?;
    leave_orphans(&admin, orphans).await?;
    let began = Instant::now();
    tokio::time::timeout(SOON, all.notified())
        .await
        .map_err(|_| format!("{} of {orphans} had begun after {SOON:?}", begun.load(Ordering::Acquire)))?;
    let took = began.elapsed();
    let owned = pods.iter().map(|pod| i64::try_from(pod.status().runs).unwrap_or(0)).collect();
    Ok((took, owned))
}
