//! The state that every request handler has.

use std::sync::Arc;

use serde_json::Value;

use crate::Pod;

type Validate = dyn Fn(&str, &Value) -> Result<(), String> + Send + Sync;

/// The state that every request handler has.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) pod: Pod,
    /// Checks kind and input before a run is started.
    pub(super) validate: Arc<Validate>,
}
