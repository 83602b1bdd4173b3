//! The server runs out of a resource, or is slow. A pod that cannot be probed is unknown, and nobody buries an unknown
//! pod. When the resource is back, everything goes on by itself.

pub(super) mod busy;
mod disk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::checker::Excused;
use crate::history::Said;
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::scenario::{Need, Scenario};
use crate::world::{Figure, World, connect, slack, try_connect};

const PODS: [&str; 3] = ["a", "b", "c"];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("limits::disk_full", &[Need::Root], disk::full).promises(
            "Writes are refused and reads are not: runs wait, nobody is buried; with room again everything \
                 goes on.",
        ),
        Scenario::new("limits::disk_full_of_wal", &[Need::Root], disk::full_of_wal)
            .promises("The server panics. With room it is started again, as after any restart."),
        Scenario::new("limits::connections_exhausted", &[], connections).promises(
            "A pod that lost its session and gets no other tells its runs to stop and is buried when its \
                 grace is over; it comes back by itself.",
        ),
        Scenario::new("limits::lock_table_exhausted", &[], lock_table).promises(
            "A look that fails is no look: nobody is buried on it. The dead one is when there are locks \
                 again.",
        ),
        Scenario::new("limits::slow_commits", &[], slow_commits)
            .promises("Every commit takes 300 to 500 ms: burials and runs take as much longer."),
        Scenario::new("limits::others_notify", &[], busy::notified_by_others).promises(
            "200 sessions listen and 8 clients notify without a pause on a channel of their own: deaths are pushed as \
                 ever.",
        ),
        Scenario::new("limits::delayed_commits", &[], busy::delayed_commits)
            .promises("`commit_delay` is 30 ms, and each commit is flushed: deaths are pushed as ever."),
        Scenario::new("limits::the_pool_is_exhausted", &[], pool).promises(
            "With its one connection waiting for longer than the lease, a pod stays alive for the others, \
                 and the dead are buried.",
        ),
    ]
}

/// A pod that lost its liveness session cannot open another one. It tells its runs to stop, and is buried when its
/// grace is over. The other pods work with the connections that they have. When connections are free again, the pod
/// comes back by itself.
async fn connections() -> Vec<Figure> {
    let mut world = World::own(&[("max_connections", "40")]).await;
    world.settled(&PODS).await;
    for pod in PODS {
        world.start(pod, 4, 400, 25).await;
    }
    let mut others = Vec::new();
    take_all_connections(&world, &mut others).await;
    // While it cannot see it, so that another, and not it, is given the connection that comes free.
    world.process("a").freeze().await;
    let broken = now_ns();
    assert_eq!(world.terminate("a", &["liveness"]).await, 1);
    let its_connection = world
        .until(SOON, "its connection is somebody else's", async |_| {
            try_connect(&world.url).await.map_err(|e| e.to_string())
        })
        .await;
    others.push(its_connection);
    take_all_connections(&world, &mut others).await;
    world.process("a").thaw();

    let worst = world.worst_case();
    let gave_up = |s: &Said| s.t > broken && s.what.as_deref() == Some("self_fenced");
    let gave_up = world.each(&["a"], "it tells its runs to stop", SOON, gave_up).await;
    let buried = world.buried("a", broken, worst.connection_broken + slack()).await;
    let resumed = world.resumed(broken, SOON).await;
    world.figure("its runs are told to stop", broken, gave_up, Some(worst.silent_pod_stops));
    world.figure("buried", broken, buried, Some(worst.connection_broken));
    world.figure("first run goes on", broken, resumed, Some(worst.connection_broken));
    world.refuses_to_start("d", "too_many_connections", "53300").await;
    assert!(world.process("a").is_running(), "a pod that cannot connect waits");

    let freed = now_ns();
    drop(others);
    let back = world.whole(&PODS, SOON).await;
    world.figure("back as another, from when there are connections", freed, back, None);
    world.conclude(&Excused::ended(&["a"])).await
}

/// Connects as the pods do, until the server refuses.
async fn take_all_connections(world: &World, taken: &mut Vec<Client>) {
    loop {
        match try_connect(&world.url).await {
            Ok(client) => taken.push(client),
            Err(e) if e.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => return,
            Err(e) => panic!("another refusal than was asked for: {e}"),
        }
    }
}

/// With the lock table full no look succeeds, and the lock that came free with a dead pod cannot be taken: it is buried
/// when that is over, and nobody else.
async fn lock_table() -> Vec<Figure> {
    let mut world = World::own(&[("max_locks_per_transaction", "10"), ("max_connections", "40")]).await;
    world.settled(&PODS).await;
    for pod in PODS {
        world.start(pod, 4, 200, 25).await;
    }
    let worst = world.worst_case();
    let greedy = Greedy::begins(connect(&world.server.socket_url(&world.database)).await).await;
    world.logged("a", "53200", SOON).await;
    let killed = world.kill("c").await;
    tokio::time::sleep(worst.process_killed + slack()).await;
    assert_eq!(world.roster().await, PODS, "buried on an unknown");
    let freed = now_ns();
    greedy.ends().await;
    let buried = world.buried("c", killed, worst.process_killed + slack()).await;
    let resumed = world.resumed(killed, SOON).await;
    world.figure("buried, from when there are locks", freed, buried, Some(worst.process_killed));
    world.figure("first run goes on, from when there are locks", freed, resumed, Some(worst.process_killed));
    world.all_runs_ended(SOON).await;
    world.whole(&["a", "b"], SOON).await;
    assert_eq!(world.reasons().await, [("c".to_owned(), "lost".to_owned())]);
    world.conclude(&Excused::ended(&["c"])).await
}

/// A session that takes every lock there is, and each that comes free.
struct Greedy {
    enough: Arc<AtomicBool>,
    session: tokio::task::JoinHandle<()>,
}

impl Greedy {
    /// Returns when the table has been full once.
    async fn begins(client: Client) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        take_all_locks(&client).await;
        let until = Arc::clone(&enough);
        let session = tokio::spawn(async move {
            while !until.load(Ordering::Acquire) {
                take_all_locks(&client).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { enough, session }
    }

    async fn ends(self) {
        self.enough.store(true, Ordering::Release);
        self.session.await.expect("it took what it could");
    }
}

/// What a statement took that failed, its session keeps.
async fn take_all_locks(client: &Client) {
    let sql =
        "SELECT pg_advisory_lock(hashtextextended(n::text || random()::text, 9)) FROM generate_series(1, 100000) n";
    let full = client.execute(sql, &[]).await.expect_err("there is an end to it");
    assert_eq!(full.code().map(SqlState::code), Some("53200"), "{full}");
}

/// Every commit takes 300 to 500 ms, as with a synchronous standby that is far away.
async fn slow_commits() -> Vec<Figure> {
    let mut world = World::own(&[]).await;
    world.settled(&PODS).await;
    world.admin.batch_execute(SLOW).await.expect("installed");
    for pod in PODS {
        world.start(pod, 3, 25, 25).await;
    }
    let bound = world.worst_case().process_killed;
    let killed = world.kill("c").await;
    let buried = world.buried("c", killed, bound + slack()).await;
    let resumed = world.resumed(killed, SOON).await;
    world.figure("buried", killed, buried, Some(bound));
    world.figure("first run goes on", killed, resumed, Some(bound));
    world.all_runs_ended(SOON * 2).await;
    assert_eq!(world.reasons().await, [("c".to_owned(), "lost".to_owned())]);
    world.conclude(&Excused::ended(&["c"])).await
}

/// Once for each transaction that wrote to the roster or to a run.
const SLOW: &str = "
    CREATE FUNCTION chaos.slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF current_setting('chaos.slowed', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
            PERFORM set_config('chaos.slowed', pg_current_xact_id()::text, true), pg_sleep(0.3 + 0.2 * random());
        END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE OR DELETE ON public.studio_runs
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION chaos.slow();
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE OR DELETE ON public.studio_pods
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION chaos.slow();
";

/// One connection in the pool, and the table of the runs locked for longer than the lease: no run can write, and none
/// be read. Liveness goes on beside it: the living are spared, and a dead pod is buried in time.
async fn pool() -> Vec<Figure> {
    let mut world = World::own(&[]).await;
    for pod in PODS {
        let mut command = world.command(pod);
        command.env("PODLOCK_POOL_SIZE", "1");
        world.pod_by(pod, command).await;
    }
    world.settle().await;
    for pod in PODS {
        world.start(pod, 4, 200, 25).await;
    }
    let worst = world.worst_case();
    let in_the_way = connect(&world.server.socket_url(&world.database)).await;
    in_the_way.batch_execute("BEGIN; LOCK TABLE studio_runs").await.expect("locked");
    tokio::time::sleep(world.lease * 2).await;
    for pod in ["a", "b"] {
        assert_eq!(world.terminate(pod, &["control", "watch"]).await, 2);
    }
    let killed = world.kill("c").await;
    // By the roster: the others may not be listening yet when it is buried.
    let buried = world
        .until(worst.process_killed + slack(), "pod c is buried", async |client| {
            let rows =
                client.query("SELECT FROM studio_pods WHERE pod_id = 'c'", &[]).await.map_err(|e| e.to_string())?;
            if rows.is_empty() { Ok(now_ns()) } else { Err("it is in the roster".to_owned()) }
        })
        .await;
    tokio::time::sleep(world.lease * 2).await;
    assert_eq!(world.roster().await, ["a", "b"]);
    for pod in ["a", "b"] {
        // A session that begins prepares what it can, and does not stand in line for the rest.
        let log = std::fs::read_to_string(&world.process(pod).stderr).unwrap();
        let mut begun = log.lines().filter(|line| line.contains("preparing for burials")).peekable();
        assert!(begun.peek().is_some(), "no session of {pod} began while the table was locked");
        assert_eq!(begun.find(|line| !line.contains("canceling statement due to lock timeout")), None);
    }
    let freed = now_ns();
    in_the_way.batch_execute("COMMIT").await.expect("released");
    let resumed = world.resumed(killed, SOON).await;
    world.figure("buried, while no run can be read", killed, buried, Some(worst.process_killed));
    world.figure("first run goes on, from when runs can be read", freed, resumed, Some(worst.process_killed));
    world.whole(&["a", "b"], SOON).await;
    assert_eq!(world.reasons().await, [("c".to_owned(), "lost".to_owned())]);
    world.conclude(&Excused::ended(&["c"])).await
}
