//! The bystander: a client of the same database that knows nothing of podlock. It reads a row by its key and inserts a
//! row, twenty times a second each, and notes how long each took.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use crate::{Result, connect};

const PERIOD: Duration = Duration::from_millis(50);
/// How many rows the table has from the start.
const ROWS: i64 = 10_000;

/// Latencies in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) selects: Vec<f64>,
    pub(crate) inserts: Vec<f64>,
    /// How often the connection was lost.
    pub(crate) lost: usize,
}

/// The handle on the bystander. It stops when the handle is dropped.
pub(crate) struct Bystander {
    seen: Arc<Mutex<Seen>>,
    _task: AbortOnDropHandle<()>,
}

impl Bystander {
    pub(crate) async fn start(url: &str) -> Result<Self> {
        let client = connect(url).await?;
        client
            .batch_execute(&format!(
                "CREATE TABLE bystander (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL); \
                 INSERT INTO bystander (body) SELECT repeat('x', 100) FROM generate_series(1, {ROWS})"
            ))
            .await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = AbortOnDropHandle::new(tokio::spawn(look_on(url.to_owned(), Arc::clone(&seen))));
        Ok(Self { seen, _task: task })
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn look_on(url: String, seen: Arc<Mutex<Seen>>) {
    loop {
        // While the server restarts, there is nobody to ask.
        if let Ok(client) = connect(&url).await {
            let _ = ask(&client, &seen).await;
            seen.lock().unwrap_or_else(PoisonError::into_inner).lost += 1;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn ask(client: &Client, seen: &Mutex<Seen>) -> Result<()> {
    let select = client.prepare("SELECT body FROM bystander WHERE id = $1").await?;
    let insert = client.prepare("INSERT INTO bystander (body) VALUES ($1)").await?;
    let body = "x".repeat(100);
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        client.query_one(&select, &[&fastrand::i64(1..=ROWS)]).await?;
        let selected = began.elapsed();
        let began = Instant::now();
        client.execute(&insert, &[&body]).await?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.selects.push(selected.as_secs_f64() * 1e3);
        seen.inserts.push(began.elapsed().as_secs_f64() * 1e3);
    }
}
