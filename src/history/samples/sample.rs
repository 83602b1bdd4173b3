//! One sample.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::id::Incarnation;
use crate::membership::Phase;
use crate::protocol::Moment;
use crate::protocol::health::{self, Health, Measured};
use crate::store::samples::SampleRow;

/// About how many bytes a sample takes without its gauges and details.
const BASE_BYTES: usize = 160;
/// About how many bytes a gauge takes besides its name.
const GAUGE_BYTES: usize = 64;

/// The application's JSON, and its length as text.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) value: Value,
    pub(super) bytes: usize,
}

/// What a pod measured of itself at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) incarnation: Incarnation,
    /// From 1, by the incarnation.
    pub(super) number: i64,
    pub(super) taken: Moment,
    pub(super) phase: Phase,
    pub(super) measured: Measured,
    /// In bytes.
    pub(super) memory_available: Option<i64>,
    pub(super) running_runs: usize,
    pub(super) gauges: BTreeMap<String, Option<f64>>,
    pub(super) details: Option<Arc<Details>>,
}

impl Sample {
    pub(super) fn health(&self) -> Health {
        health::health(self.measured)
    }

    /// About how much memory the sample takes. Details that several samples share count in each.
    pub(super) fn bytes(&self) -> usize {
        let gauges: usize = self.gauges.keys().map(|name| name.len() + GAUGE_BYTES).sum();
        BASE_BYTES + gauges + self.details.as_ref().map_or(0, |details| details.bytes)
    }

    /// The row to write at `now`. `status` is the name of the sample's phase.
    pub(super) fn row<'a>(&'a self, now: Moment, status: &'a str) -> SampleRow<'a> {
        SampleRow {
            number: self.number,
            age: now.saturating_sub(self.taken).as_secs_f64(),
            status,
            health: self.health().as_str(),
            cpu_usage: self.measured.cpu_usage,
            memory_pressure: self.measured.memory_pressure,
            memory_available: self.memory_available,
            running_runs: i32::try_from(self.running_runs).unwrap_or(i32::MAX),
            runtime_lag_ms: self.measured.runtime_lag_ms,
            gauges: Some(&self.gauges).filter(|gauges| !gauges.is_empty()),
            details: self.details.as_ref().map(|details| &details.value),
        }
    }
}
