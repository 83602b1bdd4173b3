//! What brings an alert to its endpoint.

use crate::alert::Alert;

/// Brings alerts to one endpoint.
pub(crate) trait Courier: Send + Sync + 'static {
    /// Makes one attempt. It must end within the time that [`Endpoint::timeout`](super::Endpoint::timeout) says, because
    /// other pods take a deliverer over that stands still for much longer. Dropping the future ends the attempt; the
    /// receiver has the alert or not.
    fn deliver(&self, alert: &Alert) -> impl Future<Output = Result<(), Undelivered>> + Send;
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Undelivered {
    /// The receiver judged this alert, and would refuse it again.
    pub(crate) is_final: bool,
    /// In words, without anything secret.
    pub(crate) why: String,
}
