//! How well a pod is, by what its samples measure.

use super::named;

named! {
    /// How well a pod is, the best first. The order is that of severity, so the worst of several is their maximum.
    pub enum Health {
        /// Nothing is short.
        Nominal = "nominal",
        /// Something is used a lot. The pod does its work.
        Fair = "fair",
        /// Something is nearly used up. Work is slower than it should be.
        Serious = "serious",
        /// The pod is about to fail: out of memory, or its runtime stands still.
        Critical = "critical",
    }
}

/// What was measured. `None`: unknown, which makes nothing worse.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// The share of the memory in use: 0 to 1.
    pub memory_pressure: Option<f32>,
    /// The share of the processors in use: 0 to 1.
    pub cpu_usage: Option<f32>,
    /// How late the runtime woke a timer, in milliseconds.
    pub runtime_lag_ms: Option<f32>,
}

/// From which share of the memory on a pod is fair, serious, critical. The kernel kills at 1. At 0.97 of 2 GB, 60 MB are
/// left: one large result. Lower thresholds alarm at caches that are in use; higher ones come after the kill.
const MEMORY: [f32; 3] = [0.80, 0.90, 0.97];
/// The same for the processors. A pod that uses all of them is only busy, so this alone is never critical: no value
/// reaches a NaN.
const CPU: [f32; 3] = [0.85, 0.97, f32::NAN];
/// The same for the lag of the runtime, in milliseconds. People notice 100 ms; at 500 ms a ping of a short lease is late; at
/// 2 s the runtime does not run tasks, and the keeper of the pod is about to call it stalled.
const LAG_MS: [f32; 3] = [100.0, 500.0, 2000.0];

/// The health of a pod: the worst of its memory, its processors and its runtime.
#[must_use]
pub fn health(measured: Measured) -> Health {
    let Measured { memory_pressure, cpu_usage, runtime_lag_ms } = measured;
    grade(memory_pressure, MEMORY).max(grade(cpu_usage, CPU)).max(grade(runtime_lag_ms, LAG_MS))
}

fn grade(value: Option<f32>, thresholds: [f32; 3]) -> Health {
    // A value that is a NaN reaches no threshold either.
    let reached = thresholds.into_iter().filter(|threshold| value.is_some_and(|value| value >= *threshold)).count();
    Health::ALL[reached]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_severity() {
        let mut sorted = Health::ALL;
        sorted.sort();
        assert_eq!(sorted.map(Health::as_str), ["nominal", "fair", "serious", "critical"]);
        assert!(Health::Serious > Health::Fair, "and not that of the alphabet with critical first");
    }

    #[test]
    fn the_worst_of_memory_processors_and_lag_counts() {
        use Health::{Critical, Fair, Nominal, Serious};
        let cases: [(Option<f32>, Option<f32>, Option<f32>, Health); 17] = [
            (None, None, None, Nominal),
            (Some(0.0), Some(0.0), Some(0.0), Nominal),
            (Some(0.79), Some(0.84), Some(99.0), Nominal),
            (Some(0.80), None, None, Fair),
            (Some(0.90), None, None, Serious),
            (Some(0.97), None, None, Critical),
            (Some(1.5), None, None, Critical),
            (None, Some(0.85), None, Fair),
            (None, Some(0.97), None, Serious),
            (None, Some(1.0), None, Serious),
            (None, None, Some(100.0), Fair),
            (None, None, Some(500.0), Serious),
            (None, None, Some(2000.0), Critical),
            (Some(0.1), Some(1.0), Some(100.0), Serious),
            (Some(0.97), Some(0.1), Some(1.0), Critical),
            (Some(f32::NAN), Some(f32::NAN), Some(f32::NAN), Nominal),
            (None, Some(f32::INFINITY), None, Serious),
        ];
        for (memory_pressure, cpu_usage, runtime_lag_ms, expected) in cases {
            let measured = Measured { memory_pressure, cpu_usage, runtime_lag_ms };
            assert_eq!(health(measured), expected, "{measured:?}");
        }
    }
}
