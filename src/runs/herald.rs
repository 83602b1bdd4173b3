//! The herald tells pods of runs without an owner. It chooses a pod that has a handler and room, instead of waking every
//! pod. It runs at most four such statements a second, because a NOTIFY delays the commits of all other sessions for a
//! moment. `protocol::offer` says when the next one is due.
//!
//! Nothing depends on it: the recovery passes of all pods find the runs (L6, L11).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::engine::Engine;
use crate::background::part::{Next, Part};
use crate::error::Result;
use crate::meters;
use crate::protocol::offer::Untold;
use crate::store::orphans;

/// Tells pods of runs without an owner.
pub(crate) struct Herald {
    engine: Arc<Engine>,
    /// What could not be told, because the database could not be reached.
    begun: Option<Untold>,
}

impl Herald {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, begun: None }
    }
}

impl Part for Herald {
    const NAME: &'static str = "the herald of orphans";

    async fn woken(&mut self) {
        self.engine.offers.due().await;
    }

    async fn work(&mut self) -> Next {
        let untold = self.begun.take().unwrap_or_else(|| self.engine.offers.take());
        if untold.own {
            self.engine.take_offer();
        }
        if !untold.is_for_others() {
            return Next::Wait;
        }
        match tell(&self.engine, &untold).await {
            Ok(()) => {
                // The chosen pod may be dead, frozen or without a connection. Then the others are told.
                let still = untold.kinds;
                if !still.is_empty() {
                    self.engine.offers.add_for_later(Untold { still, ..Untold::default() });
                }
                Next::Wait
            }
            Err(e) => {
                let again = e.is_transient();
                if !again {
                    tracing::warn!(
                        target: "podlock", event = "untold", pod = %self.engine.member.pod_id, error = %e,
                        "pods were not told of runs without an owner; they look by themselves"
                    );
                    return Next::Wait;
                }
                tracing::debug!(
                    target: "podlock", event = "untold", pod = %self.engine.member.pod_id, error = %e,
                    "pods were not told yet of runs without an owner"
                );
                self.begun = Some(Untold { own: false, ..untold });
                Next::BackOff
            }
        }
    }
}

/// Tells the other pods.
pub(crate) async fn tell(engine: &Engine, untold: &Untold) -> Result<()> {
    let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
    let Untold { kinds, pods, everybody, still, own: _ } = untold;
    let told = orphans::Told { kinds: list(kinds), pods: list(pods), everybody: *everybody, still: list(still) };
    orphans::tell(&engine.db, engine.member.incarnation(), &told).await?;
    meters::count(meters::NOTICES_SENT, "about", "orphans");
    Ok(())
}
