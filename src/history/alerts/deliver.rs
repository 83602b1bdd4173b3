//! Delivers the alerts of the log to one endpoint, in the order of the log. One pod of the fleet does so at a time.
//!
//! The row of `studio_webhooks` says which pod delivers, and how far it is. Before each attempt the deliverer writes its
//! position and counts a round. The statement writes nothing if another pod has taken over, or if this pod was buried. No
//! transaction is open while the courier is on its way.
//!
//! The others look at the row now and then. A pod takes over if the deliverer is not in the roster, or if its rounds stand
//! still by this pod's own looks (L8). So an alert may be delivered twice, with the same id: if the deliverer dies after
//! the receiver has it and before the position is written, and if a deliverer that stood still goes on. It is never left
//! out, unless it was given up or the log was cut.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Instant;

use super::courier::{Courier, Undelivered};
use crate::alert::Alert;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::Result;
use crate::id::Incarnation;
use crate::membership::{Membership, PodEvent, clock};
use crate::meters;
use crate::nag::Nag;
use crate::pg::pool::Database;
use crate::protocol::alerts::{self, Met, Position, Retries, Then};
use crate::protocol::{Moment, neighbours, reports};
use crate::store::webhooks::{self, Moved, Reached};

/// The least time between two attempts: 50 ms, so at most 20 alerts a second. A burst of 500 lost pods takes 25 s. Shorter
/// floods a receiver when a zone fails, and makes more statements. Longer makes the last alert of a burst late.
const GAP: Duration = Duration::from_millis(50);
/// The number of pods for which the time between two looks grows by a beat interval, up to [`LOOKS_MOST`] of them. With
/// fewer pods, a large fleet reads the row less often, and replaces a deliverer that stands still later.
const LOOKERS: usize = 32;
const LOOKS_MOST: usize = 6;
/// The delays after rounds in which a statement failed: from 100 ms to 10 s.
const DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often a lasting failure is logged: once a minute.
const SAID: Duration = Duration::from_secs(60);
/// The pods that hear of the burial of the deliverer look at the row within so much time for each pod.
const EACH: Duration = Duration::from_millis(2);

/// What an endpoint is to the deliverer.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    /// How long one attempt takes at most.
    pub(crate) timeout: Duration,
    pub(crate) retries: Retries,
}

/// Delivers the alerts to one endpoint, if no other pod does.
pub(crate) struct Deliverer<C> {
    member: Arc<Membership>,
    db: Database,
    endpoint: Endpoint,
    courier: C,
    alerts: Receiver<Alert>,
    events: Receiver<PodEvent>,
    /// What this pod saw of the pod that delivers.
    other: Other,
    /// Set while this pod delivers.
    task: Option<Task>,
    /// When the last attempt ended.
    last: Option<Instant>,
    /// Of statements that fail.
    statements: Nag,
    /// Of attempts that fail.
    attempts: Nag,
}

/// The pod that delivers, as this pod saw it.
#[derive(Debug, Default)]
struct Other {
    holder: Option<Incarnation>,
    rounds: i64,
    /// In how many looks its rounds were the same.
    looks: u32,
    /// When a look last counted, by this pod's clock.
    counted: Option<Moment>,
}

/// The work of the pod that delivers.
#[derive(Debug)]
struct Task {
    own: Incarnation,
    reached: Reached,
    /// The alerts of the page that are not delivered yet, in the order of the log.
    page: VecDeque<Alert>,
    /// The position of the page's last event.
    page_end: i64,
    /// When the next attempt for the first alert may begin, after one that failed.
    not_before: Option<Instant>,
}

/// How a step of the deliverer ended.
enum Step {
    /// The next step can follow at once.
    Go,
    /// There is nothing to do now.
    Idle,
    /// This pod does not deliver any more.
    Lost,
}

impl<C: Courier> Deliverer<C> {
    pub(crate) fn new(member: Arc<Membership>, db: Database, endpoint: Endpoint, courier: C) -> Self {
        let (alerts, events) = (member.alerts.subscribe(), member.events.subscribe());
        Self {
            member,
            db,
            endpoint,
            courier,
            alerts,
            events,
            other: Other::default(),
            task: None,
            last: None,
            statements: Nag::new(SAID),
            attempts: Nag::new(SAID),
        }
    }

    /// The time between two looks at the row, or two rounds of the deliverer. It grows with the fleet for those that only
    /// look.
    fn every(&self) -> Duration {
        let beat = self.member.settings.beat_interval;
        let times = if self.task.is_some() { 1 } else { (self.member.peers() / LOOKERS).clamp(1, LOOKS_MOST) };
        beat.saturating_mul(u32::try_from(times).unwrap_or(1))
    }

    /// After how many looks of this pod a deliverer stands still: it counts a round in each beat interval, but not during
    /// an attempt.
    fn stuck_after(&self) -> u32 {
        let still = self.member.settings.beat_interval.saturating_mul(3) + self.endpoint.timeout.saturating_mul(2);
        reports::looks_needed(still, self.every()).max(3)
    }

    async fn round(&mut self) -> Result<()> {
        let own = self.member.incarnation();
        if self.task.as_ref().is_some_and(|task| task.own != own) {
            self.task = None;
        }
        if self.task.is_none() && !self.take_over(own).await? {
            return Ok(());
        }
        // What was heard so far is in the log, which is read now.
        while !matches!(self.alerts.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
        while self.member.is_attached() && !self.has_to_wait() {
            match self.step().await? {
                Step::Go => {}
                Step::Idle => return Ok(()),
                Step::Lost => {
                    self.task = None;
                    return Ok(());
                }
            }
        }
        // While a delivery waits for its next attempt, the others must see that this pod does not stand still.
        if let Some(task) = &self.task
            && !self.note(task.own, task.reached).await?
        {
            self.task = None;
        }
        Ok(())
    }

    /// Whether the first alert waits for its next attempt.
    fn has_to_wait(&self) -> bool {
        self.task.as_ref().and_then(|task| task.not_before).is_some_and(|at| Instant::now() < at)
    }

    /// Makes this pod the deliverer, if there is none or it stands still.
    async fn take_over(&mut self, own: Incarnation) -> Result<bool> {
        let name = &*self.endpoint.name;
        let mut stuck = None;
        if let Some(seen) = webhooks::look(&self.db, name).await?
            && seen.is_held
            && seen.incarnation != Some(own)
        {
            let (every, needed) = (self.every(), self.stuck_after());
            self.other.see(seen.incarnation, seen.rounds, clock::now(), every);
            if self.other.looks < needed {
                return Ok(false);
            }
            stuck = Some(seen.rounds);
        }
        self.other = Other::default();
        let Some(reached) = webhooks::hold(&self.db, own, name, stuck).await? else { return Ok(false) };
        tracing::info!(
            target: "podlock", event = "webhook_taken", pod = %self.member.pod_id, incarnation = %own, webhook = name,
            idx = reached.idx, "delivers the alerts to the webhook from now on"
        );
        self.task = Some(Task { own, reached, page: VecDeque::new(), page_end: reached.idx, not_before: None });
        Ok(true)
    }

    /// Writes the position. Returns false if this pod does not deliver any more, or cannot write it now.
    async fn note(&mut self, own: Incarnation, reached: Reached) -> Result<bool> {
        match webhooks::note(&self.db, own, &self.endpoint.name, reached).await? {
            Moved::Written => Ok(true),
            Moved::Locked => {
                let locked = crate::error::Error::new(
                    crate::error::ErrorKind::Timeout,
                    format!("webhook {}: another transaction has locked its row", self.endpoint.name),
                )
                .state("no alert was sent")
                .help("end that transaction; the pod tries again");
                Err(locked)
            }
            Moved::Lost => Ok(false),
        }
    }

    /// Reads the next page, or makes one attempt.
    async fn step(&mut self) -> Result<Step> {
        let Some(task) = &mut self.task else { return Ok(Step::Lost) };
        task.not_before = None;
        let Some(alert) = task.page.front().cloned() else { return self.turn_the_page().await };
        // Counted before it begins: whoever takes over goes on counting.
        let attempt = alerts::next_attempt(task.reached.attempts, &self.endpoint.retries);
        let (own, begun) = (task.own, Reached { attempts: attempt, ..task.reached });
        if !self.note(own, begun).await? {
            return Ok(Step::Lost);
        }
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + GAP).await;
        }
        let outcome = tokio::select! {
            biased;
            () = self.member.over(own) => return Ok(Step::Lost),
            outcome = self.courier.deliver(&alert) => outcome,
        };
        self.last = Some(Instant::now());
        let then = self.judge(&alert, attempt, outcome);
        let Some(task) = &mut self.task else { return Ok(Step::Lost) };
        match then {
            Then::Again(delay) => {
                task.reached.attempts = attempt;
                task.not_before = Some(Instant::now() + delay);
            }
            Then::Delivered | Then::GiveUp => {
                task.page.pop_front();
                let idx = if task.page.is_empty() { task.page_end } else { alert.idx };
                task.reached = Reached { idx, attempts: 0 };
            }
        }
        Ok(Step::Go)
    }

    /// Reads the next page of the log, and writes how far this pod is.
    async fn turn_the_page(&mut self) -> Result<Step> {
        let Some(task) = &self.task else { return Ok(Step::Lost) };
        let (own, mut reached) = (task.own, task.reached);
        let page = webhooks::page(&self.db, reached.idx).await?;
        match alerts::position(reached.idx, page.snapshot, page.log_end) {
            Position::Whole => {}
            Position::Cut { snapshot } => self.report_cut(reached.idx, snapshot),
            Position::Beyond => {
                self.report_cut(reached.idx, page.log_end);
                reached = Reached { idx: page.log_end, attempts: 0 };
            }
        }
        let end = page.end.unwrap_or(reached.idx);
        if page.alerts.is_empty() {
            reached.idx = end;
        }
        let is_idle = page.alerts.is_empty() && end >= page.log_end;
        if let Some(task) = &mut self.task {
            (task.reached, task.page, task.page_end) = (reached, page.alerts.into(), end);
        }
        if !self.note(own, reached).await? {
            return Ok(Step::Lost);
        }
        Ok(if is_idle { Step::Idle } else { Step::Go })
    }

    /// Decides what follows an attempt, logs it and counts it.
    fn judge(&mut self, alert: &Alert, attempt: u32, outcome: std::result::Result<(), Undelivered>) -> Then {
        let met = match &outcome {
            Ok(()) => Met::Accepted,
            Err(undelivered) if undelivered.is_final => Met::Refused,
            Err(_) => Met::Failed,
        };
        let then = alerts::then(met, attempt, &self.endpoint.retries, fastrand::f64());
        let (pod, webhook) = (&self.member.pod_id, &*self.endpoint.name);
        let count = |outcome| metrics::counter!(meters::WEBHOOK_DELIVERIES, "outcome" => outcome).increment(1);
        let why = outcome.err().map(|undelivered| undelivered.why).unwrap_or_default();
        match then {
            Then::Delivered => {
                self.attempts.passed();
                count("delivered");
            }
            Then::GiveUp => {
                count("given_up");
                tracing::error!(
                    target: "podlock", event = "webhook_given_up", pod = %pod, webhook, alert = %alert.id,
                    kind = %alert.kind, attempt, error = why, "the alert was not delivered; the next one follows"
                );
            }
            Then::Again(delay) => {
                count("failed");
                if let Some(times) = self.attempts.failed(clock::now(), Duration::ZERO) {
                    let wait_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(
                        target: "podlock", event = "webhook_failed", pod = %pod, webhook, alert = %alert.id, attempt,
                        wait_ms, times, error = why, "the alert was not delivered; the pod tries again"
                    );
                }
            }
        }
        then
    }

    /// Alerts between two positions may be lost.
    fn report_cut(&self, from: i64, to: i64) {
        metrics::counter!(meters::WEBHOOK_CUTS).increment(1);
        tracing::warn!(
            target: "podlock", event = "webhook_log_cut", pod = %self.member.pod_id, webhook = &*self.endpoint.name, from,
            to, "the log was cut before all of it was delivered; alerts between the two positions are lost"
        );
    }
}

impl Other {
    /// Counts a look in which the rounds stood still, if about an interval has passed since the last one.
    fn see(&mut self, holder: Option<Incarnation>, rounds: i64, now: Moment, every: Duration) {
        if (holder, rounds) != (self.holder, self.rounds) {
            *self = Self { holder, rounds, looks: 0, counted: Some(now) };
        } else if reports::counts(self.counted, now, every) {
            (self.looks, self.counted) = (self.looks + 1, Some(now));
        }
    }
}

impl<C: Courier> Part for Deliverer<C> {
    const NAME: &'static str = "the webhook";

    fn first(&self) -> Next {
        Next::Within(Duration::ZERO)
    }

    /// The deliverer is woken by an alert, and by the time of its next attempt. The others are woken when the deliverer
    /// leaves the roster.
    async fn woken(&mut self) {
        match &self.task {
            Some(Task { not_before: Some(at), .. }) => tokio::time::sleep_until(*at).await,
            Some(_) => {
                // What was missed is in the log.
                if matches!(self.alerts.recv().await, Err(RecvError::Closed)) {
                    std::future::pending::<()>().await;
                }
            }
            None => {
                let holder = self.other.holder;
                let is_holder = |incarnation| Some(incarnation) == holder;
                loop {
                    match self.events.recv().await {
                        Ok(PodEvent::Buried { incarnation, .. }) if is_holder(incarnation) => break,
                        Ok(_) | Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
                tokio::time::sleep(neighbours::spread(EACH, self.member.peers(), fastrand::f64())).await;
            }
        }
    }

    fn period(&self) -> Option<Duration> {
        Some(self.every().mul_f64(0.9 + 0.2 * fastrand::f64()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        if !self.member.is_attached() {
            self.task = None;
            return Next::Wait;
        }
        let Err(e) = self.round().await else {
            self.statements.passed();
            return Next::Wait;
        };
        if let Some(times) = self.statements.failed(clock::now(), self.member.settings.lease) {
            tracing::warn!(
                target: "podlock", event = "webhook_delayed", pod = %self.member.pod_id, webhook = &*self.endpoint.name,
                error = %e, times, "alerts wait; the pod tries again"
            );
        }
        Next::BackOff
    }
}
