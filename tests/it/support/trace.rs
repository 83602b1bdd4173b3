//! What the pods of this process log, kept so that tests can read it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// One event of target `podlock`: its fields as text, `level` among them.
pub(crate) type Event = BTreeMap<&'static str, String>;

/// How often each pod read rows because of notices, by its name and the kind.
static HINTED: Mutex<BTreeMap<(String, String), usize>> = Mutex::new(BTreeMap::new());

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

/// The events so far in which any field has the value `of`: tests name their pods so that nobody else does.
pub(crate) fn events(of: &str) -> Vec<Event> {
    let events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    events.iter().filter(|e| e.values().any(|value| value == of)).cloned().collect()
}

/// How many events of this name were logged so far by the pod `by`: for those of which there are thousands.
pub(crate) fn count(event: &str, by: &str) -> usize {
    let events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let is = |e: &&Event, field, value| e.get(field).is_some_and(|seen| seen == value);
    events.iter().filter(|e| is(e, "event", event) && is(e, "by", by)).count()
}

/// How often this pod read rows because of notices so far, by kind.
pub(crate) fn hinted(pod: &str) -> BTreeMap<String, usize> {
    let hinted = HINTED.lock().unwrap_or_else(PoisonError::into_inner);
    hinted.iter().filter(|((of, _), _)| of == pod).map(|((_, kind), count)| (kind.clone(), *count)).collect()
}

/// Keeps what is logged from now on. `RUST_LOG=podlock=debug cargo test … -- --nocapture` shows it as well.
pub(crate) fn keep() {
    let shown = std::env::var_os("RUST_LOG").map(|_| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt::layer().with_test_writer().with_filter(filter)
    });
    // A second test of this process finds it set.
    let _ = tracing_subscriber::registry().with(Keep).with(shown).try_init();
}

struct Keep;

impl<S: tracing::Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target() == "podlock" && metadata.fields().field("hinted").is_some() {
            let mut fields = Fields(BTreeMap::new());
            event.record(&mut fields);
            let mut hinted = HINTED.lock().unwrap_or_else(PoisonError::into_inner);
            *hinted.entry((fields.0["pod"].clone(), fields.0["hinted"].clone())).or_default() += 1;
            return;
        }
        if metadata.target() != "podlock" || *metadata.level() > tracing::Level::INFO {
            return;
        }
        let mut fields = Fields(BTreeMap::from([("level", metadata.level().to_string())]));
        event.record(&mut fields);
        EVENTS.lock().unwrap_or_else(PoisonError::into_inner).push(fields.0);
    }
}

struct Fields(Event);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}
