//! The herald tells pods of runs without an owner. It chooses a pod that has a handler and room, instead of waking every
//! pod, and sends at most a few notices a second, because a NOTIFY delays the commits of all other sessions for a moment.
//!
//! Nothing depends on it: the recovery passes of all pods find the runs (L6, L11).

use std::sync::Arc;

use super::engine::Engine;
use super::offers::Untold;
use crate::background::part::{Next, Part};
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
        let [kinds, pods] = [&untold.kinds, &untold.pods].map(|set| set.iter().map(String::as_str).collect::<Vec<_>>());
        let own = self.engine.member.incarnation();
        match orphans::tell(&self.engine.db, own, &kinds, &pods, untold.everybody).await {
            Ok(()) => Next::Wait,
            Err(e) => {
                let again = e.is_transient();
                tracing::debug!(
                    target: "podlock", event = "untold", pod = %self.engine.member.pod_id, error = %e, again,
                    "pods were not told of runs without an owner; they look by themselves"
                );
                if !again {
                    return Next::Wait;
                }
                self.begun = Some(Untold { own: false, ..untold });
                Next::BackOff
            }
        }
    }
}
