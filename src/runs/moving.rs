//! Moves: a pod with more than its share of the runs asks some of them to yield (`protocol::moves`).
//!
//! load (the fleet) → plan → ask → report. A pod without a run that may move reads nothing.

use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use crate::background::part::{Next, Part};
use crate::membership::clock;
use crate::nag::Nag;
use crate::protocol::moves::{self, Candidates, Rules};
use crate::store::loads;

/// The least time between two warnings that looks fail.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Looks now and then whether this pod has more than its share.
pub(crate) struct Moving {
    engine: Arc<Engine>,
    /// How long the next wait is, without its jitter.
    pause: Duration,
    /// When to say again that looks fail.
    nag: Nag,
}

impl Moving {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let pause = engine.member.settings.sweep_interval;
        Self { engine, pause, nag: Nag::new(SAY_AGAIN) }
    }

    fn rules(&self) -> Rules {
        let settings = &self.engine.member.settings;
        Rules { at_once: settings.moves_at_once, rest: settings.move_rest }
    }
}

impl Part for Moving {
    const NAME: &'static str = "the moves";

    fn first(&self) -> Next {
        if self.rules().at_once == 0 { Next::Never } else { Next::Wait }
    }

    fn period(&self) -> Option<Duration> {
        // Pods that began together should not look together.
        Some(self.pause.mul_f64(0.75 + 0.5 * fastrand::f64()))
    }

    async fn work(&mut self) -> Next {
        let (engine, rules) = (&self.engine, self.rules());
        let sweep = engine.member.settings.sweep_interval;
        // A cordoned pod keeps its runs, and a draining one hands them all over.
        let Ok(own) = engine.member.may_take_work() else { return Next::Wait };
        let (running, mine) = engine.registry.movable();
        let candidates = Candidates::of(&rules, running, mine, clock::now());
        if candidates.runs.is_empty() {
            self.pause = sweep;
            return Next::Wait;
        }
        let fleet = match loads::fleet(&engine.db, own, &candidates.kinds()).await {
            Ok(fleet) => fleet,
            Err(e) if e.is_transient() => {
                tracing::debug!(
                    target: "podlock", event = "moves_failed", pod = %engine.member.pod_id, error = %e,
                    "the load of the other pods could not be read; the next look tries again"
                );
                return Next::Wait;
            }
            Err(e) => {
                if let Some(times) = self.nag.failed(clock::now(), Duration::ZERO) {
                    tracing::warn!(
                        target: "podlock", event = "moves_failed", pod = %engine.member.pod_id, times, error = %e,
                        "the load of the other pods cannot be read, so no run moves; the next look tries again"
                    );
                }
                return Next::Wait;
            }
        };
        self.nag.passed();
        let asked = moves::plan(&rules, &candidates, &fleet);
        self.pause = moves::pause(sweep, fleet.pods.len(), !asked.is_empty());
        // The pod may have been cordoned, asked to drain or detached meanwhile.
        if asked.is_empty() || engine.member.may_take_work().ok() != Some(own) {
            return Next::Wait;
        }
        for run in &asked {
            engine.registry.ask_to_move(run.run_id, run.fence, clock::now());
        }
        tracing::info!(
            target: "podlock", event = "moving", pod = %engine.member.pod_id, incarnation = %own, runs = asked.len(),
            running, pods = fleet.pods.len(), "has more than its share, and asked runs to move"
        );
        Next::Wait
    }
}
