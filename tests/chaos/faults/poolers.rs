//! What happens behind a pooler.

use std::time::Duration;

use super::sessions::at_most_one_was_buried;
use crate::checker::Excused;
use crate::patience::SOON;
use crate::pgbouncer::PgBouncer;
use crate::pod::now_ns;
use crate::scenario::{Need, Scenario};
use crate::world::{Figure, World, connect, slack};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("poolers::transaction_mode_is_refused", &[Need::Pgbouncer], transaction_mode)
            .promises("Every start is refused, saying what to change, and no lock is left behind."),
        Scenario::new("poolers::session_mode_carries_pods", &[Need::Pgbouncer], session_mode)
            .promises("Pods live as without it, and a death is seen as without it."),
        Scenario::new("poolers::a_session_pooler_is_restarted", &[Need::Pgbouncer], restarted).alone().promises(
            "At most the one whose sessions ended before the others may be taken for dead; every run ends once.",
        ),
    ]
}

/// A pod that is pointed at a transaction pooler is refused at each start, however many backends there are to mix up,
/// and leaves no lock on any of them. Those that are connected as they should be notice nothing.
async fn transaction_mode() -> Vec<Figure> {
    const STARTS: usize = 24;
    let mut world = World::shared().await;
    let mode = |size: usize| format!("pool_mode=transaction pool_size={size}");
    let pools = [("one", mode(1)), ("two", mode(2)), ("four", mode(4)), ("many", mode(20))];
    let databases: Vec<_> = pools.iter().map(|(name, options)| (*name, options.as_str())).collect();
    let pooler = PgBouncer::start(&world, &databases).await;
    world.settled(&["a", "b"]).await;
    world.start("a", 6, 320, 25).await;
    // Others use the pools meanwhile, so that backends come and go.
    let mut busy = Vec::new();
    for name in ["four", "many"] {
        let client = connect(&pooler.url(name)).await;
        busy.push(tokio::spawn(async move {
            while client.simple_query("SELECT pg_sleep(random() * 0.01)").await.is_ok() {}
        }));
    }
    let mut slowest = (0, 0);
    for start in 0..STARTS {
        let (name, _) = &pools[start % pools.len()];
        let mut command = world.command("c");
        command.env("DATABASE_URL", pooler.url(name));
        let at = now_ns();
        let said = world.refused("c", command).await;
        assert_eq!(said.kind.as_deref(), Some("pooled_lock"), "start {start} on {name}: {said:?}");
        assert!(said.text.as_ref().is_some_and(|t| t.contains("pool_mode = session")), "what to do: {said:?}");
        if said.t - at > slowest.1 - slowest.0 {
            slowest = (at, said.t);
        }
    }
    world.figure(
        "a start is refused, the slowest of 24",
        slowest.0,
        slowest.1,
        Some(world.settings().statement_timeout),
    );
    world.locks_are_of(&["a", "b"]).await;
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(world.roster().await, ["a", "b"]);
    let registered = "SELECT count(*) FROM studio_pod_sessions";
    assert_eq!(world.admin.query_one(registered, &[]).await.unwrap().get::<_, i64>(0), 2, "never once accepted");
    world.all_runs_ended(SOON).await;
    assert_eq!(world.takeovers().await, 0, "nobody took a run");
    world.conclude(&Excused::default()).await
}

/// Through a session pooler pods live as without one, and the death of one is seen as without one.
async fn session_mode() -> Vec<Figure> {
    let mut world = World::shared().await;
    let pooler = PgBouncer::start(&world, &[("pods", "pool_mode=session")]).await;
    world.url = pooler.url("pods");
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 100, 25).await;
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, bound + slack()).await;
    let resumed = world.resumed(killed, SOON).await;
    world.figure("buried", killed, buried, Some(bound));
    world.figure("first run goes on", killed, resumed, Some(bound));
    world.all_runs_ended(SOON).await;
    let ends = world.ends().await;
    assert!(matches!(ends.as_slice(), [(pod, reason, Some(_))] if pod == "a" && reason == "lost"), "{ends:?}");
    // Nothing of it is left on the backends that the pooler keeps.
    world.locks_are_of(&["b", "c"]).await;
    world.conclude(&Excused::ended(&["a"])).await
}

/// The pooler is killed and is there again at once. Every session of every pod ends within a moment; at most the one
/// whose sessions ended before the others' may be taken for dead.
async fn restarted() -> Vec<Figure> {
    const PODS: [&str; 4] = ["a", "b", "c", "d"];
    let mut world = World::shared().await;
    let mut pooler = PgBouncer::start(&world, &[("pods", "pool_mode=session")]).await;
    world.url = pooler.url("pods");
    world.settled(&PODS).await;
    let bounds = world.worst_case();
    // Until after the moment at which the peers' patience would be over.
    let steps = u64::try_from((bounds.many_lost + Duration::from_secs(1)).as_millis()).unwrap() / 25;
    for pod in PODS {
        world.start(pod, 3, steps, 25).await;
    }
    let mut was = Vec::new();
    for pod in PODS {
        was.push(world.status(pod).await.expect("it is in the roster"));
    }
    let at = now_ns();
    pooler.kill().await;
    pooler.start_again().await;
    let up = now_ns();
    let mut back = 0;
    for (pod, was) in PODS.iter().zip(&was) {
        let again = world.whole_as(pod, SOON, |now| now.incarnation != was.incarnation || now.session > was.session);
        back = again.await.0.max(back);
    }
    world.figure("the pooler is there again", at, up, None);
    world.figure("every pod holds its locks again", at, back, Some(bounds.outage_tolerated));
    at_most_one_was_buried(world, &PODS).await
}
