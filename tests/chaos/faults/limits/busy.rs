//! The database is busy with what others notify and commit. A death is pushed all the same.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::Client;

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

/// Kills pods one after another: each is buried in time, and its runs go on.
pub(crate) async fn dies_one_by_one(mut world: World) -> Vec<Figure> {
    for pod in PODS {
        world.start(pod, 1, 150, 25).await;
    }
    let bound = world.worst_case().process_killed;
    for pod in KILLED {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let killed = world.kill(pod).await;
        let buried = world.buried(pod, killed, bound + slack()).await;
        let resumed = world.resumed(killed, SOON).await;
        world.figure("buried", killed, buried, Some(bound));
        world.figure("first run goes on", killed, resumed, Some(bound));
    }
    world.all_runs_ended(SOON * 2).await;
    assert_eq!(world.reasons().await, KILLED.map(|pod| (pod.to_owned(), "lost".to_owned())));
    world.conclude(&Excused::ended(&KILLED)).await
}
