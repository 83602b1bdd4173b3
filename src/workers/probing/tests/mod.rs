//! Tests of the prober, beside a registry that is only a list.

mod functions;
#[cfg(feature = "http")]
mod http;
mod tcp;

use std::sync::Mutex;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::background::part;

const MS: Duration = Duration::from_millis(1);
/// How long a test waits for what it expects. On a busy machine, a second may be too short.
const PATIENCE: Duration = Duration::from_secs(30);

fn worker(n: u32) -> Uuid {
    Uuid::from_u128(n.into())
}

fn target(n: u32, url: &str, check: &HealthCheck) -> Target {
    check.validate().expect("a check within its bounds");
    Target { worker: worker(n), url: url.into(), check: Arc::new(check.clone()), secrets: Arc::default() }
}

fn with_secret(mut target: Target, name: &str, value: &str) -> Target {
    target.secrets = Arc::new(BTreeMap::from([(name.to_owned(), SecretString::from(value))]));
    target
}

/// Probes once, without the prober.
async fn probe_once(target: &Target) -> Result<(), ProbeFailure> {
    timeout(PATIENCE, probe::probe(target, None, &Tools::new())).await.expect("a probe ends in time")
}

async fn words_of_failure(target: &Target) -> String {
    probe_once(target).await.expect_err("the probe fails").to_string()
}

/// A registry that is a list of targets.
struct List {
    targets: Mutex<Vec<Target>>,
    functions: Mutex<HashMap<String, ProbeFunction>>,
    has_changed: Notify,
    results: mpsc::UnboundedSender<(Uuid, Result<(), ProbeFailure>)>,
}

impl Targets for List {
    async fn changed(&self) {
        self.has_changed.notified().await;
    }

    fn targets(&self) -> Vec<Target> {
        self.targets.lock().unwrap().clone()
    }

    fn probed(&self, worker: Uuid, result: Result<(), ProbeFailure>) {
        // A test that has seen enough is gone.
        _ = self.results.send((worker, result));
    }

    fn function(&self, name: &str) -> Option<ProbeFunction> {
        self.functions.lock().unwrap().get(name).cloned()
    }
}

impl List {
    fn set(&self, targets: Vec<Target>) {
        *self.targets.lock().unwrap() = targets;
        self.has_changed.notify_one();
    }
}

/// A prober that runs, and the test's side of it. It stops when it is dropped.
struct Running {
    list: Arc<List>,
    results: mpsc::UnboundedReceiver<(Uuid, Result<(), ProbeFailure>)>,
    stop: CancellationToken,
    tracker: TaskTracker,
    panicked: mpsc::UnboundedReceiver<&'static str>,
}

impl Running {
    fn start(most: usize, functions: impl IntoIterator<Item = (&'static str, ProbeFunction)>) -> Self {
        let (results_tx, results) = mpsc::unbounded_channel();
        let (panicked_tx, panicked) = mpsc::unbounded_channel();
        let functions = functions.into_iter().map(|(name, function)| (name.to_owned(), function)).collect();
        let list = Arc::new(List {
            targets: Mutex::default(),
            functions: Mutex::new(functions),
            has_changed: Notify::new(),
            results: results_tx,
        });
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let prober = Prober::new(Arc::clone(&list), most);
        part::spawn(prober, &tracker, &Handle::current(), stop.clone(), move |name| _ = panicked_tx.send(name));
        Self { list, results, stop, tracker, panicked }
    }

    /// The next result.
    async fn result(&mut self) -> (Uuid, Result<(), ProbeFailure>) {
        let next = timeout(PATIENCE, self.results.recv()).await.expect("a probe ends in time");
        assert_eq!(self.panicked.try_recv().ok(), None, "the prober panicked");
        next.expect("the registry lives")
    }

    /// No probe ends within this time.
    async fn expect_silence(&mut self, time: Duration) {
        if let Ok(result) = timeout(time, self.results.recv()).await {
            panic!("a probe ended: {result:?}");
        }
    }

    /// The prober ends, and is joined.
    async fn stop(&mut self) {
        self.stop.cancel();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("the prober ends in time");
        assert_eq!(self.panicked.try_recv().ok(), None, "the prober panicked");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits until `done`, or fails and says what it waited for.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(MS).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} until {what}"));
}

#[test]
fn a_failure_is_news_once_and_so_is_the_success_after_it() {
    let timed_out = |step| ProbeFailure::TimedOut { after: MS, step };
    let refused = |why: &str| ProbeFailure::Unconnected { why: why.to_owned() };
    let mut said = None;
    for (result, expected) in [
        (Ok(()), false),
        (Err(refused("refused")), true),
        (Err(refused("refused")), false),
        (Err(refused("refused, at another time")), false),
        (Err(timed_out("connecting")), true),
        (Err(timed_out("waiting for the answer")), true),
        (Err(timed_out("waiting for the answer")), false),
        (Ok(()), true),
        (Ok(()), false),
        (Err(timed_out("waiting for the answer")), true),
    ] {
        assert_eq!(is_news(said.as_ref(), &result), expected, "{result:?} after {said:?}");
        said = result.err();
    }
}

#[test]
fn a_failure_says_what_the_probe_met() {
    let why = || "x".to_owned();
    let timed_out = ProbeFailure::TimedOut { after: MS * 1000, step: "connecting" };
    assert_eq!(timed_out.to_string(), "time-out after 1s while connecting");
    assert_eq!(ProbeFailure::Unresolved { host: "a".into(), why: why() }.to_string(), "no address for \"a\": x");
    assert_eq!(ProbeFailure::Impossible { why: why() }.to_string(), "this pod cannot probe it: x");
}
