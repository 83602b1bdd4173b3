//! A high-availability cluster changes its leader: three nodes under Patroni, with etcd. Pods are given all three hosts.

use std::time::Duration;

use crate::checker::{Excused, Missing};
use crate::history::Said;
use crate::patience::SOON;
use crate::patroni::{Cluster, Replication, Succession, TTL};
use crate::pod::{Input, Order, now_ns};
use crate::process;
use crate::scenario::{Need, Scenario};
use crate::standby::Receiver;
use crate::world::{Figure, LEASE, World, slack};

const PODS: [&str; 3] = ["a", "b", "c"];
const LOOPBACK: &[Need] = &[Need::Patroni];
const LINKS: &[Need] = &[Need::Patroni, Need::Root, Need::Tun];
/// What it tolerates is more than a switchover takes on a loaded machine.
const SWITCHOVER_LEASE: Duration = Duration::from_secs(8);
/// What it tolerates is more than Patroni's `ttl` and an election on a loaded machine.
const FAILOVER_LEASE: Duration = Duration::from_secs(16);
/// The same where the old leader's host answers nothing, so that standbys wait for it, and pods too.
const CUT_LEASE: Duration = Duration::from_secs(20);
/// How often a scenario is tried that a busy machine can keep from showing anything.
const TRIES: u32 = 3;
const BUSY: &str = "this machine is too busy to change the leader within what is tolerated: nothing was shown";

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Replication::{Asynchronous, Synchronous};
    vec![
        Scenario::new("clusters::switchover_with_a_synchronous_standby", LOOPBACK, || switchover(Synchronous))
            .promises("Shorter than `outage_tolerated`: nothing is lost, and nobody is disturbed."),
        Scenario::new("clusters::switchover_with_asynchronous_standbys", LOOPBACK, || switchover(Asynchronous))
            .promises("The same: Patroni hands over only to a standby that has everything."),
        Scenario::new("clusters::leader_killed_with_a_synchronous_standby", LOOPBACK, killed_synchronous).promises(
            "With a lease that tolerates Patroni's `ttl` and an election, nothing is lost and nobody is disturbed; \
             the old leader comes back as a standby, and nobody notices.",
        ),
        Scenario::new("clusters::leader_killed_with_asynchronous_standbys", LOOPBACK, killed_asynchronous).promises(
            "With a shorter lease all runs are told to stop in time. Confirmed writes are gone; every run that the \
             new leader has goes on once.",
        ),
        Scenario::new("clusters::leader_cut_off_with_a_synchronous_standby", LINKS, cut_synchronous).promises(
            "The leader steps down. A pod on its side is buried when the others have settled, and comes back as \
             another; nothing is lost, and the pods on the other side are not disturbed.",
        ),
        Scenario::new("clusters::leader_cut_off_with_asynchronous_standbys", LINKS, cut_asynchronous).promises(
            "Until it steps down, the leader goes on to confirm writes of the pod on its side, and they are lost. All \
             runs are told to stop in time, and every run that the new leader has goes on once.",
        ),
    ]
}

/// Pods that know all nodes of a new cluster.
async fn fleet(lease: Duration, replication: Replication) -> (World, Cluster) {
    let cluster = Cluster::start(replication).await;
    let mut world = World::on_cluster(&cluster).await;
    world.lease = lease;
    world.settled(&PODS).await;
    (world, cluster)
}

/// Pods on a new cluster each of whose nodes is on a link of its own: the first pod runs on the leader's node, the
/// others beside etcd.
async fn fleet_with_links(lease: Duration, replication: Replication) -> (World, Cluster) {
    let cluster = Cluster::networked(replication).await;
    let mut world = World::on_cluster(&cluster).await;
    world.lease = lease;
    let beside_leader = cluster.beside(cluster.leader().await);
    let beside_etcd = cluster.beside_etcd();
    for (pod, prefix) in PODS.iter().zip([&beside_leader, &beside_etcd, &beside_etcd]) {
        world.spawn(pod, process::command(prefix, pod, &world.url, lease));
    }
    for pod in PODS {
        world.pods[pod].ready(SOON).await;
    }
    world.settle().await;
    (world, cluster)
}

/// Runs that go on for about this long. Every standby knows of them.
async fn load(world: &mut World, time: Duration) {
    const PAUSE_MS: u64 = 40;
    let steps = u64::try_from(time.as_millis()).expect("a short time") / PAUSE_MS;
    for pod in PODS {
        world.start(pod, 3, steps, PAUSE_MS).await;
    }
    world.is_replicated().await;
}

/// How long runs must go on to show a wrong burial: past the moment at which their pods may bury again.
fn past_a_wrong_burial(world: &World) -> Duration {
    world.worst_case().outage_tolerated + world.lease
}

/// Whether nobody could write for less time than the pods' lease tolerates.
fn is_tolerated(world: &World, Succession { ended, begun }: Succession) -> bool {
    Duration::from_nanos(begun.saturating_sub(ended)) <= world.worst_case().outage_tolerated
}

/// All pods come back from an outage that is tolerated.
async fn all_are_back(world: &mut World, Succession { ended, begun }: Succession) {
    let worst = world.worst_case();
    let back = world.whole(&PODS, SOON).await;
    world.figure("nobody could write for", ended, begun, Some(worst.outage_tolerated));
    world.figure("until all hold their locks again", ended, back, Some(worst.silent_pod_stops));
}

/// Each pod is what it was, and has the runs that it had.
async fn nobody_was_disturbed(world: World) -> Vec<Figure> {
    world.all_runs_ended(SOON).await;
    assert_eq!(world.takeovers().await, 0, "every run stayed where it was");
    assert_eq!(world.roster().await, PODS);
    assert_eq!(world.reasons().await, [], "every pod is what it was");
    world.whole(&PODS, SOON).await;
    world.conclude(&Excused::default()).await
}

/// Patroni stops the leader and hands over: what was committed is on the next one.
async fn switchover(replication: Replication) -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, cluster) = fleet(SWITCHOVER_LEASE, replication).await;
        let time = past_a_wrong_burial(&world);
        load(&mut world, time).await;
        let old = cluster.leader().await;
        let switched = cluster.switches_over(old);
        let succession = cluster.succession(old, &mut world).await;
        switched.await.expect("the switchover is made");
        if is_tolerated(&world, succession) {
            all_are_back(&mut world, succession).await;
            return nobody_was_disturbed(world).await;
        }
    }
    panic!("{BUSY}");
}

/// With a lease of the right length even a crash of the leader's host disturbs nobody.
async fn killed_synchronous() -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, mut cluster) = fleet(FAILOVER_LEASE, Replication::Synchronous).await;
        let time = past_a_wrong_burial(&world);
        load(&mut world, time).await;
        let old = cluster.leader().await;
        cluster.kill(old);
        let succession = cluster.succession(old, &mut world).await;
        if !is_tolerated(&world, succession) {
            continue;
        }
        all_are_back(&mut world, succession).await;
        cluster.starts_again(old);
        cluster.is_whole(Replication::Synchronous).await;
        return nobody_was_disturbed(world).await;
    }
    panic!("{BUSY}");
}

/// The last that the leader confirmed is on no standby. The lease is shorter than Patroni's `ttl`, so that every pod
/// gives its runs up.
async fn killed_asynchronous() -> Vec<Figure> {
    let (mut world, mut cluster) = fleet(LEASE, Replication::Asynchronous).await;
    load(&mut world, LEASE * 3).await;
    let old = cluster.leader().await;
    let receivers = cluster.standbys_hang(old).await;
    let hang = now_ns();
    let more = Order::Start { count: 2, input: Input { steps: 100, pause_ms: 40 } };
    world.process("a").order(&more).await;
    world.each(&["a"], "it starts runs", SOON, |s: &Said| s.t > hang && s.ev == "began").await;
    let killed = now_ns();
    cluster.kill(old);
    receivers.into_iter().for_each(Receiver::ends);
    let succession = cluster.succession(old, &mut world).await;
    are_told_to_stop(&mut world, &PODS, killed).await;
    let lost = world.missing().await;
    let steps = lost.iter().filter(|m| **m != Missing::Start).count();
    assert!(steps > 0 && lost.len() > steps, "no confirmed step, or no start, is missing: the standbys did not lag");
    world.figure("nobody could write for", succession.ended, succession.begun, None);
    all_go_on(&mut world, succession).await;
    assert_eq!(world.roster().await, PODS);
    let ends = world.reasons().await;
    assert!(ends.iter().all(|(_, reason)| reason != "lost"), "nobody died: {ends:?}");
    world.conclude(&Excused::ended(&PODS).lost_writes()).await
}

/// These pods tell their runs to stop before a server could have freed their locks.
async fn are_told_to_stop(world: &mut World, pods: &[&str], since: u64) {
    let stops = world.worst_case().silent_pod_stops;
    let told = |s: &Said| s.t > since && s.what.as_deref() == Some("self_fenced");
    let told = world.each(pods, "it told its runs to stop", stops + slack(), told).await;
    world.figure("their runs are told to stop", since, told, Some(stops));
}

/// Every pod comes back, and every run ends.
async fn all_go_on(world: &mut World, Succession { begun, .. }: Succession) {
    let resumed = world.resumed(begun, SOON).await;
    let whole = world.whole(&PODS, SOON).await;
    world.figure("first run goes on, from the new leader's beginning", begun, resumed, None);
    world.figure("until all hold their locks again, from the new leader's beginning", begun, whole, None);
    world.all_runs_ended(SOON).await;
}

/// The leader and the pod on its node are cut off from the others. The leader cannot renew its key and steps down; the
/// pods on the other side find the next one.
async fn cut_synchronous() -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, cluster) = fleet_with_links(CUT_LEASE, Replication::Synchronous).await;
        let time = past_a_wrong_burial(&world);
        load(&mut world, time).await;
        let old = cluster.leader().await;
        let others = ["b", "c"];
        let mut was = Vec::new();
        for pod in others {
            was.push(world.status(pod).await.expect("it is in the roster"));
        }
        let cut = now_ns();
        cluster.cut(old);
        let succession = cluster.succession(old, &mut world).await;
        let worst = world.worst_case();
        // A pod that comes back late has waited for the host that is gone.
        let tolerated = worst.outage_tolerated - world.lease / 10;
        if !stepped_down_in_time(cut, succession) || Duration::from_nanos(succession.begun - cut) > tolerated {
            continue;
        }
        world.figure("the leader has stepped down", cut, succession.ended, Some(TTL));
        world.figure("until another takes writes", cut, succession.begun, Some(tolerated));
        let returned = |s: &Said| s.t > cut && s.what.as_deref() == Some("returned");
        let back = world.each(&others, "it came back as what it was", SOON, returned).await;
        world.figure("until the others are back", cut, back, Some(worst.silent_pod_stops));
        // A control session that waits for an answer of the old leader notices later.
        let whole = world.whole(&others, SOON).await;
        world.figure("until the others hold both their locks", cut, whole, None);
        for (pod, was) in others.iter().zip(&was) {
            let (_, now) = world.whole_as(pod, SOON, |_| true).await;
            assert_eq!(now.incarnation, was.incarnation, "pod {pod} is what it was");
        }
        the_one_beside_it_is_buried(&mut world, succession).await;
        cluster.mend(old);
        comes_back(&mut world).await;
        cluster.is_whole(Replication::Synchronous).await;
        world.all_runs_ended(SOON).await;
        assert_eq!(world.reasons().await, [("a".to_owned(), "lost".to_owned())]);
        return world.conclude(&Excused::ended(&["a"])).await;
    }
    panic!("{BUSY}");
}

/// The same where nobody waits for a standby, and with a lease that is shorter than Patroni's `ttl`.
async fn cut_asynchronous() -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, cluster) = fleet_with_links(LEASE, Replication::Asynchronous).await;
        load(&mut world, LEASE * 5).await;
        let old = cluster.leader().await;
        let cut = now_ns();
        cluster.cut(old);
        let succession = cluster.succession(old, &mut world).await;
        if !stepped_down_in_time(cut, succession) {
            continue;
        }
        world.figure("the leader has stepped down", cut, succession.ended, Some(TTL));
        world.figure("until another takes writes", cut, succession.begun, None);
        are_told_to_stop(&mut world, &["b", "c"], cut).await;
        assert!(!world.missing().await.is_empty(), "nothing that the old leader confirmed is missing");
        the_one_beside_it_is_buried(&mut world, succession).await;
        cluster.mend(old);
        comes_back(&mut world).await;
        cluster.is_whole(Replication::Asynchronous).await;
        world.all_runs_ended(SOON).await;
        let ends = world.reasons().await;
        let lost: Vec<_> = ends.iter().filter(|(_, reason)| reason == "lost").map(|(pod, _)| pod.as_str()).collect();
        assert_eq!(lost, ["a"], "nobody else died: {ends:?}");
        return world.conclude(&Excused::ended(&PODS).lost_writes()).await;
    }
    panic!("{BUSY}");
}

/// Whether Patroni kept its own promise: the leader that was cut off stepped down before its key had expired, and before
/// another began. A machine that is too busy for that has two primaries: the pod on the old side buries the others on
/// the old one, and begins their runs beside them.
fn stepped_down_in_time(cut: u64, Succession { ended, begun }: Succession) -> bool {
    ended <= begun && Duration::from_nanos(ended.saturating_sub(cut)) <= TTL
}

/// The pod on the old leader's side tells its runs to stop, and the others bury it.
async fn the_one_beside_it_is_buried(world: &mut World, Succession { ended, begun, .. }: Succession) {
    let worst = world.worst_case();
    let stops = worst.silent_pod_stops;
    let told = world.pods["a"].heard("it told its runs to stop", stops + slack(), |s| {
        (s.t > ended && s.what.as_deref() == Some("self_fenced")).then_some(s.t)
    });
    let told = told.await;
    world.figure("the one beside it tells its runs to stop, from the leader's end", ended, told, Some(stops));
    let bound = worst.database_restarted;
    let buried = world.buried("a", begun, bound + slack()).await;
    world.figure("it is buried, from the new leader's beginning", begun, buried, Some(bound));
    let resumed = world.resumed(begun, SOON).await;
    world.figure("first run goes on, from the new leader's beginning", begun, resumed, None);
}

async fn comes_back(world: &mut World) {
    let mended = now_ns();
    let back = world.joined("a", mended, SOON).await;
    world.figure("mended, it is registered anew", mended, back, None);
}
