//! The observer: one more connection, which asks a prepared statement every 100 µs or so whether a row is still there.
//! The floor's rows and the pods' rows are observed by the same loop, so both pay the same for being observed. It
//! polls, because bare SQL tells nobody anything: a LISTEN would measure podlock's notification instead.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use podlock::Incarnation;
use tokio::sync::oneshot;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::clock::{self, Reading};
use crate::process::SOON;
use crate::{Result, connect};

const PAUSE: Duration = Duration::from_micros(100);

/// Whose row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Row {
    Floor(i64),
    Pod(Incarnation),
}

struct Ask {
    row: Row,
    seen: oneshot::Sender<()>,
    gone: oneshot::Sender<Reading>,
}

/// The handle on the observer's thread.
pub(crate) struct Observer {
    asks: mpsc::Sender<Ask>,
}

impl Observer {
    pub(crate) fn start(url: String) -> Result<Self> {
        let (asks, asked) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("observer".to_owned()).spawn(move || {
            if let Err(e) = runtime.block_on(observe(&url, &asked)) {
                eprintln!("bench-detect: the observer has ended: {e}");
            }
        })?;
        Ok(Self { asks })
    }

    /// Observes a row: resolves once it was seen, with what resolves once it was seen no more.
    pub(crate) async fn watch(&self, row: Row) -> Result<oneshot::Receiver<Reading>> {
        let ((seen_tx, seen), (gone, when)) = (oneshot::channel(), oneshot::channel());
        self.asks.send(Ask { row, seen: seen_tx, gone })?;
        tokio::time::timeout(SOON, seen).await??;
        Ok(when)
    }
}

async fn observe(url: &str, asked: &mpsc::Receiver<Ask>) -> Result<()> {
    let client = connect(url).await?;
    let floor = client.prepare("SELECT EXISTS (SELECT FROM floor WHERE id = $1)").await?;
    let pod = client.prepare("SELECT EXISTS (SELECT FROM studio_pods WHERE incarnation = $1)").await?;
    while let Ok(Ask { row, seen, gone }) = asked.recv() {
        let (statement, key): (_, Box<dyn ToSql + Sync + Send>) = match row {
            Row::Floor(key) => (&floor, Box::new(key)),
            Row::Pod(incarnation) => (&pod, Box::new(incarnation.to_string().parse::<Uuid>()?)),
        };
        let (began, mut seen) = (Instant::now(), Some(seen));
        while began.elapsed() < SOON {
            let there: bool = client.query_one(statement, &[&*key]).await?.get(0);
            let at = clock::now();
            match (there, seen.take()) {
                // Whoever asked may have given up: then nobody needs the answer.
                (true, Some(first)) => _ = first.send(()),
                (true, None) => {}
                (false, None) => {
                    let _ = gone.send(at);
                    break;
                }
                (false, Some(_)) => return Err(format!("{row:?} was never there").into()),
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
