//! How soon a change of a worker's health is seen by all pods: from the call on the owner until the last of the other pods
//! has told its watchers, at rest and while other workers flap.
//!
//! The floor: one statement by hand that updates a row and notifies, and another client that hears it and reads the row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use podlock::WorkerId;
use podlock::workers::{Health, WorkerEvent};
use tokio::sync::{broadcast, mpsc};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::fleet::Fleet;
use crate::report::{Report, Spread};
use crate::{Args, Result, SOON, connect};

const GOAL_MS: f64 = 50.0;
/// The time between two changes while others flap.
const GAP: Duration = Duration::from_millis(100);
/// How often some of the workers flap: every 10 ms a hundredth of them, so that each does so once a second.
const TICK: Duration = Duration::from_millis(10);

pub(crate) async fn measure(fleet: &Fleet, args: &Args, report: &mut Report) -> Result<()> {
    let floor = floor(&fleet.url, args.changes).await?;
    let rest = follow(fleet, args, args.gap).await?;
    let goal = |spread: &Spread| (format!("median ≤ {GOAL_MS:.0} ms"), spread.median <= GOAL_MS);
    report.row("b: a change is seen by all, at rest", rest.n, rest.ms(), &floor.ms(), Some(goal(&rest)));

    let flapping = args.flapping.min(args.workers / 2);
    let flaps = Flaps::start(fleet, flapping);
    // Until the pods are awake.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (began, before) = (Instant::now(), flaps.count());
    let busy = follow(fleet, args, GAP).await?;
    let rate = (flaps.count() - before) as f64 / began.elapsed().as_secs_f64();
    drop(flaps);
    let what = format!("b: the same while {flapping} others flap");
    report.row(&what, busy.n, busy.ms(), &floor.ms(), Some(goal(&busy)));
    report.note(format!(
        "b: at rest, {:?} pass between two changes; while others flap, {GAP:?}; {rate:.0} flaps a second",
        args.gap
    ));
    Ok(())
}

/// Changes one worker after another, the last ones of the list, and returns how long each change took to be seen.
async fn follow(fleet: &Fleet, args: &Args, gap: Duration) -> Result<Spread> {
    let mut times = Vec::new();
    for change in 0..args.changes {
        tokio::time::sleep(gap).await;
        let n = args.workers - 1 - change % (args.workers / 2);
        let (owner, id) = (fleet.owner_of(n).workers(), fleet.ids[n]);
        let now = owner.get(id).ok_or("a worker is not there")?.health();
        let next = opposite(now);
        let others = fleet.members.iter().filter(|member| member.pod.pod_id() != fleet.owner_of(n).pod_id());
        let seen: Vec<_> = others.map(|other| sees(other.pod.workers().watch(), id, next)).collect();
        let began = Instant::now();
        owner.set_health(id, next)?;
        let all = tokio::time::timeout(SOON, try_join_all(seen)).await.map_err(|_| "a change is not seen")??;
        let last = all.into_iter().max().ok_or("there is no other pod")?;
        times.push((last - began).as_secs_f64() * 1e3);
    }
    Ok(Spread::of(times))
}

fn opposite(health: Health) -> Health {
    if health == Health::Ready { Health::Draining } else { Health::Ready }
}

/// When a pod has told that a worker has this health.
async fn sees(mut events: broadcast::Receiver<WorkerEvent>, id: WorkerId, health: Health) -> Result<Instant> {
    loop {
        match events.recv().await? {
            WorkerEvent::Health { worker, .. } if worker.id() == id && worker.health() == health => {
                return Ok(Instant::now());
            }
            _ => {}
        }
    }
}

/// Workers that change their health once a second, spread over the second and the pods. Until it is dropped.
struct Flaps {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
}

impl Flaps {
    fn start(fleet: &Fleet, flapping: usize) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&count));
        let all: Vec<_> = (0..flapping).map(|n| (fleet.owner_of(n).workers(), fleet.ids[n])).collect();
        let (ticks_a_second, mut next, mut due) = (1.0 / TICK.as_secs_f64(), 0, 0.0);
        std::thread::spawn(move || {
            let began = Instant::now();
            for tick in 1.. {
                if ends.load(Ordering::Acquire) || all.is_empty() {
                    return;
                }
                due += all.len() as f64 / ticks_a_second;
                while due >= 1.0 {
                    let (owner, id) = &all[next];
                    next = (next + 1) % all.len();
                    due -= 1.0;
                    if let Some(worker) = owner.get(*id) {
                        // The pods end only after this thread.
                        let _ = owner.set_health(*id, opposite(worker.health()));
                        counts.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep((TICK * tick).saturating_sub(began.elapsed()));
            }
        });
        Self { stop, count }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Flaps {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

async fn floor(url: &str, changes: usize) -> Result<Spread> {
    let writer = connect(url).await?;
    // A row as large as a worker's.
    writer
        .batch_execute(
            "CREATE TABLE floor AS SELECT worker_id, health, spec FROM studio_workers; \
             ALTER TABLE floor ADD PRIMARY KEY (worker_id); ANALYZE floor",
        )
        .await?;
    let update = "WITH changed AS (UPDATE floor SET health = $2 WHERE worker_id = $1 RETURNING worker_id) \
                  SELECT pg_notify('floor', worker_id::text) FROM changed";
    let update = writer.prepare(update).await?;
    let (reader, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    let (heard, mut hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) && heard.send(()).is_err() {
                return;
            }
        }
    });
    reader.batch_execute("LISTEN floor").await?;
    let select = reader.prepare("SELECT health, spec FROM floor WHERE worker_id = $1").await?;
    let ids = writer.query("SELECT worker_id FROM floor ORDER BY 1", &[]).await?;
    let mut times = Vec::new();
    for change in 0..changes {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let id: uuid::Uuid = ids[change % ids.len()].get(0);
        let health = if change % 2 == 0 { "draining" } else { "pending" };
        let params: [&(dyn ToSql + Sync); 2] = [&id, &health];
        let began = Instant::now();
        let writes = writer.query_one(&update, &params);
        let reads = async {
            hears.recv().await;
            reader.query_one(&select, &[&id]).await.map(|row| (Instant::now(), row.get::<_, String>(0)))
        };
        let (written, read) = tokio::join!(writes, reads);
        written?;
        let (at, seen) = read?;
        if seen != health {
            return Err("the floor read an old row".into());
        }
        times.push((at - began).as_secs_f64() * 1e3);
    }
    Ok(Spread::of(times))
}
