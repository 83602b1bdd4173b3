//! What happens between a pod and the server: packets that are lost or late, and connections that are reset.

use std::time::Duration;

use crate::checker::Excused;
use crate::network::{Link, Weather};
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::scenario::{Need, Scenario};
use crate::world::{Figure, LEASE, World, slack};

const NEEDS: &[Need] = &[Need::Root, Need::Tun];
const BAD: Weather = Weather { delay: Duration::from_millis(500), loss: 0.1 };

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("networks::cut_in_both_directions", NEEDS, || cut_off(Link::cut, 25)).promises(
            "The pod tells its runs to stop before the server frees its lock; it is buried, and comes back as another.",
        ),
        Scenario::new("networks::cut_to_the_server", NEEDS, || cut_off(|l| l.weather(Weather::CUT, Weather::FAIR), 25))
            .promises("The same where only what the pod sends is lost."),
        Scenario::new("networks::cut_from_the_server", NEEDS, || {
            cut_off(|l| l.weather(Weather::FAIR, Weather::CUT), 25)
        })
        .promises("The same where only what the server sends is lost."),
        Scenario::new("networks::cut_with_data_in_flight", NEEDS, || cut_off(Link::cut, 0))
            .promises("The same in the middle of writes and replies that nobody acknowledged."),
        Scenario::new("networks::cut_for_a_moment", NEEDS, cut_for_a_moment)
            .promises("An outage shorter than `outage_tolerated` disturbs no run."),
        Scenario::new("networks::everybody_is_cut_off", NEEDS, everybody_is_cut_off)
            .promises("Every pod gives its runs up; nobody buries anybody before the network is back."),
        Scenario::new("networks::delay_of_500_ms_and_loss_of_10_percent", NEEDS, delay_and_loss)
            .promises("On a link that a pod can hardly live on, for four leases, nothing is lost or done twice."),
        Scenario::new("networks::rst_on_both_witnesses", &[Need::Root, Need::Tun, Need::Ss], reset).promises(
            "A peer may take the pod for dead before it knows; if so its writes are refused, and it comes back as \
             another.",
        ),
    ]
}

/// A pod that nothing reaches any more tells its runs to stop before the server gives its lock away (L7), and is
/// buried within the lease. When the network is back, it comes as another incarnation.
async fn cut_off(cut: impl Fn(&Link), pause_ms: u64) -> Vec<Figure> {
    let mut world = World::networked(&[]).await;
    world.settled(&["a", "b", "c"]).await;
    let steps = if pause_ms == 0 { 1500 } else { 300 };
    world.start("a", 6, steps, pause_ms).await;
    let bound = world.worst_case().host_lost;
    let at = now_ns();
    cut(&world.links["a"]);
    let told = world
        .first("the silent pod tells its runs", bound + slack(), |s| {
            s.t > at && (s.what.as_deref() == Some("self_fenced") || s.ev == "told")
        })
        .await;
    world.figure("runs told to stop", at, told, Some(world.worst_case().silent_pod_stops));
    let buried = world.buried("a", at, bound + slack()).await;
    let resumed = world.resumed(at, SOON).await;
    world.figure("buried", at, buried, Some(bound));
    world.figure("first run goes on", at, resumed, Some(bound));
    let mended = now_ns();
    world.links["a"].mend();
    let back = world.joined("a", mended, SOON).await;
    world.figure("mended, registered anew", mended, back, None);
    world.conclude(&Excused::ended(&["a"])).await
}

/// A cut that is shorter than the outage that disturbs no run disturbs none.
async fn cut_for_a_moment() -> Vec<Figure> {
    let mut world = World::networked(&[]).await;
    // Twice the suite's lease: a first packet that is lost is sent again after a second, which is most of what is left
    // of 4 s.
    world.lease = LEASE * 2;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 400, 25).await;
    world.links["a"].cut();
    tokio::time::sleep(world.worst_case().outage_tolerated.mul_f64(0.8)).await;
    world.links["a"].mend();
    tokio::time::sleep(world.lease).await;
    assert_eq!(world.takeovers().await, 0, "nobody took its runs");
    world.conclude(&Excused::default()).await
}

/// The switch before the server fails for longer than the lease: every pod gives its runs up, nobody may bury until the
/// survivors have settled, and everything goes on once.
async fn everybody_is_cut_off() -> Vec<Figure> {
    let mut world = World::networked(&[]).await;
    let all = ["a", "b", "c"];
    world.settled(&all).await;
    for pod in all {
        world.start(pod, 3, 200, 25).await;
    }
    for pod in all {
        world.links[pod].cut();
    }
    tokio::time::sleep(world.lease * 2).await;
    let at = now_ns();
    for pod in all {
        world.links[pod].mend();
    }
    let resumed = world.resumed(at, SOON).await;
    world.figure("mended, first run goes on", at, resumed, None);
    world.conclude(&Excused::ended(&all)).await
}

/// A network on which a pod can hardly live: half a second each way, every tenth packet lost. Whether it keeps its
/// lock or not, nothing is done twice and nothing is lost.
async fn delay_and_loss() -> Vec<Figure> {
    let mut world = World::networked(&[]).await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 200, 25).await;
    let at = now_ns();
    world.links["a"].weather(BAD, BAD);
    tokio::time::sleep(world.lease * 4).await;
    world.links["a"].mend();
    world.all_runs_ended(SOON).await;
    world.figure("all runs have ended", at, now_ns(), None);
    world.conclude(&Excused::ended(&["a"])).await
}

/// Both sessions that hold a pod's locks are reset at once, as by a firewall: its peers may take it for dead before it
/// knows. It is another incarnation then, and what it wrote under the old one is refused.
async fn reset() -> Vec<Figure> {
    let mut world = World::networked(&[]).await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 200, 25).await;
    let ports = world.ports_of_its_locks("a").await;
    assert_eq!(ports.len(), 2, "{ports:?}");
    let at = now_ns();
    assert_eq!(world.links["a"].reset(&ports), 2, "connections were reset");
    let back = world.whole(&["a"], SOON).await;
    world.figure("holds its locks again", at, back, None);
    tokio::time::sleep(world.lease).await;
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}
