//! Writes this pod's workers into the store: one statement for all that has changed meanwhile. No timer and no delay: a
//! lone change is written at once, and what comes during a statement goes into the next one.

use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::Result;
use crate::membership::clock;
use crate::meters;
use crate::nag::Nag;
use crate::protocol::replica::Teller;
use crate::store::workers::{self, PORTION};

/// How long a row that another transaction has locked is left alone. Shorter costs statements; longer delays the change.
const AGAIN: Duration = Duration::from_millis(250);
/// The delays after failed writes: 20 ms to 2 s. A shorter maximum loads a server that refuses; a longer one delays the
/// first change after an outage.
const DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// How often a lasting failure is logged: once a minute.
const SAID: Duration = Duration::from_secs(60);

/// Publishes the workers of this pod.
pub(crate) struct Publishing {
    registry: Arc<Registry>,
    teller: Teller,
    /// The number of the last write. A write that was given up and arrives late finds a higher one, and is refused.
    number: i64,
    /// The most workers that a statement writes. Halved after one that failed, because it may have been too large.
    most: usize,
    nag: Nag,
}

impl Publishing {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, teller: Teller::default(), number: 0, most: PORTION, nag: Nag::new(SAID) }
    }

    async fn write(&mut self) -> Result<Next> {
        let Registry { member, table, db, .. } = &*self.registry;
        let own = member.incarnation();
        table.publish_as(own);
        let batch = table.take_batch(self.most, clock::now());
        if batch.is_empty() && !self.teller.owes() {
            return Ok(Next::Wait);
        }
        self.number += 1;
        let peers = member.peers();
        let tells = (self.teller.may_tell(clock::now(), peers), self.teller.owes());
        let published = match workers::publish(db, own, self.number, &batch.puts, &batch.removed, tells).await {
            Ok(published) if published.accepted => published,
            Ok(_) => {
                // This incarnation is not in the roster any more, or not yet. The next one publishes all again.
                table.not_written(&batch);
                return Ok(Next::BackOff);
            }
            Err(e) => {
                table.not_written(&batch);
                self.most = (self.most / 2).max(1);
                return Err(e);
            }
        };
        self.most = (self.most * 2).min(PORTION);
        if published.changed || published.told {
            self.teller.wrote(published.told, clock::now(), peers);
        }
        if published.told {
            meters::count(meters::NOTICES_SENT, "about", "workers");
        }
        let again = table.wrote(&batch, &published);
        Ok(Next::Within(if again { AGAIN } else { Duration::ZERO }))
    }
}

impl Part for Publishing {
    const NAME: &'static str = "the publisher of workers";

    async fn woken(&mut self) {
        self.registry.table.to_write.notified().await;
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        // Subscribed before the question, so that no change is missed.
        let changes = self.registry.member.status_changes();
        if !self.registry.member.is_attached() {
            // Nothing can be written before the pod holds its lock again.
            changes.await;
            return Next::Within(Duration::ZERO);
        }
        let next = self.write().await;
        self.registry.written.send_modify(|rounds| *rounds += 1);
        match next {
            Ok(next) => {
                self.nag.passed();
                next
            }
            Err(e) => {
                self.registry.failed(&mut self.nag, &e, "workers of this pod are not published yet");
                Next::BackOff
            }
        }
    }
}
