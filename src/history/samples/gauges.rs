//! What the application adds to the samples and the session of its pod: gauges, counters, details.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;

use super::sample::Details;
use crate::error::{Error, ErrorKind, Result};
use crate::id::Incarnation;

/// The most gauges of a pod, and the most counters. Each is in every sample, or in every write of the session's row.
const NAMES_MAX: usize = 64;
/// The most bytes of a name.
const NAME_MAX_BYTES: usize = 64;
/// The most bytes of the details as text: 8 KB.
const DETAILS_MAX_BYTES: usize = 8 << 10;
/// How deep the details may be nested.
const DETAILS_MAX_DEPTH: usize = 32;
/// The bits of a gauge that was not set yet: a NaN that no calculation gives.
const UNSET: u64 = u64::MAX;

/// A number of the application's own, such as the memory of a GPU. Each sample of the pod has its value
/// (`studio_pod_heartbeats.gauges`). From [`crate::Pod::gauge`].
///
/// When the last handle of a name is dropped, the gauge is in no sample any more. A gauge that was never set is in none.
#[derive(Clone)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets the value. A NaN or an infinity is stored as JSON's `null`, for JSON has no such number.
    pub fn set(&self, value: f64) {
        let value = if value.is_finite() { value } else { f64::NAN };
        self.0.store(value.to_bits(), Ordering::Release);
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gauge").field(&f64::from_bits(self.0.load(Ordering::Acquire))).finish()
    }
}

/// A count of the application's own, such as requests served. The session of the pod has its value
/// (`studio_pod_sessions.counters`), written with the samples. From [`crate::Pod::counter`].
///
/// It only grows, and stays after its handles are dropped. If the process registers again, as a new incarnation, the count
/// begins at 0 in the new session. What was added since the last sample counts in the new session.
#[derive(Clone, Debug)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds to the count.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::AcqRel);
    }
}

/// What the application has added.
#[derive(Debug, Default)]
pub(super) struct Own {
    gauges: Mutex<BTreeMap<String, Weak<AtomicU64>>>,
    counters: Mutex<Counters>,
    details: Mutex<Option<Arc<Details>>>,
}

/// The counters. They belong to the process; what each had when the incarnation began is subtracted.
#[derive(Debug, Default)]
struct Counters {
    all: BTreeMap<String, Counted>,
    of: Option<Incarnation>,
}

#[derive(Debug, Default)]
struct Counted {
    count: Arc<AtomicU64>,
    /// Its value at the last look, and what it was when the incarnation began.
    last: u64,
    base: u64,
}

impl Own {
    pub(super) fn gauge(&self, name: String) -> Result<Gauge> {
        let name = checked("gauge", name)?;
        let mut gauges = lock(&self.gauges);
        if let Some(known) = gauges.get(&name).and_then(Weak::upgrade) {
            return Ok(Gauge(known));
        }
        gauges.retain(|_, gauge| gauge.strong_count() > 0);
        if gauges.len() >= NAMES_MAX {
            return Err(too_many("gauge", &name));
        }
        let gauge = Arc::new(AtomicU64::new(UNSET));
        gauges.insert(name, Arc::downgrade(&gauge));
        Ok(Gauge(gauge))
    }

    pub(super) fn counter(&self, name: String) -> Result<Counter> {
        let name = checked("counter", name)?;
        let mut counters = lock(&self.counters);
        if counters.all.len() >= NAMES_MAX && !counters.all.contains_key(&name) {
            return Err(too_many("counter", &name));
        }
        Ok(Counter(Arc::clone(&counters.all.entry(name).or_default().count)))
    }

    pub(super) fn set_details(&self, value: Option<Value>) -> Result<()> {
        let details = match value {
            None | Some(Value::Null) => None,
            Some(value) => Some(Arc::new(checked_details(value)?)),
        };
        *lock(&self.details) = details;
        Ok(())
    }

    pub(super) fn details(&self) -> Option<Arc<Details>> {
        lock(&self.details).clone()
    }

    /// The gauges that have a handle and were set. A value that is no number is `None`.
    pub(super) fn gauges(&self) -> BTreeMap<String, Option<f64>> {
        let mut gauges = lock(&self.gauges);
        gauges.retain(|_, gauge| gauge.strong_count() > 0);
        let read = |(name, gauge): (&String, &Weak<AtomicU64>)| {
            let bits = gauge.upgrade()?.load(Ordering::Acquire);
            (bits != UNSET).then(|| (name.clone(), Some(f64::from_bits(bits)).filter(|value| value.is_finite())))
        };
        gauges.iter().filter_map(read).collect()
    }

    /// What each counter has counted in this incarnation.
    pub(super) fn counts(&self, of: Incarnation) -> BTreeMap<String, u64> {
        let mut counters = lock(&self.counters);
        let is_new = counters.of.replace(of).is_some_and(|before| before != of);
        let count = |(name, counted): (&String, &mut Counted)| {
            if is_new {
                counted.base = counted.last;
            }
            counted.last = counted.count.load(Ordering::Acquire);
            (name.clone(), counted.last.wrapping_sub(counted.base))
        };
        counters.all.iter_mut().map(count).collect()
    }
}

fn checked(what: &str, name: String) -> Result<String> {
    if (1..=NAME_MAX_BYTES).contains(&name.len()) && !name.contains('\0') {
        return Ok(name);
    }
    let shown: String = name.chars().take(NAME_MAX_BYTES).collect();
    Err(Error::new(ErrorKind::InvalidInput, format!("a {what} cannot be named {shown:?}"))
        .state("nothing was registered")
        .help(format!("use 1 to {NAME_MAX_BYTES} bytes, without NUL")))
}

fn too_many(what: &str, name: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{what} {name:?} is one too many: a pod has at most {NAMES_MAX}"))
        .state("nothing was registered")
        .help("put numbers of many things into the details, or into the service's own metrics")
}

fn checked_details(value: Value) -> Result<Details> {
    let refused = |kind, why: String| {
        Error::new(kind, format!("the details of samples cannot be stored: {why}"))
            .state("the details from before stay")
            .help("store large things elsewhere, and name them in the details")
    };
    if !is_storable(&value, DETAILS_MAX_DEPTH) {
        let why = format!("they contain a NUL, or are nested deeper than {DETAILS_MAX_DEPTH}");
        return Err(refused(ErrorKind::InvalidInput, why));
    }
    let bytes = value.to_string().len();
    if bytes > DETAILS_MAX_BYTES {
        return Err(refused(
            ErrorKind::TooLarge,
            format!("they have {bytes} bytes, and {DETAILS_MAX_BYTES} are the most"),
        ));
    }
    Ok(Details { value, bytes })
}

/// PostgreSQL's `jsonb` takes no NUL, and parsing deep nesting takes its stack.
fn is_storable(value: &Value, depth: usize) -> bool {
    match value {
        Value::String(text) => !text.contains('\0'),
        Value::Array(items) => depth > 0 && items.iter().all(|item| is_storable(item, depth - 1)),
        Value::Object(members) => {
            depth > 0 && members.iter().all(|(name, item)| !name.contains('\0') && is_storable(item, depth - 1))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gauge_is_there_from_its_first_value_until_its_last_handle_is_dropped() {
        let own = Own::default();
        let gauge = own.gauge("gpu".into()).unwrap();
        assert!(own.gauges().is_empty());
        gauge.set(2.5);
        assert_eq!(own.gauges(), [("gpu".to_owned(), Some(2.5))].into());
        let same = own.gauge("gpu".into()).unwrap();
        drop(gauge);
        for no_number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::from_bits(UNSET)] {
            same.set(no_number);
            assert_eq!(own.gauges(), [("gpu".to_owned(), None)].into(), "{no_number}");
        }
        drop(same);
        assert!(own.gauges().is_empty());
    }

    #[test]
    fn names_and_their_number_are_bounded() {
        let own = Own::default();
        for bad in [String::new(), "a\0".into(), "n".repeat(NAME_MAX_BYTES + 1)] {
            assert_eq!(own.gauge(bad.clone()).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(own.counter(bad).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let mut gauges: Vec<Gauge> = (0..NAMES_MAX).map(|n| own.gauge(n.to_string()).unwrap()).collect();
        assert!(own.gauge("one more".into()).is_err());
        assert!(own.gauge("1".into()).is_ok(), "one that is there");
        gauges.pop();
        assert!(own.gauge("one more".into()).is_ok(), "a dropped one makes room");
        for n in 0..NAMES_MAX {
            own.counter(n.to_string()).unwrap().add(1);
        }
        assert!(own.counter("one more".into()).is_err() && own.counter("1".into()).is_ok());
    }

    #[test]
    fn a_new_incarnation_counts_from_0_and_loses_nothing() {
        let (own, first, second) = (Own::default(), Incarnation::generate(), Incarnation::generate());
        let counter = own.counter("served".into()).unwrap();
        let counts = |of| own.counts(of)["served"];
        assert_eq!(counts(first), 0);
        counter.add(5);
        assert_eq!(counts(first), 5);
        counter.add(2);
        assert_eq!(counts(second), 2, "what nobody has seen counts for the new one");
        counter.add(1);
        assert_eq!((counts(second), counts(second)), (3, 3));
        own.counter("served".into()).unwrap().add(1);
        drop(counter);
        assert_eq!(counts(second), 4, "it stays without a handle");
    }

    #[test]
    fn details_are_bounded_and_storable() {
        let own = Own::default();
        own.set_details(Some(json!({"model": "m", "slots": [1, 2]}))).unwrap();
        let mut deep = json!(1);
        for _ in 0..=DETAILS_MAX_DEPTH {
            deep = json!([deep]);
        }
        let kinds = [json!("\0"), json!({"a\0": 1}), deep, json!("x".repeat(DETAILS_MAX_BYTES))]
            .map(|bad| own.set_details(Some(bad)).unwrap_err().kind());
        let invalid = ErrorKind::InvalidInput;
        assert_eq!(kinds, [invalid, invalid, invalid, ErrorKind::TooLarge]);
        assert_eq!(own.details().unwrap().value["model"], "m", "a refused one changes nothing");
        own.set_details(None).unwrap();
        assert!(own.details().is_none());
    }
}
