//! The prober: one part of the pod that probes the workers which the registry gives it.
//!
//! A round takes the changes of the registry, hands over the results of the probes that have ended, and begins the
//! probes that are due ([`Schedule`]), each as a task of its own. A round never waits, so a worker that hangs delays no
//! other, as long as a slot is free. A function of the service that panics ends its own task only.
//!
//! A worker may be removed, or may change, while its probe is under way. Then the task is aborted. It may have ended
//! already, with its result in the set of tasks. So a result counts only if its task is still the worker's own.
//!
//! Invariant: nothing here decides the health of a worker, or knows the registry but for [`Targets`].

mod address;
mod failure;
#[cfg(feature = "http")]
mod get;
mod probe;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use address::{check_target, check_url};
pub(crate) use failure::ProbeFailure;
pub use probe::ProbeRequest;

use crate::background::part::{Next, Part};
use crate::protocol::Moment;
use crate::protocol::failures::beginning;
use crate::protocol::probing::Schedule;
use crate::workers::check::{HealthCheck, Means};
use probe::Tools;

/// A function of the service that probes a worker. An error says in words what is wrong with the worker.
pub(crate) type ProbeFunction = Arc<dyn Fn(ProbeRequest) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What the prober needs of the registry. No method may block or panic.
pub(crate) trait Targets: Send + Sync + 'static {
    /// Resolves when the set of workers to probe may have changed since this method last resolved. A change while
    /// nobody waits is kept for the next call, as by [`tokio::sync::Notify::notify_one`]: a change that is lost
    /// leaves a removed worker probed. The health of a worker is no such change, or each result would make the
    /// prober read all workers again.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a call that was dropped takes no change with it.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// The workers to probe now: the owner's own, and imports if this pod probes imports and has their secrets and
    /// functions. The prober compares URL and check with those it knows, by value. If one of them has changed, the
    /// worker counts as new. New secrets are used from the next probe on.
    fn targets(&self) -> Vec<Target>;

    /// A probe has ended. The registry decides the health by [`crate::protocol::probing::Counts`]. It must ignore a
    /// worker that it has removed, because the prober may not know yet.
    fn probed(&self, worker: Uuid, result: Result<(), ProbeFailure>);

    /// The service's function of this name. Asked before each probe.
    fn function(&self, name: &str) -> Option<ProbeFunction>;
}

/// A worker to probe.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) worker: Uuid,
    pub(crate) url: Arc<str>,
    pub(crate) check: Arc<HealthCheck>,
    pub(crate) secrets: Arc<BTreeMap<String, SecretString>>,
}

impl Target {
    /// Whether a probe of the one says nothing of the other.
    fn differs_from(&self, other: &Self) -> bool {
        let is_same_check = Arc::ptr_eq(&self.check, &other.check) || self.check == other.check;
        self.url != other.url || !is_same_check
    }
}

/// Probes the workers of the registry until the pod ends.
pub(crate) struct Prober<T> {
    targets: Arc<T>,
    /// The most probes at once.
    most: usize,
    tools: Arc<Tools>,
    /// The moments of the schedule count from here.
    origin: Instant,
    schedule: Schedule,
    known: HashMap<Uuid, Known>,
    tasks: JoinSet<Result<(), ProbeFailure>>,
    /// Whose probe a task is. The task of a worker that was removed is not here, and still takes a slot until it has
    /// ended.
    under_way: HashMap<Id, Uuid>,
    /// A probe that ended while the part waited.
    ended: Option<Ended>,
    is_stale: bool,
}

type Ended = Result<(Id, Result<(), ProbeFailure>), JoinError>;

struct Known {
    target: Target,
    task: Option<AbortHandle>,
    /// The failure that was logged last, if no probe has succeeded since.
    said: Option<ProbeFailure>,
}

impl<T: Targets> Prober<T> {
    /// Makes at most `most` probes at once, and at least one.
    pub(crate) fn new(targets: Arc<T>, most: usize) -> Self {
        Self {
            targets,
            most: most.max(1),
            tools: Arc::new(Tools::new()),
            origin: Instant::now(),
            schedule: Schedule::default(),
            known: HashMap::new(),
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            ended: None,
            is_stale: true,
        }
    }

    fn now(&self) -> Moment {
        self.origin.elapsed()
    }

    fn has_slot(&self) -> bool {
        self.tasks.len() < self.most
    }

    /// Takes the workers of the registry. Those that are gone or have changed lose the probe that is under way.
    fn take_changes(&mut self) {
        let wanted: HashMap<Uuid, Target> =
            self.targets.targets().into_iter().map(|target| (target.worker, target)).collect();
        let is_outdated =
            |known: &Known| wanted.get(&known.target.worker).is_none_or(|target| target.differs_from(&known.target));
        for (worker, known) in self.known.extract_if(|_, known| is_outdated(known)) {
            self.schedule.forget(worker);
            if let Some(task) = known.task {
                self.under_way.remove(&task.id());
                task.abort();
            }
        }
        let intervals: Vec<_> = wanted.values().map(|t| (t.worker, t.check.interval_of_probes())).collect();
        self.schedule.add(&intervals, self.now(), fastrand::f64);
        for (worker, target) in wanted {
            match self.known.get_mut(&worker) {
                Some(known) => known.target = target,
                None => _ = self.known.insert(worker, Known { target, task: None, said: None }),
            }
        }
    }

    /// Hands the result of a probe to the registry, unless the worker has been removed since.
    fn take_result(&mut self, ended: Ended) {
        let (id, result) = match ended {
            Ok(ended) => ended,
            Err(e) => (e.id(), Err(ProbeFailure::Panicked { why: words_of(e) })),
        };
        let Some(worker) = self.under_way.remove(&id) else { return };
        self.schedule.ended(worker, self.now(), fastrand::f64());
        if let Some(known) = self.known.get_mut(&worker) {
            known.task = None;
            known.log(&result);
        }
        self.targets.probed(worker, result);
    }

    fn begin_due(&mut self) {
        let slots = self.most.saturating_sub(self.tasks.len());
        for worker in self.schedule.take(self.now(), slots) {
            let Some(known) = self.known.get_mut(&worker) else { continue };
            let target = known.target.clone();
            let function = match target.check.means() {
                Means::Function(name) => self.targets.function(name),
                Means::Http(_) | Means::Tcp => None,
            };
            let tools = Arc::clone(&self.tools);
            let task = self.tasks.spawn(async move { probe::probe(&target, function, &tools).await });
            self.under_way.insert(task.id(), worker);
            known.task = Some(task);
        }
    }
}

impl<T: Targets> Part for Prober<T> {
    const NAME: &'static str = "the prober of workers";

    fn first(&self) -> Next {
        Next::Within(std::time::Duration::ZERO)
    }

    async fn woken(&mut self) {
        // Without a free slot, only the end of a probe allows another one.
        let due = self.schedule.due().filter(|_| self.has_slot()).map(|due| self.origin + due);
        tokio::select! {
            biased;
            () = self.targets.changed() => self.is_stale = true,
            Some(ended) = self.tasks.join_next_with_id() => self.ended = Some(ended),
            () = tokio::time::sleep_until(due.unwrap_or(self.origin)), if due.is_some() => {}
        }
    }

    async fn work(&mut self) -> Next {
        if std::mem::take(&mut self.is_stale) {
            self.take_changes();
        }
        while let Some(ended) = self.ended.take().or_else(|| self.tasks.try_join_next_with_id()) {
            self.take_result(ended);
        }
        self.begin_due();
        Next::Wait
    }

    fn stopped(&mut self) {
        self.tasks.abort_all();
    }
}

impl Known {
    /// Logs what has changed since the last line, and not each probe.
    fn log(&mut self, result: &Result<(), ProbeFailure>) {
        let Target { worker, url, .. } = &self.target;
        match result {
            _ if !is_news(self.said.as_ref(), result) => return,
            Err(failure) => tracing::warn!(
                target: "podlock", event = "probe_failed", %worker, %url, error = %failure, "a probe of a worker failed"
            ),
            Ok(()) => tracing::info!(
                target: "podlock", event = "probe_passed", %worker, %url, "a worker answers its probes again"
            ),
        }
        self.said = result.as_ref().err().cloned();
    }
}

/// Whether a result differs from what was said last of the worker. A success after nothing is no news.
fn is_news(said: Option<&ProbeFailure>, result: &Result<(), ProbeFailure>) -> bool {
    match (said, result) {
        (None, result) => result.is_err(),
        (Some(_), Ok(())) => true,
        (Some(said), Err(failure)) => !said.is_like(failure),
    }
}

/// What a panic says.
fn words_of(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "the task was ended".to_owned() };
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    beginning(text.unwrap_or("no message")).into_owned()
}
