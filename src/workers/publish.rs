//! Writes this pod's workers into the store: one statement for all that has changed meanwhile. No timer and no delay: a
//! lone change is written at once, and what comes during a statement goes into the next one.

use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use crate::background::part::{Next, Part};
use crate::error::Result;
use crate::membership::clock;
use crate::protocol::replica::Teller;
use crate::store::workers;

/// How long a row that another transaction has locked is left alone. Shorter costs statements; longer delays the change.
const AGAIN: Duration = Duration::from_millis(250);

/// Publishes the workers of this pod.
pub(crate) struct Publishing {
    registry: Arc<Registry>,
    teller: Teller,
    /// The number of the last write. A write that was given up and arrives late finds a higher one, and is refused.
    number: i64,
}

impl Publishing {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, teller: Teller::default(), number: 0 }
    }

    async fn write(&mut self) -> Result<Next> {
        let Registry { member, table, db, .. } = &*self.registry;
        let own = member.incarnation();
        table.publish_as(own);
        let batch = table.take_batch();
        if batch.is_empty() && !self.teller.owes() {
            return Ok(Next::Wait);
        }
        self.number += 1;
        let tells = (self.teller.may_tell(clock::now()), self.teller.owes());
        let written = workers::publish(db, own, self.number, &batch.puts, &batch.removed, tells).await;
        let published = match written {
            Ok(published) => published,
            Err(e) => {
                table.not_written(&batch);
                return Err(e);
            }
        };
        if !published.accepted {
            // This incarnation is not in the roster any more, or not yet. The next one publishes all again.
            table.not_written(&batch);
            return Ok(Next::BackOff);
        }
        self.teller.wrote(published.told, clock::now());
        let again = table.wrote(&batch, &published);
        self.registry.written.send_modify(|count| *count += 1);
        Ok(if again { Next::Within(AGAIN) } else { Next::Within(Duration::ZERO) })
    }
}

impl Part for Publishing {
    const NAME: &'static str = "the publisher of workers";

    async fn woken(&mut self) {
        self.registry.table.to_write.notified().await;
    }

    fn period(&self) -> Option<Duration> {
        None
    }

    async fn work(&mut self) -> Next {
        // Subscribed before the question, so that no change is missed.
        let changes = self.registry.member.status_changes();
        if !self.registry.member.is_attached() {
            // Nothing can be written before the pod holds its lock again.
            changes.await;
            return Next::Within(Duration::ZERO);
        }
        match self.write().await {
            Ok(next) => next,
            Err(e) => {
                tracing::debug!(
                    target: "podlock", event = "workers_unpublished", pod = %self.registry.member.pod_id, error = %e,
                    "workers were not published; they are published again"
                );
                Next::BackOff
            }
        }
    }
}
