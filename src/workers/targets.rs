//! Which workers this pod probes, and with what of the service.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::Registry;
use super::check::{HealthCheck, Means};
use super::entry::Entry;
use super::event::WorkerEvent;
use super::local::NewWorker;
use super::probing::{ProbeFailure, ProbeFunction, ProbeRequest, Target, Targets};
use super::spec::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::id::WorkerId;
use crate::membership::clock;
use crate::protocol::worker::Origin;

/// What the service does at each change of a worker.
pub(super) type Hook = dyn Fn(&WorkerEvent) + Send + Sync;
type Secrets = dyn Fn(&str, &str) -> Option<Secret> + Send + Sync;

/// What the service brings for probes.
#[derive(Clone, Default)]
pub(crate) struct Functions {
    probes: BTreeMap<String, ProbeFunction>,
    /// The secret of a worker of another pod, by its URL and the secret's name.
    secrets: Option<Arc<Secrets>>,
    pub(super) hook: Option<Arc<Hook>>,
}

impl Functions {
    pub(crate) fn add_probe<F, Fut>(&mut self, name: String, probe: F)
    where
        F: Fn(ProbeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.probes.insert(name, Arc::new(move |request| Box::pin(probe(request))));
    }

    pub(crate) fn set_hook<F>(&mut self, hook: F)
    where
        F: Fn(&WorkerEvent) + Send + Sync + 'static,
    {
        self.hook = Some(Arc::new(hook));
    }

    pub(crate) fn set_secrets<F>(&mut self, secret: F)
    where
        F: Fn(&str, &str) -> Option<Secret> + Send + Sync + 'static,
    {
        self.secrets = Some(Arc::new(secret));
    }
}

impl Registry {
    /// The worker with what its probe needs. `None`: this pod does not probe it.
    fn target(&self, entry: &Entry) -> Option<Target> {
        let check = entry.check.as_ref()?;
        let known = match entry.origin {
            Origin::Local => entry.spec.secrets.clone(),
            Origin::Mesh if !self.member.settings.worker_probe_imports => return None,
            // Without its function or a secret it follows the health that its owner sees.
            Origin::Mesh if !self.has_function(check) => return None,
            Origin::Mesh => self.secrets_of(&entry.url, check)?,
        };
        let secrets = known.into_iter().map(|(name, secret)| (name, secret.0)).collect();
        let (worker, url) = (entry.id.as_uuid(), Arc::clone(&entry.url));
        Some(Target { worker, url, check: Arc::clone(check), secrets: Arc::new(secrets) })
    }

    /// Refuses a worker of this pod that it could never probe.
    pub(super) fn can_probe(&self, new: &NewWorker) -> Result<()> {
        let Some(check) = &new.check else { return Ok(()) };
        let fault = match check.means() {
            Means::Function(name) if !self.functions.probes.contains_key(name) => Some((
                format!("its health check names the function {name:?}, which this service does not have"),
                "register it with PodBuilder::worker_probe, or correct the name",
            )),
            _ => check.secret_names().find(|name| !new.spec.secrets.contains_key(*name)).map(|name| {
                (
                    format!("its health check names the secret {name:?}, which its spec does not have"),
                    "add the secret to the spec's secrets, or correct the name",
                )
            }),
        };
        match fault {
            None => Ok(()),
            Some((what, help)) => {
                let what = format!("the worker cannot be registered: {what}");
                Err(Error::new(ErrorKind::InvalidInput, what).state("nothing was registered").help(help))
            }
        }
    }

    fn has_function(&self, check: &HealthCheck) -> bool {
        match check.means() {
            Means::Function(name) => self.functions.probes.contains_key(name),
            _ => true,
        }
    }

    /// All secrets that the check names, from the service. `None`: it lacks one.
    fn secrets_of(&self, url: &str, check: &HealthCheck) -> Option<BTreeMap<String, Secret>> {
        let of = |name: &str| self.functions.secrets.as_ref().and_then(|secrets| secrets(url, name));
        check.secret_names().map(|name| of(name).map(|secret| (name.to_owned(), secret))).collect()
    }
}

impl Targets for Registry {
    async fn changed(&self) {
        self.table.to_probe.notified().await;
    }

    fn targets(&self) -> Vec<Target> {
        // The service's own function is asked for secrets, so not under the lock.
        let entries: Vec<Arc<Entry>> = {
            let inner = self.table.lock();
            let checked = inner.workers.values().filter(|held| held.entry.check.is_some());
            checked.map(|held| Arc::clone(&held.entry)).collect()
        };
        let targets: Vec<Target> = entries.iter().filter_map(|entry| self.target(entry)).collect();
        self.table.probes(targets.iter().map(|target| WorkerId::from(target.worker)).collect());
        targets
    }

    fn probed(&self, worker: Uuid, result: Result<(), ProbeFailure>) {
        self.table.probed(WorkerId::from(worker), result.is_ok(), clock::now());
    }

    fn function(&self, name: &str) -> Option<ProbeFunction> {
        self.functions.probes.get(name).cloned()
    }
}
