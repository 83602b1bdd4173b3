//! The roll-ups: hourly rows from samples, and scores from sessions. One pod at a time makes each, for all.
//!
//! * **Who.** Each pod tries every `roll_up_interval`. It claims the row of the roll-up in `studio_roll_ups` with a token
//!   of its own, if the last one is old enough and nobody else is at it. It waits for nobody: a locked row is passed
//!   over. No lock is held between two statements.
//! * **A pod that dies, or is slow.** Each write names the token, and changes nothing if the roll-up is another's by
//!   now. A claim without a sign of life for a minute can be taken over. The other continues where the first one got to.
//! * **Twice is harmless.** Every row follows from samples or sessions alone. So a row that two pods make is the same.
//! * **A clock that jumps.** Only the server's clock counts. A time in the future counts as long ago, so after a jump back
//!   the roll-up is made once more, and goes on from there.

mod hours;
mod scores;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::membership::{Membership, clock};
use crate::meters;
use crate::nag::Nag;
use crate::pg::pool::Database;
use crate::store::roll_ups::{self as statements, Wanted, What};

/// How old the last roll-up must be, as a share of the interval. A pod tries after one to 1.1 intervals, so its own last
/// one is always old enough. With less, a large fleet would roll up more often than it was told.
const DUE: f64 = 0.95;
/// The time between two rounds of a pod, if the first has hours left.
const PACE: Duration = Duration::from_secs(1);
/// How long an operator waits while a pod is at it: a minute, after which a pod that has died is replaced.
const BUSY: Duration = Duration::from_secs(75);
/// The time between two tries of an operator.
const AGAIN: Duration = Duration::from_millis(50);
/// The delays after failed rounds: from 5 s to a minute. Nothing depends on a round, and a server that is overloaded must
/// get less work.
const DELAYS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How often a lasting failure is logged: every ten minutes.
const SAID: Duration = Duration::from_secs(600);

/// What a roll-up wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RolledUp {
    /// Hourly rows that were added, or changed because samples came late.
    pub hours: i64,
    /// Hourly rows that were deleted because they are old.
    pub old_hours: i64,
    /// Scores that were added or renewed. A pod that is over keeps its row while its numbers hardly change.
    pub scores: i64,
    /// Scores that were deleted because their pods have no session in the window any more.
    pub old_scores: i64,
}

/// Who makes a roll-up.
pub(crate) struct Maker {
    pub(crate) db: Database,
    pub(crate) token: Uuid,
    /// The pod's name. `None`: an operator.
    pub(crate) by: Option<String>,
    /// The label to score by, or an empty text. `None`: as the last roll-up did.
    pub(crate) label: Option<String>,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    /// The roll-up is complete.
    Made,
    /// There is more to do, for the next round.
    More,
    /// It was not due, or another is at it.
    NotMine,
}

impl Maker {
    fn wanted(&self, what: What, every: Option<Duration>) -> Wanted<'_> {
        let label = self.label.as_deref().filter(|_| what == What::Reliability);
        Wanted { token: self.token, by: self.by.as_deref(), label, every }
    }

    /// Makes one roll-up if it is due, and counts that.
    async fn make(&self, what: What, every: Option<Duration>, total: &mut RolledUp) -> Result<Tried> {
        let made = self.try_to_make(what, every, total).await;
        let outcome = match made {
            Ok(Tried::Made) => "made",
            Ok(Tried::More | Tried::NotMine) => return made,
            Err(_) => "failed",
        };
        metrics::counter!(meters::ROLL_UPS, "outcome" => outcome).increment(1);
        made
    }

    async fn try_to_make(&self, what: What, every: Option<Duration>, total: &mut RolledUp) -> Result<Tried> {
        let Some(claimed) = statements::claim(&self.db, what, self.wanted(what, every)).await? else {
            return Ok(Tried::NotMine);
        };
        let made = match what {
            What::Hourly => hours::make(self, &claimed, total).await?,
            What::Reliability => scores::make(self, &claimed, total).await?,
        };
        if made == Tried::Made && !statements::finish(&self.db, what, self.token).await? {
            return Ok(Tried::NotMine);
        }
        Ok(made)
    }

    /// Makes both roll-ups at once and completely, also if they were just made.
    pub(crate) async fn now(&self) -> Result<RolledUp> {
        let mut total = RolledUp::default();
        // A roll-up that fails does not stop the other.
        let hourly = self.to_the_end(What::Hourly, &mut total).await;
        let reliability = self.to_the_end(What::Reliability, &mut total).await;
        hourly.and(reliability).map(|()| total)
    }

    async fn to_the_end(&self, what: What, total: &mut RolledUp) -> Result<()> {
        let began = clock::now();
        loop {
            match self.make(what, None, total).await? {
                Tried::Made => return Ok(()),
                Tried::More => {}
                Tried::NotMine if clock::now().saturating_sub(began) > BUSY => {
                    let what = format!("rolling up ({}): another was always at it", what.as_str());
                    return Err(Error::new(ErrorKind::Timeout, what)
                        .state("the rows are those of the roll-up before")
                        .help("see studio_roll_ups for who is at it; try again later"));
                }
                Tried::NotMine => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

/// Makes the roll-ups as long as the pod lives, whenever no other pod has.
pub(crate) struct RollingUp {
    member: Arc<Membership>,
    db: Database,
    nag: Nag,
}

impl RollingUp {
    pub(crate) fn new(member: Arc<Membership>, db: Database) -> Self {
        Self { member, db, nag: Nag::new(SAID) }
    }

    /// Makes what is due. A roll-up that fails does not stop the other.
    async fn round(&self, maker: &Maker) -> Result<Tried> {
        let every = Some(self.member.settings.roll_up_interval.mul_f64(DUE));
        let mut total = RolledUp::default();
        let hourly = maker.make(What::Hourly, every, &mut total).await;
        let reliability = maker.make(What::Reliability, every, &mut total).await?;
        hourly.map(|hourly| if hourly == Tried::More { hourly } else { reliability })
    }

    fn report(&mut self, error: &Error) {
        let pod = &self.member.pod_id;
        let patience = if error.is_transient() { self.member.settings.roll_up_interval } else { Duration::ZERO };
        match self.nag.failed(clock::now(), patience) {
            Some(times) => tracing::warn!(
                target: "podlock", event = "roll_up_failed", pod = %pod, error = %error, times,
                "hourly rows or scores are not made; it is tried again and again"
            ),
            None => tracing::debug!(
                target: "podlock", event = "roll_up_failed", pod = %pod, error = %error,
                "hourly rows or scores are not made; it is tried again"
            ),
        }
    }
}

impl Part for RollingUp {
    const NAME: &'static str = "the roll-ups";

    fn period(&self) -> Option<Duration> {
        Some(self.member.settings.roll_up_interval.mul_f64(1.0 + 0.1 * fastrand::f64()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        let Some(incarnation) = self.member.may_keep_work() else { return Next::Wait };
        let maker = Maker {
            db: self.db.clone(),
            token: incarnation.as_uuid(),
            by: Some(self.member.pod_id.to_string()),
            label: Some(self.member.settings.score_by.clone()),
        };
        match self.round(&maker).await {
            Ok(tried) => {
                self.nag.passed();
                if tried == Tried::More { Next::Within(PACE) } else { Next::Wait }
            }
            Err(e) => {
                self.report(&e);
                Next::BackOff
            }
        }
    }
}
