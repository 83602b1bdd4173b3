//! One probe: what a check says, done once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use uuid::Uuid;

use super::failure::ProbeFailure;
#[cfg(feature = "http")]
use super::get;
use super::{ProbeFunction, Target};
#[cfg(feature = "http")]
use crate::fetch::Tls;
use crate::fetch::{Dialer, Limit};
use crate::id::WorkerId;
use crate::protocol::failures::beginning;
use crate::workers::check::Means;

/// What all probes of a pod share.
pub(super) struct Tools {
    dialer: Dialer,
    #[cfg(feature = "http")]
    tls: Tls,
}

impl Tools {
    pub(super) fn new() -> Self {
        Self {
            dialer: Dialer::new(),
            #[cfg(feature = "http")]
            tls: Tls::default(),
        }
    }

    /// Trusts these authorities alone.
    #[cfg(all(test, feature = "http"))]
    pub(super) fn trusting(roots: rustls::RootCertStore) -> Self {
        Self { dialer: Dialer::new(), tls: Tls::trusting(roots) }
    }
}

/// What a function of the service gets when it probes a worker.
#[derive(Clone)]
pub struct ProbeRequest {
    worker: Uuid,
    url: Arc<str>,
    timeout: Duration,
    secrets: Arc<BTreeMap<String, SecretString>>,
}

impl ProbeRequest {
    /// The id of the worker.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        WorkerId::from(self.worker)
    }

    /// The URL of the worker.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How long the probe may take. After this time the function's future is dropped, and the probe has failed.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The worker's secret of this name, if this pod has it.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<&str> {
        self.secrets.get(name).map(|secret| secret.expose_secret())
    }
}

impl fmt::Debug for ProbeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeRequest").field("worker", &self.worker).field("url", &self.url).finish_non_exhaustive()
    }
}

/// Probes the target once. `function` is the one that the check names.
pub(super) async fn probe(target: &Target, function: Option<ProbeFunction>, tools: &Tools) -> Result<(), ProbeFailure> {
    let limit = Limit::begin(target.check.time_limit());
    match target.check.means() {
        Means::Function(name) => {
            let Some(function) = function else {
                return Err(impossible(format!("the service has registered no probe function {name:?}")));
            };
            let request = ProbeRequest {
                worker: target.worker,
                url: Arc::clone(&target.url),
                timeout: target.check.time_limit(),
                secrets: Arc::clone(&target.secrets),
            };
            let said = limit.wait("waiting for the function", function(request)).await?;
            said.map_err(|why| ProbeFailure::Function { why: beginning(&why).into_owned() })
        }
        Means::Tcp => Ok(tools.dialer.connect(&url_of(target)?, limit).await.map(drop)?),
        #[cfg(feature = "http")]
        Means::Http(path) => get::probe(target, &url_of(target)?, path, (&tools.dialer, &tools.tls), limit).await,
        #[cfg(not(feature = "http"))]
        Means::Http(_) => Err(impossible(super::address::NO_HTTP.to_owned())),
    }
}

fn url_of(target: &Target) -> Result<Url, ProbeFailure> {
    Url::parse(&target.url).map_err(|e| impossible(format!("its URL cannot be read: {e}")))
}

fn impossible(why: String) -> ProbeFailure {
    ProbeFailure::Impossible { why }
}
