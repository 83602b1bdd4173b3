//! Says in the table `studio_stream_readers` for which runs this pod has readers. The pods that execute these runs notify
//! this one. The rows of a pod that dies do not count any more, and another pod deletes them here.
//!
//! An attach may race an append, whose statement does not see the new row yet and so notifies nobody. So the readers of
//! a run stay awake for a while after its row was written (`protocol::awake`): if the append is stored within that time,
//! they find the chunk. No statement here waits for an append, and no append waits for one of these.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::id::Incarnation;
use crate::membership::clock;
use crate::protocol::interest::{Changes, Interest, PORTION};
use crate::runs::engine::Engine;
use crate::store::listener::Listener;
use crate::store::streams;

/// How long a failure delays the next try: 1 s, as long as a reader waits that is not notified. Trying more often would
/// load a server that refuses.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a pod whose session stays open deletes rows of pods that have died: every 10 minutes. Each time the whole
/// table is read. Such rows cost only their place.
const CLEAN: Duration = Duration::from_secs(600);
/// The portions that one cleaning deletes at most. The rest has time until the next one.
const PORTIONS: usize = 16;

/// The rows of this pod, as far as this session wrote them.
#[derive(Default)]
pub(super) struct Entering {
    interest: Interest,
    /// The incarnation that the rows name. `None`: nothing was written yet.
    own: Option<Incarnation>,
    cleaned: Option<Instant>,
    /// After a failure, nothing is tried before this time.
    not_before: Option<Instant>,
    /// Some readers read a run of this pod. When another pod has that run, its row must be written.
    waits_for_own: bool,
}

impl Entering {
    /// Writes and deletes what is due. A failure is logged, and tried again later: nothing depends on the rows.
    pub(super) async fn round(&mut self, engine: &Engine, session: &Listener) {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.not_before = None;
        if let Err(e) = self.try_round(engine, session).await {
            self.failed(engine, &e);
        }
    }

    fn failed(&mut self, engine: &Engine, error: &Error) {
        tracing::debug!(
            target: "podlock", event = "readers_unentered", pod = %engine.member.pod_id, error = %error,
            "other pods do not know what is read here; looking for chunks once a second"
        );
        self.not_before = Some(Instant::now() + AGAIN);
    }

    async fn try_round(&mut self, engine: &Engine, session: &Listener) -> Result<()> {
        let own = engine.member.incarnation();
        let is_new = self.own != Some(own);
        if is_new || self.cleaned.is_none_or(|at| at.elapsed() >= CLEAN) {
            // A former session of this pod may have left rows.
            clean(session, is_new.then_some(own)).await?;
            self.cleaned = Some(Instant::now());
        }
        if is_new {
            (self.interest, self.own) = (Interest::default(), Some(own));
        }
        loop {
            let attached = engine.readers.attached();
            let is_own = |run| engine.registry.fence_of(run).is_some();
            let Changes { enter, leave } = self.interest.changes(&attached, is_own, clock::now());
            if enter.is_empty() && leave.is_empty() {
                self.waits_for_own = attached.iter().any(|run| !self.interest.has(*run));
                return Ok(());
            }
            if !leave.is_empty() {
                streams::leave_readers(session, own, &leave).await?;
                self.interest.note_left(&leave);
            }
            if !enter.is_empty() {
                streams::enter_readers(session, own, &enter).await?;
                self.interest.note_entered(&enter);
                engine.readers.note_news(enter.iter().copied(), clock::now());
                engine.readers.stir(enter.iter());
            }
        }
    }

    /// Deletes all rows of this pod, because no reader is left. Returns false if some may be there.
    pub(super) async fn leave_all(&mut self, engine: &Engine, session: &Listener) -> bool {
        let Some(own) = self.own else { return true };
        match clean(session, Some(own)).await {
            Ok(is_clean) => is_clean,
            Err(e) => {
                self.failed(engine, &e);
                false
            }
        }
    }

    /// Whether a row must be written when a run leaves this pod.
    pub(super) fn waits_for_own(&self) -> bool {
        self.waits_for_own
    }

    /// How long until the next round, if no reader comes or goes.
    pub(super) fn wait(&self) -> Duration {
        let leave = self.interest.due().map_or(CLEAN, |due| due.saturating_sub(clock::now()));
        let again = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        // A process whose incarnation changed has this session still.
        leave.min(AGAIN).max(again)
    }
}

/// Deletes rows of readers that have gone. Returns false if some are left.
async fn clean(session: &Listener, own: Option<Incarnation>) -> Result<bool> {
    for _ in 0..PORTIONS {
        if streams::clean_readers(session, own, PORTION).await? < PORTION {
            return Ok(true);
        }
    }
    Ok(false)
}
