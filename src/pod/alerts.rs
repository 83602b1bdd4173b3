//! Who is told of alerts: the callback of the service, and webhooks.

use std::sync::Arc;

use super::{Pod, PodBuilder};
use crate::alert::Alert;

impl PodBuilder {
    /// Calls `hook` for each alert that this pod hears: a lost pod, a quarantined run, inactive workers (`docs/alerts.md`).
    /// A clean stop is no alert.
    ///
    /// Every pod hears every alert, also one about its own former incarnation, so every pod calls its hook. Delivery is best
    /// effort, as [`Pod::events`] is: a pod that is away for long may miss alerts. The calls follow one another, on the
    /// application's runtime. The hook must not block: hand the work to a task. One that is too slow misses alerts, which is
    /// logged and counted. A panic is logged, and the next alert calls the hook again.
    pub fn on_alert<F>(mut self, hook: F) -> Self
    where
        F: Fn(&Alert) + Send + Sync + 'static,
    {
        self.alert_hook = Some(Arc::new(hook));
        self
    }
}

#[cfg(feature = "http")]
impl Pod {
    /// Begins to deliver alerts to an endpoint, until the pod ends.
    pub(crate) fn deliver_alerts<C: crate::history::alerts::Courier>(
        &self,
        endpoint: crate::history::alerts::Endpoint,
        courier: C,
    ) -> crate::error::Result<()> {
        use crate::error::{Error, ErrorKind};
        let shared = &self.shared;
        // Both would be the same incarnation, and so both would be the deliverer.
        if !shared.add_webhook(&endpoint.name) {
            let name = &endpoint.name;
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("this pod has a webhook of the name {name:?} already"),
            )
            .state("the second one was not started")
            .help("give each webhook a name of its own"));
        }
        let (member, db) = (Arc::clone(&shared.member), shared.engine.db.clone());
        shared.spawn(crate::history::alerts::Deliverer::new(member, db, endpoint, courier));
        Ok(())
    }
}
