//! The registry of workers: what one pod registers, every pod sees.
//!
//! A worker is something at a URL that a pod fronts, such as a model server. The pod that registers a worker is its
//! owner. The owner probes the worker and writes its row. Only the column `liveness` has another writer, the monitor. Each
//! pod keeps a copy of all workers in memory, which answers without I/O. When the owner dies, its workers are gone for
//! every pod that hears of the burial.
//!
//! * `table`: the copy; `local`: the workers of this pod. `writing`, `reading` and `comparing`: what passes between the
//!   copy and the store.
//! * `publish` writes, `copy` reads and compares, `monitor` writes the liveness, `probing` probes.
//! * `select` chooses. Taking a lease locks nothing. `available` reads the list that was made for its filter; only the
//!   first call after a change locks the table, to make the list again.
//!
//! Architecture invariant: the store is the truth, a notice only says "read", and no decision compares clocks.

mod check;
mod comparing;
mod copy;
mod entry;
mod event;
mod hook;
mod local;
mod monitor;
mod probing;
mod publish;
mod reading;
mod select;
mod spec;
mod table;
mod targets;
#[cfg(test)]
mod tests;
mod writing;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodId, WorkerId};
use crate::membership::{Membership, clock};
use crate::nag::Nag;
use crate::pg::pool::Database;
use crate::store::workers::Overview;
use table::Table;

pub(crate) use copy::Copying;
pub(crate) use hook::Hooked;
pub(crate) use monitor::Monitoring;
pub(crate) use probing::Prober;
pub(crate) use publish::Publishing;
pub(crate) use targets::Functions;

pub use crate::protocol::worker::{Health, Liveness, Origin};
pub use check::HealthCheck;
pub use entry::Worker;
pub use event::WorkerEvent;
pub use local::NewWorker;
pub use probing::ProbeRequest;
pub use select::{Available, Filter, Lease};
pub use spec::{Secret, SpecFault, WorkerSpec};

/// How long a failure is quiet: 10 s, which a restart of the database takes. Shorter makes noise at each restart. Longer
/// hides an outage.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the parts of the registry share.
pub(crate) struct Registry {
    member: Arc<Membership>,
    db: Database,
    table: Table,
    /// The service's own probes, and its secrets for the workers of other pods.
    functions: Functions,
    /// Somebody has asked for the registry. Until then it makes no statement.
    used: AtomicBool,
    /// Workers may have changed. A notice, a new session, a replaced process and the first use of the registry wake the
    /// copy. It reads everything that changed, so one wake is enough. The next comparison repairs a lost wake.
    to_read: Notify,
    /// Notices may have been missed. The next read compares the whole copy with the store, and takes this.
    must_compare: AtomicBool,
    /// The registry is used for the first time, no pod is the monitor, or a pod has gone that may have left workers.
    to_monitor: Notify,
    /// How many rounds of writing have ended. [`Workers::published`] waits for it.
    written: watch::Sender<u64>,
    /// How many comparisons have ended. [`Workers::ready`] waits for the first.
    compared: watch::Sender<u64>,
    /// What the last comparison saw of the monitor.
    monitor: Mutex<Monitor>,
    is_monitor: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Monitor {
    is_monitored: bool,
    looks: i64,
}

impl Registry {
    pub(crate) fn new(member: Arc<Membership>, db: Database, functions: Functions) -> Arc<Self> {
        let settings = &member.settings;
        let (every, stale_reports) = (settings.worker_report_interval, settings.worker_stale_reports);
        Arc::new(Self {
            table: Table::new(member.pod_id.clone(), every, stale_reports, settings.worker_probe_imports),
            member,
            db,
            functions,
            used: AtomicBool::new(false),
            to_read: Notify::new(),
            must_compare: AtomicBool::new(false),
            to_monitor: Notify::new(),
            written: watch::Sender::default(),
            compared: watch::Sender::default(),
            monitor: Mutex::default(),
            is_monitor: AtomicBool::new(false),
        })
    }

    fn is_used(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    /// The pod is attached, or hears notices again: it may have missed some, and the server may be another one.
    pub(crate) fn attached(&self) {
        if self.is_used() {
            self.must_compare.store(true, Ordering::Release);
            self.to_read.notify_one();
            self.table.to_write.notify_one();
        }
    }

    /// A notice says that workers have changed.
    pub(crate) fn hear(&self) {
        if self.is_used() {
            self.to_read.notify_one();
        }
    }

    /// A pod was buried: its workers are no longer chosen.
    pub(crate) fn bury(&self, owner: Incarnation) {
        if self.is_used() {
            self.table.hide(owner);
            self.to_monitor.notify_one();
        }
    }

    /// A new process registered under the name of an older one. The older one's workers are gone until the new one
    /// registers them. The copy reads them once more, because an event may be heard late: the rows say which of them are
    /// there.
    pub(crate) fn replaced(&self, pod: &PodId, by: Incarnation) {
        if self.is_used() && self.table.doubt_all_but_those_of(pod, by) {
            self.to_read.notify_one();
            self.to_monitor.notify_one();
        }
    }

    /// Logs a failure of a part. The first ones of an outage are quiet. `what` says what is not done meanwhile.
    fn failed(&self, nag: &mut Nag, error: &Error, what: &'static str) {
        let pod = &self.member.pod_id;
        match nag.failed(clock::now(), PATIENCE) {
            Some(times) => tracing::warn!(
                target: "podlock", event = "workers_delayed", pod = %pod, error = %error, times,
                "{what}; it is tried again and again"
            ),
            None => tracing::debug!(
                target: "podlock", event = "workers_delayed", pod = %pod, error = %error, "{what}; it is tried again"
            ),
        }
    }

    fn note_monitor(&self, overview: &Overview) {
        let now = Monitor { is_monitored: overview.is_monitored, looks: overview.looks };
        *self.monitor.lock().unwrap_or_else(PoisonError::into_inner) = now;
        if !now.is_monitored {
            self.to_monitor.notify_one();
        }
    }

    fn monitor(&self) -> Monitor {
        *self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_monitor(&self, holds: bool) {
        self.is_monitor.store(holds, Ordering::Release);
    }

    fn is_monitor(&self) -> bool {
        self.is_monitor.load(Ordering::Acquire)
    }
}

/// The registry of workers, as one pod sees it. Cheap to clone. Reading it uses no database.
///
/// ```no_run
/// # async fn example(pod: podlock::Pod) -> podlock::Result<()> {
/// use podlock::workers::{Filter, HealthCheck, NewWorker, WorkerSpec};
///
/// let workers = pod.workers();
/// let spec = WorkerSpec::new().kind("llm").model("m");
/// workers.register_or_replace(NewWorker::new("http://10.0.0.7:8000").spec(spec).health_check(HealthCheck::http("/health")))?;
///
/// // On any pod:
/// if let Some(lease) = workers.available(&Filter::new().model("m")).least_in_flight() {
///     println!("send the request to {}", lease.url());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Workers {
    registry: Arc<Registry>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("pod", &self.registry.member.pod_id).finish_non_exhaustive()
    }
}

impl Workers {
    /// The registry of a pod. From the first call on, the pod keeps a copy of all workers.
    pub(crate) fn of(registry: &Arc<Registry>) -> Self {
        if !registry.used.swap(true, Ordering::AcqRel) {
            registry.to_read.notify_one();
            registry.to_monitor.notify_one();
        }
        Self { registry: Arc::clone(registry) }
    }

    /// Registers a worker of this pod. It is published in the background: at once if the pod is attached, or when it is
    /// again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if this pod has registered the URL already, or if something about the worker cannot be
    /// used: its URL, its spec, or its check, which may name a function or a secret that is not there.
    /// [`ErrorKind::TooLarge`] for a spec with more than `worker_spec_max_bytes`. [`ErrorKind::Stopped`].
    pub fn register(&self, new: NewWorker) -> Result<WorkerId> {
        self.put(new, false)
    }

    /// Registers a worker of this pod, in place of one that it has registered under the same URL. The worker keeps its id
    /// and its leases; with the same health check it keeps its health. If another pod has registered the URL as well, this
    /// pod shows its own worker from now on.
    ///
    /// # Errors
    ///
    /// As [`Workers::register`].
    pub fn register_or_replace(&self, new: NewWorker) -> Result<WorkerId> {
        self.put(new, true)
    }

    fn put(&self, new: NewWorker, replaces: bool) -> Result<WorkerId> {
        let Registry { member, table, .. } = &*self.registry;
        if member.root.is_cancelled() {
            return Err(Error::new(ErrorKind::Stopped, format!("pod {} has ended", member.pod_id))
                .state("no worker was registered")
                .help("register it on another pod"));
        }
        let bytes = local::check(&new, member.settings.worker_spec_max_bytes)?;
        self.registry.can_probe(&new)?;
        let url = new.url.clone();
        table.register(member.incarnation(), new, bytes, replaces).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("this pod has registered a worker at {url:?} already"))
                .state("that worker is as it was")
                .help("replace it with register_or_replace, or remove it first")
        })
    }

    /// Removes a worker of this pod. Its leases stay valid. Returns false if there is no worker with this id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the worker belongs to another pod.
    pub fn remove(&self, id: WorkerId) -> Result<bool> {
        match self.registry.table.remove(id) {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => Err(self.foreign(id, "removed")),
        }
    }

    /// Removes the workers of this pod that have failed, and returns them. Those of other pods stay: their owners remove
    /// them.
    pub fn remove_unhealthy(&self) -> Vec<WorkerId> {
        self.registry.table.remove_unhealthy()
    }

    /// Sets the health of a worker of this pod. Probes go on from there, except for [`Health::Draining`]: a draining
    /// worker keeps its leases, gets no new ones, and stays so until its owner says otherwise or removes it. Returns false
    /// if there is no worker with this id.
    ///
    /// # Errors
    ///
    /// As [`Workers::remove`].
    pub fn set_health(&self, id: WorkerId, health: Health) -> Result<bool> {
        match self.registry.table.set_health(id, health) {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => Err(self.foreign(id, "changed")),
        }
    }

    fn foreign(&self, id: WorkerId, what: &str) -> Error {
        let owner = self.get(id).map_or_else(|| "another pod".to_owned(), |w| format!("pod {}", w.owner_pod()));
        tracing::warn!(
            target: "podlock", event = "worker_refused", pod = %self.registry.member.pod_id, worker = %id,
            "a worker of {owner} can only be {what} there"
        );
        Error::new(ErrorKind::InvalidInput, format!("worker {id} belongs to {owner}, and can only be {what} there"))
            .state("the worker is as it was")
            .help("ask its owner")
    }

    /// The worker with this id.
    #[must_use]
    pub fn get(&self, id: WorkerId) -> Option<Worker> {
        self.registry.table.get(id)
    }

    /// All workers of the fleet, by id, whatever their health. Of several with the same URL, one is shown: this pod's own,
    /// or else the one with the lowest id.
    #[must_use]
    pub fn list(&self) -> Vec<Worker> {
        self.registry.table.shown().into_iter().map(Worker).collect()
    }

    /// The workers that match, to choose from.
    #[must_use]
    pub fn available(&self, filter: &Filter) -> Available {
        let table = &self.registry.table;
        table.lists.matching(filter, || table.shown())
    }

    /// What happens to the workers from now on. Best effort: a receiver that lags misses some events.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<WorkerEvent> {
        self.registry.table.events.subscribe()
    }

    /// Resolves when this pod has read all workers once, or has ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self) {
        let mut compared = self.registry.compared.subscribe();
        tokio::select! {
            // The sender lives as long as the registry.
            _ = compared.wait_for(|count| *count > 0) => {}
            () = self.registry.member.root.cancelled() => {}
        }
    }

    /// Resolves when every change of this pod's workers up to now is in the store. Returns false if that takes longer than
    /// `most`: then it is written later.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn published(&self, most: Duration) -> bool {
        let table = &self.registry.table;
        let upto = table.lock().changes;
        let mut written = self.registry.written.subscribe();
        let all = written.wait_for(|_| !table.lock().is_pending(upto));
        tokio::time::timeout(most, all).await.is_ok()
    }

    /// How many bytes the specs and health checks of all workers take, as JSON text.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.registry.table.lock().bytes
    }
}
