//! The workers of this pod: registered, probed, drained and removed here, and nowhere else.

use std::collections::HashSet;
use std::sync::Arc;

use super::check::HealthCheck;
use super::spec::WorkerSpec;
use super::table::{Inner, Parts, Probes, Table};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, WorkerId};
use crate::output::storable;
use crate::protocol::Moment;
use crate::protocol::probing::Counts;
use crate::protocol::reports::{NEVER, Seen};
use crate::protocol::worker::{Health, Origin};

/// A worker that a pod is to register.
#[derive(Clone, Debug)]
#[must_use]
pub struct NewWorker {
    pub(super) url: String,
    pub(super) spec: WorkerSpec,
    pub(super) check: Option<HealthCheck>,
}

impl NewWorker {
    /// A worker at this URL, without a health check: it is ready for as long as its owner says so.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), spec: WorkerSpec::default(), check: None }
    }

    /// Sets what the pod says of the worker.
    pub fn spec(mut self, spec: WorkerSpec) -> Self {
        self.spec = spec;
        self
    }

    /// Sets how the worker is probed. It is pending until its first probe has ended.
    pub fn health_check(mut self, check: HealthCheck) -> Self {
        self.check = Some(check);
        self
    }
}

/// The longest URL: 2,048 bytes. A shorter limit refuses URLs that servers accept. A longer one fills rows and log lines.
const URL_MOST: usize = 2048;

/// Checks a worker before it is registered. Returns the size of its spec and its check.
pub(super) fn check(new: &NewWorker, spec_most: usize) -> Result<usize> {
    let refuse = |kind, fault: String| {
        Error::new(kind, format!("the worker cannot be registered: {fault}")).state("nothing was registered")
    };
    if new.url.len() > URL_MOST {
        let fault = format!("its URL has {} bytes, and {URL_MOST} is the most", new.url.len());
        return Err(refuse(ErrorKind::InvalidInput, fault).help("give the worker a shorter URL"));
    }
    match &new.check {
        Some(check) => super::probing::check_target(&new.url, check)?,
        None => _ = super::probing::check_url(&new.url)?,
    }
    let spec = new.spec.encode();
    let bytes = spec.to_string().len();
    if let Err(fault) = WorkerSpec::decode(spec.clone()) {
        return Err(
            refuse(ErrorKind::InvalidInput, format!("its spec does not decode: {fault}")).help("correct the field")
        );
    }
    if bytes > spec_most {
        let fault = format!("its spec has {bytes} bytes, and {spec_most} (worker_spec_max_bytes) is the most");
        return Err(refuse(ErrorKind::TooLarge, fault)
            .help("keep large parts elsewhere and name their place, or raise the limit on every pod"));
    }
    if let Err(why) = storable(&spec) {
        return Err(refuse(ErrorKind::InvalidInput, format!("its spec cannot be stored: {why}")).help("correct it"));
    }
    let Some(check) = &new.check else { return Ok(bytes) };
    let json = check.to_json();
    storable(&json).map_err(|why| {
        refuse(ErrorKind::InvalidInput, format!("its health check cannot be stored: {why}")).help("correct it")
    })?;
    Ok(bytes + json.to_string().len())
}

impl Table {
    /// Registers a worker of this pod. `None`: the pod has registered the URL already, and `replaces` is false. A worker
    /// of another pod with this URL, or a row that a former process of this pod left, gives way.
    pub(super) fn register(&self, own: Incarnation, new: NewWorker, bytes: usize, replaces: bool) -> Option<WorkerId> {
        let id = WorkerId::of(&self.pod, &new.url);
        let mut inner = self.lock();
        let former = inner.workers.get(&id);
        if !replaces && former.is_some_and(|held| held.entry.origin == Origin::Local) {
            return None;
        }
        let parts = Parts {
            id,
            url: new.url.into(),
            origin: Origin::Local,
            owner_pod: self.pod.clone(),
            owner: own,
            spec: Arc::new(new.spec),
            undecoded: None,
            check: new.check.map(Arc::new),
            bytes,
        };
        let reported = inner.reports.get(&own).copied();
        let mut held = parts.held(former, Seen::first(NEVER, false), self.needed(reported));
        match former.filter(|f| f.entry.origin == Origin::Local && f.entry.check == held.entry.check) {
            // The same check of the same URL: its result holds.
            Some(former) => {
                (held.own, held.probes, held.seen) = (former.own, former.probes, former.seen);
                (held.has_reported, held.since) = (former.has_reported, former.since);
            }
            None if held.entry.check.is_none() => (held.own, held.has_reported) = (Some(Health::Ready), true),
            // A report that began before does not know the worker, so it does not name it as unprobed.
            None => held.since = reported.map_or(0, |reported| reported.number) + 1,
        }
        let report = inner.report_of(&held);
        held.seen.look(report, false);
        if former.is_none() {
            held.begin();
        }
        self.put(&mut inner, held);
        if let Some(held) = inner.workers.get_mut(&id) {
            self.refresh(held);
        }
        self.changed(&mut inner, id);
        drop(inner);
        self.to_probe.notify_one();
        Some(id)
    }

    /// Removes a worker of this pod. `None`: there is none with this id. `Some(false)`: it belongs to another pod.
    pub(super) fn remove(&self, id: WorkerId) -> Option<bool> {
        let mut inner = self.lock();
        if inner.origin(id)? == Origin::Mesh {
            return Some(false);
        }
        self.remove_own(&mut inner, id);
        Some(true)
    }

    fn remove_own(&self, inner: &mut Inner, id: WorkerId) {
        self.take(inner, id);
        self.changed(inner, id);
        self.to_probe.notify_one();
    }

    /// Removes the workers of this pod that have failed.
    pub(super) fn remove_unhealthy(&self) -> Vec<WorkerId> {
        let mut inner = self.lock();
        let has_failed = |id: &WorkerId| {
            inner.workers[id].entry.origin == Origin::Local && inner.workers[id].own == Some(Health::Failed)
        };
        let failed: Vec<WorkerId> = inner.workers.keys().filter(|id| has_failed(id)).copied().collect();
        for id in &failed {
            self.remove_own(&mut inner, *id);
        }
        failed
    }

    /// Sets the health of a worker of this pod. `None`: there is none with this id. `Some(false)`: it belongs to another
    /// pod.
    pub(super) fn set_health(&self, id: WorkerId, health: Health) -> Option<bool> {
        let mut inner = self.lock();
        let held = inner.workers.get_mut(&id)?;
        if held.entry.origin == Origin::Mesh {
            return Some(false);
        }
        held.probes.counts = Counts::default();
        held.has_reported = true;
        self.own_verdict(&mut inner, id, health);
        Some(true)
    }

    /// This pod probes these workers, and no others. An import that it probes is pending until its first probe here has
    /// ended. One that it does not probe any more is as its owner sees it.
    pub(super) fn probes(&self, probed: HashSet<WorkerId>) {
        let mut inner = self.lock();
        for held in inner.workers.values_mut().filter(|held| held.entry.origin == Origin::Mesh) {
            let is_probed = probed.contains(&held.entry.id);
            if is_probed != held.own.is_some() {
                held.own = is_probed.then_some(Health::Pending);
                held.probes = Probes::default();
                self.refresh(held);
            }
        }
    }

    /// A probe of a worker has ended.
    pub(super) fn probed(&self, id: WorkerId, passed: bool, now: Moment) {
        let mut inner = self.lock();
        let Some(held) = inner.workers.get_mut(&id) else { return };
        let Some(check) = held.entry.check.clone() else { return };
        held.probes.last = Some(now);
        let before = held.own.unwrap_or(Health::Pending);
        held.probes.counts.note(passed);
        let health = held.probes.counts.health(before, &check.thresholds());
        if held.entry.origin == Origin::Mesh {
            // A result of the time before this pod ceased to probe it.
            if held.own.is_none() {
                return;
            }
            held.own = Some(health);
            self.refresh(held);
            return;
        }
        let is_first = !std::mem::replace(&mut held.has_reported, true);
        if is_first || health != before {
            self.own_verdict(&mut inner, id, health);
        }
    }

    /// Records what this pod says of its own worker, and has it written.
    fn own_verdict(&self, inner: &mut Inner, id: WorkerId, health: Health) {
        let Some(report) = inner.workers.get(&id).map(|held| inner.report_of(held)) else { return };
        if let Some(held) = inner.workers.get_mut(&id) {
            held.own = Some(health);
            held.seen.look(report, false);
            self.refresh(held);
            self.changed(inner, id);
        }
    }
}
