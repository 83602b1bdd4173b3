//! Calls the service's callback for each alert that this pod hears.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::alert::Alert;
use crate::background::part::{Next, Part};
use crate::membership::Membership;
use crate::meters;

/// What the service does at each alert.
pub(crate) type Hook = dyn Fn(&Alert) + Send + Sync;

/// Calls the callback, one alert after another, on the application's runtime.
pub(crate) struct Hooked {
    member: Arc<Membership>,
    alerts: Option<(Arc<Hook>, Receiver<Alert>)>,
    /// The alert that comes next.
    next: Option<Alert>,
}

impl Hooked {
    pub(crate) fn new(member: Arc<Membership>, hook: Option<Arc<Hook>>) -> Self {
        let alerts = hook.map(|hook| (hook, member.alerts.subscribe()));
        Self { member, alerts, next: None }
    }
}

impl Part for Hooked {
    const NAME: &'static str = "the hook of alerts";

    fn first(&self) -> Next {
        if self.alerts.is_some() { Next::Wait } else { Next::Never }
    }

    async fn woken(&mut self) {
        let Some((_, alerts)) = &mut self.alerts else { return std::future::pending().await };
        match alerts.recv().await {
            Ok(alert) => self.next = Some(alert),
            Err(RecvError::Lagged(missed)) => {
                metrics::counter!(meters::ALERTS_MISSED).increment(missed);
                tracing::warn!(
                    target: "podlock", event = "alert_hook_lagged", pod = %self.member.pod_id, missed,
                    "the callback for alerts is too slow, and missed some; the event log has them"
                );
            }
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    async fn work(&mut self) -> Next {
        if let (Some((hook, _)), Some(alert)) = (&self.alerts, self.next.take())
            && std::panic::catch_unwind(AssertUnwindSafe(|| hook(&alert))).is_err()
        {
            tracing::error!(
                target: "podlock", event = "alert_hook_panicked", pod = %self.member.pod_id, alert = %alert.id,
                "the callback for alerts panicked; the next alert calls it again"
            );
        }
        Next::Wait
    }
}
