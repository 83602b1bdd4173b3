//! The database is busy with what others notify and commit. A death is pushed all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use crate::checker::Excused;
use crate::patience::SOON;
use crate::world::{Figure, World, connect, slack};

/// The pods of a busy database, and those of them that are killed one after another.
pub(crate) const PODS: [&str; 5] = ["a", "b", "c", "d", "e"];
const KILLED: [&str; 3] = ["b", "d", "e"];

/// How many sessions listen on another channel, and how many clients notify on it without a pause.
const LISTENERS: usize = 200;
const NOTIFIERS: usize = 8;

/// Up to PostgreSQL 18, each notification wakes all listeners of the database, and a commit that notifies waits for all
/// other such commits.
pub(super) async fn notified_by_others() -> Vec<Figure> {
    let mut world = World::own(&[("max_connections", "300")]).await;
    world.settled(&PODS).await;
    let url = world.server.socket_url(&world.database);
    let mut listeners: Vec<Client> = Vec::new();
    for _ in 0..LISTENERS {
        let client = connect(&url).await;
        client.batch_execute("LISTEN of_others").await.expect("it listens");
        listeners.push(client);
    }
    let mut notifiers = JoinSet::new();
    for _ in 0..NOTIFIERS {
        let client = connect(&url).await;
        notifiers.spawn(async move {
            let statement = client.prepare("SELECT pg_notify('of_others', $1)").await.expect("prepared");
            for n in 0_u64.. {
                client.execute(&statement, &[&n.to_string()]).await.expect("a notice");
            }
        });
    }
    let figures = dies_one_by_one(world).await;
    assert!(notifiers.try_join_next().is_none(), "all notified to the end");
    drop(listeners);
    figures
}

/// Each commit waits 30 ms for others, to be flushed with them.
pub(super) async fn delayed_commits() -> Vec<Figure> {
    let delayed = [("fsync", "on"), ("commit_delay", "30000"), ("commit_siblings", "0")];
    let mut world = World::own(&delayed).await;
    world.settled(&PODS).await;
    dies_one_by_one(world).await
}

/// Measures the database's answers beside the pods: how long the slowest commit took that notifies, as the commits of a
/// push do. One that is under way counts.
struct Meter {
    slowest_us: Arc<AtomicU64>,
    /// When the commit under way began, in microseconds since `began`. `u64::MAX`: none is under way.
    under_way_us: Arc<AtomicU64>,
    began: Instant,
    _task: AbortOnDropHandle<()>,
}

impl Meter {
    async fn start(url: &str) -> Self {
        let client = connect(url).await;
        let (slowest_us, under_way_us) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let (slowest, under_way, began) = (Arc::clone(&slowest_us), Arc::clone(&under_way_us), Instant::now());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let statement = client.prepare("SELECT pg_notify('of_the_meter', '')").await.expect("prepared");
            loop {
                let sent = micros(began.elapsed());
                under_way.store(sent, Ordering::Relaxed);
                client.execute(&statement, &[]).await.expect("a notice");
                slowest.fetch_max(micros(began.elapsed()) - sent, Ordering::Relaxed);
                under_way.store(u64::MAX, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
        Self { slowest_us, under_way_us, began, _task: task }
    }

    /// The slowest answer so far.
    fn slowest(&self) -> Duration {
        let under_way = micros(self.began.elapsed()).saturating_sub(self.under_way_us.load(Ordering::Relaxed));
        Duration::from_micros(self.slowest_us.load(Ordering::Relaxed).max(under_way))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("it does not take so long")
}

/// Kills pods one after another: each is buried within the bound of a push, by the slowest answer that the database gave
/// beside it, and its runs go on. A claim takes three answers more: the load, the claim, and one that is under way.
pub(crate) async fn dies_one_by_one(mut world: World) -> Vec<Figure> {
    for pod in PODS {
        world.start(pod, 1, 150, 25).await;
    }
    let settings = world.settings();
    let meter = Meter::start(&world.server.socket_url(&world.database)).await;
    for pod in KILLED {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let killed = world.kill(pod).await;
        let buried = world.buried(pod, killed, settings.worst_case().process_killed + slack()).await;
        let resumed = world.resumed(killed, SOON).await;
        let answer = meter.slowest();
        world.figure("buried", killed, buried, Some(settings.pushed(answer)));
        world.figure("first run goes on", killed, resumed, Some(settings.pushed(answer) + answer * 3));
    }
    drop(meter);
    world.all_runs_ended(SOON * 2).await;
    assert_eq!(world.reasons().await, KILLED.map(|pod| (pod.to_owned(), "lost".to_owned())));
    world.conclude(&Excused::ended(&KILLED)).await
}
