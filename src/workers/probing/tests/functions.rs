//! Checks by functions of the service, without I/O: the time is the test's.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{advance, sleep};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn function<F>(body: impl Fn(ProbeRequest) -> F + Send + Sync + 'static) -> ProbeFunction
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    Arc::new(move |request| Box::pin(body(request)))
}

fn check() -> HealthCheck {
    HealthCheck::function("f")
}

/// Counts the calls that are under way. A call that is dropped has ended.
#[derive(Clone, Default)]
struct Gauge(Arc<[AtomicUsize; 3]>);

struct Inside(Gauge);

impl Gauge {
    fn enter(&self) -> Inside {
        let now = self.0[0].fetch_add(1, Ordering::SeqCst) + 1;
        self.0[1].fetch_max(now, Ordering::SeqCst);
        self.0[2].fetch_add(1, Ordering::SeqCst);
        Inside(self.clone())
    }

    fn now(&self) -> usize {
        self.0[0].load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.0[1].load(Ordering::SeqCst)
    }

    fn calls(&self) -> usize {
        self.0[2].load(Ordering::SeqCst)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0[0].fetch_sub(1, Ordering::SeqCst);
    }
}

/// A function that takes `time`, and its gauge.
fn slow(time: Duration) -> (ProbeFunction, Gauge) {
    let gauge = Gauge::default();
    let seen = gauge.clone();
    let function = function(move |_| {
        let inside = seen.enter();
        async move {
            let _inside = inside;
            sleep(time).await;
            Ok(())
        }
    });
    (function, gauge)
}

#[tokio::test(start_paused = true)]
async fn a_function_gets_the_worker_and_its_secrets_and_its_word_counts() {
    let asked = function(|request| async move {
        assert!(!format!("{request:?}").contains("hunter2"));
        let seen = (request.url(), request.worker(), request.secret("token"), request.secret("x"), request.timeout());
        assert_eq!(seen, ("tcp://a:1", worker(1).into(), Some("hunter2"), None, SECOND));
        Err("it is Sunday".to_owned())
    });
    let mut running = Running::start(8, [("f", asked)]);
    running.list.set(vec![with_secret(target(1, "tcp://a:1", &check()), "token", "hunter2")]);
    let (of, result) = running.result().await;
    assert_eq!((of, result.unwrap_err().to_string()), (worker(1), "the function says: it is Sunday".to_owned()));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_panics_is_a_failed_probe_and_the_prober_lives() {
    let at_once: ProbeFunction = Arc::new(|_| panic!("boom"));
    let later = function(|request| async move {
        sleep(MS).await;
        panic!("boom of {}", request.worker())
    });
    let (fine, _) = slow(MS);
    let mut running = Running::start(1, [("at once", at_once), ("later", later), ("fine", fine)]);
    let named = |n, name: &str| target(n, "tcp://a:1", &HealthCheck::function(name));
    running.list.set(vec![named(1, "at once"), named(2, "later"), named(3, "fine")]);
    let mut seen = HashMap::<Uuid, Vec<Result<(), ProbeFailure>>>::new();
    for _ in 0..30 {
        let (worker, result) = running.result().await;
        seen.entry(worker).or_default().push(result);
    }
    let panicked = |why: String| Err(ProbeFailure::Panicked { why });
    for (n, expected) in [(1, panicked("boom".into())), (2, panicked(format!("boom of {}", worker(2)))), (3, Ok(()))] {
        let results = &seen[&worker(n)];
        assert!(results.len() >= 8 && results.iter().all(|result| *result == expected), "{n}: {results:?}");
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_hangs_fails_after_the_time_out_and_frees_its_slot() {
    let (hangs, gauge) = slow(SECOND * 1000);
    let mut running = Running::start(1, [("f", hangs)]);
    running.list.set(vec![target(1, "tcp://a:1", &check()), target(2, "tcp://a:1", &check())]);
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let (worker, result) = running.result().await;
        seen.insert(worker);
        let expected = ProbeFailure::TimedOut { after: SECOND, step: "waiting for the function" };
        assert_eq!(result, Err(expected));
    }
    assert_eq!((seen.len(), gauge.most(), gauge.now()), (2, 1, 0));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_workers_are_first_probed_without_a_burst_and_never_more_than_n_at_once() {
    let (function, gauge) = slow(MS * 5);
    let mut running = Running::start(16, [("f", function)]);
    running.list.set((0..10_000).map(|n| target(n, "tcp://a:1", &check())).collect());
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    let mut in_second = [0; 12];
    while seen.len() < 10_000 {
        let (worker, result) = running.result().await;
        result.expect("a success");
        assert!(began.elapsed() < SECOND * 11, "{} of 10,000 after {:?}", seen.len(), began.elapsed());
        if seen.insert(worker) {
            in_second[usize::try_from(began.elapsed().as_secs()).unwrap()] += 1;
        }
    }
    assert!(gauge.most() <= 16, "{} at once", gauge.most());
    for (second, count) in in_second.iter().enumerate().take(10) {
        assert!((800..1200).contains(count), "second {second}: {in_second:?}");
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_worker_is_probed_once_in_its_interval() {
    let (function, _) = slow(MS * 5);
    let mut running = Running::start(16, [("f", function)]);
    running.list.set(vec![target(1, "tcp://a:1", &check())]);
    let began = Instant::now();
    running.result().await.1.expect("a success");
    assert!(began.elapsed() < MS * 110, "the first probe begins at once");
    let mut pauses = BTreeSet::new();
    for _ in 0..50 {
        let before = Instant::now();
        running.result().await.1.expect("a success");
        let pause = before.elapsed();
        assert!((SECOND * 9..=SECOND * 11 + MS * 2).contains(&pause), "{pause:?}");
        pauses.insert(pause);
    }
    assert!(pauses.len() > 40, "no jitter: {pauses:?}");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_each_worker_is_probed_once() {
    let (function, gauge) = slow(Duration::ZERO);
    let mut running = Running::start(1000, [("f", function)]);
    running.list.set((0..100).map(|n| target(n, "tcp://a:1", &check())).collect());
    for _ in 0..100 {
        running.result().await.1.expect("a success");
    }
    // The process sleeps for an hour, 360 intervals.
    advance(SECOND * 3600).await;
    let calls = gauge.calls();
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        assert!(seen.insert(running.result().await.0), "a worker was probed twice");
    }
    running.expect_silence(SECOND * 8).await;
    assert_eq!(gauge.calls(), calls + 100);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_removed_loses_its_probe_and_is_not_probed_any_more() {
    let (function, gauge) = slow(MS * 500);
    let mut running = Running::start(1, [("f", function)]);
    running.list.set(vec![target(1, "tcp://a:1", &check())]);
    until("the probe is under way", || gauge.now() == 1).await;
    let removed = Instant::now();
    running.list.set(vec![]);
    until("the probe is dropped", || gauge.now() == 0).await;
    assert!(removed.elapsed() < MS * 10, "the probe went on for {:?}", removed.elapsed());
    running.expect_silence(SECOND * 3600).await;
    assert_eq!(gauge.calls(), 1);
    // Its slot is free again.
    running.list.set(vec![target(2, "tcp://a:1", &check())]);
    assert_eq!(running.result().await, (worker(2), Ok(())));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_changes_is_new_and_the_result_of_its_old_probe_is_dropped() {
    let old_only = function(|request| async move {
        sleep(MS * 500).await;
        Err(request.url().to_owned())
    });
    let mut running = Running::start(8, [("f", old_only)]);
    running.list.set(vec![target(1, "tcp://old:1", &check())]);
    sleep(MS * 200).await;
    let changed = Instant::now();
    running.list.set(vec![target(1, "tcp://new:1", &check())]);
    let (_, result) = running.result().await;
    assert_eq!(result, Err(ProbeFailure::Function { why: "tcp://new:1".to_owned() }));
    assert!(changed.elapsed() < MS * 620, "the first probe of the new worker begins at once");
    running.expect_silence(SECOND * 8).await;
}

#[tokio::test(start_paused = true)]
async fn new_secrets_are_used_from_the_next_probe_on_and_disturb_nothing() {
    let tells = function(|request| async move {
        sleep(MS * 500).await;
        Err(request.secret("token").unwrap_or("none").to_owned())
    });
    let mut running = Running::start(8, [("f", tells)]);
    let with = |value| vec![with_secret(target(1, "tcp://a:1", &check()), "token", value)];
    running.list.set(with("old"));
    sleep(MS * 200).await;
    running.list.set(with("new"));
    for expected in ["old", "new"] {
        assert_eq!(running.result().await.1, Err(ProbeFailure::Function { why: expected.to_owned() }));
    }
}

#[tokio::test(start_paused = true)]
async fn changes_while_a_worker_waits_do_not_bring_its_probe_forward() {
    let (function, gauge) = slow(Duration::ZERO);
    let mut running = Running::start(8, [("f", function)]);
    running.list.set(vec![target(1, "tcp://a:1", &check())]);
    running.result().await.1.expect("a success");
    for _ in 0..80 {
        running.list.set(vec![target(1, "tcp://a:1", &check())]);
        sleep(MS * 100).await;
    }
    assert_eq!(gauge.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_probes_under_way() {
    let (function, gauge) = slow(MS * 900);
    let mut running = Running::start(8, [("f", function)]);
    running.list.set((0..20).map(|n| target(n, "tcp://a:1", &check())).collect());
    until("the slots are full", || gauge.now() == 8).await;
    let stopped = Instant::now();
    running.stop().await;
    until("all probes are dropped", || gauge.now() == 0).await;
    assert!(stopped.elapsed() < MS * 10, "a probe went on for {:?}", stopped.elapsed());
    running.expect_silence(SECOND * 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_and_go_while_their_probes_end_leave_no_slot_taken() {
    let (function, gauge) = slow(MS);
    let mut running = Running::start(3, [("f", function)]);
    let check = check().interval(MS * 2);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let present = (0..12).filter(|_| random.bool()).map(|n| target(n, "tcp://a:1", &check));
        running.list.set(present.collect());
        sleep(MS).await;
    }
    running.list.set(vec![target(99, "tcp://a:1", &check)]);
    for _ in 0..5 {
        while running.result().await.0 != worker(99) {}
    }
    assert!(gauge.most() <= 3, "{} at once", gauge.most());
    running.list.set(vec![]);
    until("no probe is under way", || gauge.now() == 0).await;
    running.stop().await;
}
