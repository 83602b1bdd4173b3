//! What happens where a pod starts under a name, or a key, that is another's.

use rustix::process::Signal;

use crate::checker::Excused;
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::scenario::Scenario;
use crate::world::{Figure, World, slack};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("names::a_duplicate_is_refused", &[], duplicate).promises(
            "The second process waits for `acquire_timeout`, is told who has the name, and ends; the first \
                 notices nothing.",
        ),
        Scenario::new("names::two_start_under_one_name_at_once", &[], two_at_once)
            .promises("One has it, the other is told so and ends."),
        Scenario::new("names::a_restart_under_the_old_name", &[], restart_among_others)
            .promises("The name is there again at once, and each run goes on once."),
        Scenario::new("names::a_restart_of_the_only_pod", &[], restart_of_the_only_one)
            .promises("It takes the place of the dead one, with its runs, and waits for nothing to settle."),
        Scenario::new("names::a_replacement_of_a_frozen_pod", &[], replacement_of_a_frozen_one)
            .promises("It waits until the server has freed the lock. The one that hung wakes and may write nothing."),
        Scenario::new("names::a_key_collision_is_refused", &[], key_collision)
            .promises("The second name is refused by name, while the first lives and while only its row is there."),
    ]
}

/// A second process under the name of a living pod waits for `acquire_timeout`, in case the first is dying, and is told
/// who has the name. The first notices nothing, and when it dies that is seen as ever.
async fn duplicate() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b"]).await;
    world.start("a", 6, 480, 25).await;
    let was = world.status("a").await;
    // It connects, and then it waits.
    let limit = world.settings().acquire_timeout + world.settings().connect_timeout;
    let at = now_ns();
    let second = world.command("a");
    let said = world.refused("a second a", second).await;
    world.figure("the duplicate is refused", at, said.t, Some(limit));
    assert_eq!(said.kind.as_deref(), Some("name_taken"), "{said:?}");
    let holder = was.as_ref().map(|a| format!("server process {} from 127.0.0.1", a.liveness)).unwrap();
    let text = said.text.unwrap_or_default();
    assert!(text.contains(&holder) && text.contains("pod a"), "{text:?} has no {holder:?}");
    assert_eq!(world.status("a").await, was, "the first is undisturbed");
    assert_eq!((world.takeovers().await, world.ends().await), (0, vec![]));
    world.locks_are_of(&["a", "b"]).await;
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, bound + slack()).await;
    world.figure("the first is killed then: buried", killed, buried, Some(bound));
    world.conclude(&Excused::ended(&["a"])).await
}

/// Two processes start under one name at the same moment: one of them has it.
async fn two_at_once() -> Vec<Figure> {
    let mut world = World::shared().await;
    let limit = world.settings().acquire_timeout + world.settings().connect_timeout;
    let at = now_ns();
    for process in ["a", "the other a"] {
        let command = world.command("a");
        world.spawn(process, command);
    }
    let refused = world.first("one is refused", limit + slack(), |s| s.ev == "refused").await;
    world.figure("the one that is too late is refused", at, refused, Some(limit));
    let (mut there, mut gone) = (world.pods.remove("a").unwrap(), world.pods.remove("the other a").unwrap());
    if there.find(|s| (s.ev == "refused").then_some(())).is_some() {
        std::mem::swap(&mut there, &mut gone);
    }
    assert_eq!(gone.find(|s| s.kind.clone()).as_deref(), Some("name_taken"), "{:?}", gone.said());
    assert_eq!(gone.ended(SOON).await, 1, "its exit code");
    let incarnation = there.ready(SOON).await;
    world.pods.insert("a".to_owned(), there);
    world.start("a", 3, 20, 25).await;
    assert_eq!(world.status("a").await.map(|a| (a.incarnation, a.session)), Some((incarnation, 1)));
    world.locks_are_of(&["a"]).await;
    assert_eq!(world.ends().await, [], "there never was another");
    world.conclude(&Excused::default()).await
}

/// A pod is killed and started again at once, under its name, while others live: whether they have buried it by then or
/// not, the name is there again, and each run goes on once.
async fn restart_among_others() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 100, 25).await;
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let again = world.command("a");
    world.pod_by("a", again).await;
    world.figure("its name is there again", killed, now_ns(), None);
    let resumed = world.resumed(killed, SOON).await;
    world.figure("first run goes on", killed, resumed, Some(bound));
    world.all_runs_ended(SOON).await;
    let ends = world.ends().await;
    let [(pod, reason, by)] = ends.as_slice() else { panic!("{ends:?}") };
    match (pod.as_str(), reason.as_str(), by.as_deref()) {
        ("a", "lost", Some("b" | "c")) | ("a", "replaced", None) => {}
        _ => panic!("{ends:?}"),
    }
    assert_eq!(world.roster().await, ["a", "b", "c"]);
    world.conclude(&Excused::ended(&["a"])).await
}

/// With no peer to bury it, the new process takes the place of the old one, and its runs with it: nobody has to wait
/// for anything to settle.
async fn restart_of_the_only_one() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.pod("a").await;
    world.start("a", 6, 60, 25).await;
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let again = world.command("a");
    world.pod_by("a", again).await;
    let ready = now_ns();
    world.figure("its name is there again", killed, ready, None);
    let resumed = world.resumed(killed, SOON).await;
    world.figure("there again, first run goes on", ready, resumed, Some(bound));
    world.all_runs_ended(SOON).await;
    assert_eq!(world.ends().await, [("a".to_owned(), "replaced".to_owned(), None)]);
    let sql = "SELECT DISTINCT attempt, reason FROM studio_run_attempts ORDER BY 1";
    let rows = world.admin.query(sql, &[]).await.unwrap();
    let attempts: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(attempts, [(1, "replaced".to_owned()), (2, "succeeded".to_owned())]);
    world.conclude(&Excused::ended(&["a"])).await
}

/// A pod hangs and its replacement is started under the same name: it waits until the server has freed the lock, and is
/// there. The one that hung wakes, may write nothing, and stops when it is told to.
async fn replacement_of_a_frozen_one() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 400, 25).await;
    let bound = world.worst_case().frozen;
    let at = now_ns();
    world.process("a").freeze().await;
    let replacement = world.command("a");
    world.spawn("another a", replacement);
    world.process("another a").ready(bound + slack()).await;
    world.figure("the replacement is there", at, now_ns(), Some(bound));
    let now = world.status("a").await;
    let resumed = world.resumed(at, SOON).await;
    world.figure("first run goes on", at, resumed, Some(bound));
    world.process("a").thaw();
    world
        .process("a")
        .heard("it is told", SOON, |s| (s.t > at && s.what.as_deref() == Some("self_fenced")).then_some(()))
        .await;
    tokio::time::sleep(world.lease).await;
    assert_eq!(world.status("a").await.map(|a| a.incarnation), now.map(|a| a.incarnation), "it keeps its name");
    let told = now_ns();
    world.process("a").signal(Signal::TERM);
    assert_eq!(world.process("a").ended(SOON).await, 0, "a clean stop");
    world.figure("the one that hung has stopped", told, now_ns(), None);
    world.all_runs_ended(SOON).await;
    assert_eq!(world.ends().await.len(), 1, "one incarnation ended");
    assert_eq!(world.roster().await, ["a", "b", "c"]);
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}

/// Two names that hash to one key: the second is refused, while the first lives and while nothing but its row is there.
async fn key_collision() -> Vec<Figure> {
    let mut world = World::shared().await;
    let one_key = "CREATE OR REPLACE FUNCTION studio_lock_key(pod_id text) RETURNS bigint \
                   LANGUAGE sql STABLE STRICT PARALLEL SAFE AS 'SELECT 42::bigint'";
    world.admin.batch_execute(one_key).await.expect("a superuser may");
    world.pod("a").await;
    world.start("a", 6, 400, 25).await;
    let was = world.status("a").await;
    let limit = world.settings().acquire_timeout + world.settings().connect_timeout;
    let at = now_ns();
    let twin = world.command("twin");
    let said = world.refused("twin", twin).await;
    world.figure("refused while the other lives", at, said.t, Some(limit));
    assert_eq!(said.kind.as_deref(), Some("key_collision"), "{said:?}");
    assert!(said.text.as_ref().is_some_and(|t| t.contains("the same lock key as pod a, which lives")), "{said:?}");
    assert_eq!(world.status("a").await, was, "the first is undisturbed");
    world.locks_are_of(&["a"]).await;

    world.kill("a").await;
    let at = now_ns();
    let twin = world.command("twin");
    let said = world.refused("twin", twin).await;
    world.figure("refused while the other's row is there", at, said.t, Some(limit));
    assert_eq!(said.kind.as_deref(), Some("key_collision"), "{said:?}");
    assert!(said.text.as_ref().is_some_and(|t| t.contains("another pod's name has the same lock key")), "{said:?}");
    world.locks_are_of(&[]).await;
    assert_eq!((world.roster().await, world.ends().await), (vec!["a".to_owned()], vec![]), "nothing was changed");
    world.pod("a").await;
    world.all_runs_ended(SOON).await;
    assert_eq!(world.ends().await, [("a".to_owned(), "replaced".to_owned(), None)], "the name's owner came back");
    world.conclude(&Excused::ended(&["a"])).await
}
