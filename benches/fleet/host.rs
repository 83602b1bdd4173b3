//! A process with many pods. It is told on stdin which pods to start and to stop, and says on stdout what became of
//! each: one line of JSON for each order and each report.

use std::collections::HashMap;
use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use podlock::{Config, Outcome, Pod};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::Result;

/// How long a pod may take to stop.
const GRACE: Duration = Duration::from_secs(30);

/// What a host is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start a pod.
    Start(String),
    /// Stop a pod cleanly.
    Stop(String),
}

/// What a host says of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) pod: String,
    pub(crate) became: Became,
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Became {
    /// It is registered and holds its lock, for the first time or again.
    Attached { incarnation: String },
    /// It lost its lock and tries to come back.
    Detached,
    /// It could not start, after so many milliseconds.
    Refused { why: String, after_ms: u64 },
    /// It has ended.
    Stopped { why: Option<String> },
}

/// Plays a host until its stdin ends.
pub(crate) async fn play(url: &str, lease: Duration) -> Result<()> {
    // The logs of the pods go to stderr, if `RUST_LOG` asks for them.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (orders, mut ordered) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            match serde_json::from_str(&line) {
                Ok(order) => _ = orders.send(order),
                Err(e) => eprintln!("bench-fleet: an order makes no sense: {line}: {e}"),
            }
        }
        // Whoever started this process has ended.
        std::process::exit(1);
    })?;
    let mut pods: HashMap<String, mpsc::UnboundedSender<()>> = HashMap::new();
    while let Some(order) = ordered.recv().await {
        match order {
            Order::Start(name) => {
                let (stop, stopped) = mpsc::unbounded_channel();
                pods.insert(name.clone(), stop);
                tokio::spawn(live(url.to_owned(), lease, name, stopped));
            }
            // A pod that has ended by itself has said so.
            Order::Stop(name) => _ = pods.remove(&name).map(|stop| stop.send(())),
        }
    }
    Ok(())
}

/// The life of one pod.
async fn live(url: String, lease: Duration, name: String, mut stop: mpsc::UnboundedReceiver<()>) {
    let began = Instant::now();
    let config = Config::new(url).name(&name).lease(lease);
    let started = Pod::builder(config).handler("bench", |_| async { Ok(Outcome::Done(json!(null))) }).start().await;
    let pod = match started {
        Ok(pod) => pod,
        Err(e) => {
            let after_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            return say(&name, Became::Refused { why: e.to_string(), after_ms });
        }
    };
    let mut said = None;
    loop {
        let changed = pod.status_changes();
        let status = pod.status();
        let now = match status.attached {
            true => Became::Attached { incarnation: status.incarnation.to_string() },
            false => Became::Detached,
        };
        if said.as_ref() != Some(&now) {
            say(&name, now.clone());
            said = Some(now);
        }
        tokio::select! {
            () = changed => {}
            () = pod.closed() => return say(&name, Became::Stopped { why: pod.failure().map(str::to_owned) }),
            _ = stop.recv() => break,
        }
    }
    let why = pod.shutdown(GRACE).await.err().map(|e| e.to_string());
    say(&name, Became::Stopped { why });
}

fn say(pod: &str, became: Became) {
    let report = Report { pod: pod.to_owned(), became };
    let Ok(mut line) = serde_json::to_string(&report) else { return };
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    // If nobody reads any more, this process ends with its stdin.
    let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
}
