//! What every handler of a request has at hand.

use std::sync::Arc;

use serde_json::Value;

use crate::Pod;

type Validate = dyn Fn(&str, &Value) -> Result<(), String> + Send + Sync;

/// What every handler has at hand.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) pod: Pod,
    /// Looks at kind and input before a run is started.
    pub(super) validate: Arc<Validate>,
}
