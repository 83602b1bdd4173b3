//! What a worker of the registry is.

use super::named;

named! {
    /// The health of a worker, as its owner judges it.
    pub enum Health {
        /// No probe has decided yet.
        Pending = "pending",
        /// It answers, but not as it should, or it does not answer.
        NotReady = "not_ready",
        /// It answers as it should.
        Ready = "ready",
        /// It has not been ready for so long that nobody should wait for it.
        Failed = "failed",
        /// It finishes what it has, and gets nothing new.
        Draining = "draining",
    }
}
