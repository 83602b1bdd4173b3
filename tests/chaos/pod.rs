//! A pod as a process of its own: this very program, started again. It tells on stdout what it does, a JSON object a
//! line, and takes orders on stdin. When stdin ends it ends, so that no pod outlives its test.
//!
//! Times are nanoseconds of CLOCK_BOOTTIME: one clock for all processes of the machine, which a faked wall clock does
//! not move.

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podlock::{Config, HandlerError, NewRun, Outcome, Pod, PodEvent, Run, RunId, StopReason, StreamEvent};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

use crate::workers;

/// The kind that pods run: it counts to its input's `steps`, with a checkpoint after each.
pub(crate) const KIND: &str = "count";
/// Set in the environment of a pod: the schema that it knows, for one of an older release.
pub(crate) const KNOWS: &str = "CHAOS_SCHEMA_KNOWS";
/// Set in the environment of a pod: the script of a version that podlock does not have yet, for a pod of a release to
/// come. It runs it before it starts, as pods migrate.
pub(crate) const BRINGS: &str = "CHAOS_SCHEMA_BRINGS";
/// How long a pod may take to stop after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How often a handler says that it computes, beside its writes.
const WORK: Duration = Duration::from_millis(40);

/// What a pod is told on stdin.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Start runs, owned by this pod.
    Start { count: u32, input: Input },
    /// Hand runs in, for whoever has room.
    Submit { count: u32, input: Input },
    /// Register further workers.
    Register { workers: u32 },
    /// Attach to a run's stream, and tell what comes.
    Attach { run: RunId },
    /// Stand in the way of everything that this pod's application does.
    Block { ms: u64 },
}

/// What a run is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) steps: u64,
    pub(crate) pause_ms: u64,
}

/// What a checkpoint and a result hold: who wrote it, and as the how-manyth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) n: u64,
    /// The write, unique over all processes.
    pub(crate) op: String,
    pub(crate) incarnation: String,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
}

/// Now, by CLOCK_BOOTTIME.
pub(crate) fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// The whole life of the process.
pub(crate) fn main() -> ! {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).expect("a parent");
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::new("podlock=debug"))
        .init();
    // One thread: what blocks it blocks the whole application.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let code = runtime.block_on(async { tokio::spawn(live()).await.unwrap_or(70) });
    std::process::exit(code)
}

async fn live() -> i32 {
    let mut orders = read_orders();
    let mut sigterm = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    let config = Config::from_env().expect("settings");
    let knows = std::env::var(KNOWS).ok().map(|text| text.parse().expect("a version"));
    let config = config.with(|c| c.schema_knows = knows);
    if let Ok(script) = std::env::var(BRINGS)
        && let Err(e) = migrate(&script).await
    {
        tell(json!({ "ev": "refused", "kind": "migrating", "text": format!("{e:?}") }));
        return 1;
    }
    let pod = match Pod::builder(config).handler(KIND, count).start().await {
        Ok(pod) => pod,
        Err(e) => {
            tell(json!({ "ev": "refused", "kind": e.kind().as_str(), "text": e.to_string() }));
            return 1;
        }
    };
    let mut events = pod.events();
    let shows = std::env::var(workers::WORKERS).ok().map(|count| {
        workers::register(&pod, count.parse().expect("a number of workers"));
        tokio::spawn(workers::show(pod.clone()))
    });
    tell(json!({ "ev": "ready", "incarnation": pod.incarnation() }));
    loop {
        tokio::select! {
            _ = sigterm.recv() => break,
            () = pod.closed() => {
                tell(json!({ "ev": "closed", "why": pod.failure() }));
                return 1;
            }
            event = events.recv() => match event {
                Ok(event) => say(&event, &pod),
                Err(broadcast::error::RecvError::Lagged(missed)) => tell(json!({ "ev": "lagged", "missed": missed })),
                Err(broadcast::error::RecvError::Closed) => {}
            },
            Some(order) = orders.recv() => carry_out(order, &pod),
        }
    }
    // From here on, the pod promises nothing of its workers.
    shows.inspect(tokio::task::JoinHandle::abort);
    tell(json!({ "ev": "stopping" }));
    match pod.shutdown(GRACE).await {
        Ok(report) => {
            tell(json!({
                "ev": "stopped", "finished": report.finished, "yielded": report.yielded, "aborted": report.aborted,
            }));
            0
        }
        Err(e) => {
            tell(json!({ "ev": "stop_failed", "kind": e.kind().as_str(), "text": e.to_string() }));
            1
        }
    }
}

async fn migrate(script: &str) -> Result<(), tokio_postgres::Error> {
    let url = std::env::var("DATABASE_URL").expect("a URL");
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    let done = client.batch_execute(script).await;
    drop(client);
    driver.await.expect("the connection's end").and(done)
}

fn say(event: &PodEvent, pod: &Pod) {
    let mut line = serde_json::to_value(event).expect("JSON");
    let what = line["event"].take();
    line["what"] = what;
    line["ev"] = json!("event");
    line["own"] = json!(pod.incarnation());
    tell(line);
}

fn carry_out(order: Order, pod: &Pod) {
    match order {
        Order::Start { count, input } => drop(tokio::spawn(begin(pod.clone(), true, count, input))),
        Order::Submit { count, input } => drop(tokio::spawn(begin(pod.clone(), false, count, input))),
        Order::Register { workers } => workers::register(pod, workers),
        Order::Attach { run } => drop(tokio::spawn(read(pod.clone(), run))),
        Order::Block { ms } => {
            tell(json!({ "ev": "blocked", "ms": ms }));
            std::thread::sleep(Duration::from_millis(ms));
            tell(json!({ "ev": "unblocked" }));
        }
    }
}

/// Starts or hands in runs, each under a key of its own, by which the history can tell what became of it.
async fn begin(pod: Pod, owned: bool, count: u32, input: Input) {
    for _ in 0..count {
        let op = next_op();
        tell(json!({ "ev": "try", "op": op, "what": "start" }));
        let new = NewRun::new(KIND).key(op.as_str()).input(serde_json::to_value(input).expect("JSON"));
        let done = if owned { pod.start(new).await.map(|s| s.run_id) } else { pod.submit(new).await };
        match done {
            Ok(run) => tell(json!({ "ev": "ok", "op": op, "run": run })),
            // Of a start this means that it was accepted, and that the run has moved on meanwhile.
            Err(e) if e.is_fenced() => tell(json!({ "ev": "ok", "op": op, "run": e.run_id() })),
            Err(e) => tell_error(&op, &e),
        }
    }
    tell(json!({ "ev": "began", "count": count }));
}

/// Reads a stream to its end.
async fn read(pod: Pod, run: RunId) {
    let reader = next_op();
    let of = |what: &str| json!({ "ev": "read", "reader": reader, "run": run, "what": what });
    let mut attached = match pod.attach(run).await {
        Ok(attached) => attached,
        Err(e) => return tell_error(&reader, &e),
    };
    tell(of("attached"));
    loop {
        let mut line = match attached.next().await {
            Ok(Some(StreamEvent::Chunk { seq, body, .. })) => {
                with(with(of("chunk"), "n", json!(seq)), "text", json!(body))
            }
            Ok(Some(StreamEvent::Reset { from_seq, .. })) => with(of("reset"), "n", json!(from_seq)),
            Ok(Some(StreamEvent::End { state, .. })) => with(of("end"), "text", json!(state)),
            Ok(Some(other)) => with(of("unknown"), "text", json!(format!("{other:?}"))),
            Ok(None) => return,
            Err(e) => return tell_error(&reader, &e),
        };
        line["by"] = json!(pod.incarnation());
        tell(line);
    }
}

async fn count(run: Run) -> Result<Outcome, HandlerError> {
    let of = |what: &str| {
        let (id, attempt, fence, by) = (run.id(), run.attempt(), run.fence(), run.incarnation());
        json!({ "ev": what, "run": id, "attempt": attempt, "fence": fence, "by": by })
    };
    let input: Input = serde_json::from_value(run.input().clone())?;
    let saved: Option<Mark> = run.saved().map(|saved| serde_json::from_value(saved.clone())).transpose()?;
    tell(with(of("begin"), "saved", json!(saved.as_ref().map(|s| s.n))));
    let working = async {
        loop {
            tell(of("work"));
            tokio::time::sleep(WORK).await;
        }
    };
    let counting = async {
        let mut n = saved.map_or(0, |s| s.n);
        // Each step is a chunk, and each checkpoint knows of the chunks before it.
        run.continue_from(run.saved_seq()).await?;
        let mark = |n, op| Mark {
            n,
            op,
            incarnation: run.incarnation().to_string(),
            fence: run.fence().get(),
            attempt: run.attempt(),
        };
        while n < input.steps {
            tokio::select! {
                biased;
                reason = run.stopped() => {
                    tell(with(of("told"), "reason", json!(reason)));
                    return match reason {
                        StopReason::Draining => Ok(Outcome::Yield),
                        other => Err(HandlerError::from(other.to_string())),
                    };
                }
                () = tokio::time::sleep(Duration::from_millis(input.pause_ms)) => {}
            }
            n += 1;
            let op = next_op();
            tell(json!({ "ev": "try", "op": op, "what": "checkpoint", "run": run.id(), "n": n }));
            match step(&run, n, serde_json::to_value(mark(n, op.clone()))?).await {
                Ok(()) => tell(json!({ "ev": "ok", "op": op })),
                Err(e) => {
                    tell_error(&op, &e);
                    return Err(e.into());
                }
            }
        }
        Ok(Outcome::Done(serde_json::to_value(mark(n, next_op()))?))
    };
    tokio::select! {
        biased;
        outcome = counting => {
            tell(of("returned"));
            outcome
        }
        never = working => never,
    }
}

/// The chunk and the checkpoint of a step, by turns in one statement and in two.
async fn step(run: &Run, n: u64, mark: Value) -> podlock::Result<()> {
    if n.is_multiple_of(2) {
        run.append_with_checkpoint(n.to_string(), mark).await.map(drop)
    } else {
        run.append(n.to_string()).await?;
        run.checkpoint(mark).await
    }
}

fn tell_error(op: &str, e: &podlock::Error) {
    let what = if e.may_have_been_done() { "unknown" } else { "failed" };
    tell(json!({ "ev": what, "op": op, "kind": e.kind().as_str(), "text": e.to_string() }));
}

fn with(mut line: Value, name: &str, value: Value) -> Value {
    line[name] = value;
    line
}

fn next_op() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    static BORN: std::sync::OnceLock<Arc<str>> = std::sync::OnceLock::new();
    let born = BORN.get_or_init(|| format!("{}-{:x}", std::process::id(), now_ns()).into());
    format!("{born}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One line in one write: a reader never sees half of one, even of a process that is killed.
pub(crate) fn tell(mut line: Value) {
    line["t"] = json!(now_ns());
    let text = format!("{line}\n");
    if std::io::stdout().lock().write_all(text.as_bytes()).is_err() {
        // Nobody reads any more: the test is over.
        std::process::exit(1);
    }
}

/// Orders come over a thread of their own, which sees the end of stdin even while the application is blocked.
fn read_orders() -> mpsc::UnboundedReceiver<Order> {
    let (orders, received) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let order = serde_json::from_str(&line).unwrap_or_else(|e| panic!("order {line:?}: {e}"));
            if orders.send(order).is_err() {
                break;
            }
        }
        std::process::exit(1);
    });
    received
}
