//! Runs that take their owners down with them: counted, suspected, quarantined, released; and those that only shared
//! their pods, which are spared.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podlock::operator::{Released, RunFilter};
use podlock::protocol::ending::Reason;
use podlock::protocol::poison::{self, Suspicion};
use podlock::{
    Cancelled, Config, ErrorKind, Incarnation, NewRun, OnDetach, Operator, Outcome, Pod, PodEvent, Run, RunId,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::stage::{
    CLAIM, Pause, SOON, Stage, act, behind_proxy, blocked, detail_of_event, no_orphans, nudge, story, told, whole_run,
};
use crate::inherited::clean;
use crate::support::proxy::Flow;
use crate::support::sql::Client;
use crate::support::{Db, eventually, lease, start, timed, trace};

/// Makes an orphan by hand, and tells nobody: `crashes` were counted, and its last owner ended for `reason`.
async fn orphan_after(client: &Client, crashes: i32, reason: Option<&str>) -> RunId {
    let (run_id, ghost) = (RunId::generate(), Incarnation::generate());
    let sql = "WITH run AS (INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt, \
                 crashes) VALUES ($1, 'act', 'ghost', $2, nextval('studio_fence'), 1, $3) RETURNING *), \
               ended AS (INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason) \
                 SELECT $2, 'ghost', now(), $4::text WHERE $4::text IS NOT NULL) \
               INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence) \
               SELECT run_id, attempt, owner_pod, owner_incarnation, fence FROM run";
    client.execute(sql, &[&run_id.as_uuid(), &ghost.as_uuid(), &crashes, &reason]).await.expect("an orphan");
    run_id
}

async fn error_of(client: &Client, run_id: RunId) -> Option<String> {
    client.scalar("SELECT error FROM studio_runs WHERE run_id = $1", &[&run_id.as_uuid()]).await
}

async fn quarantines(client: &Client) -> i64 {
    client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'quarantined'", &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_third_owner_that_crashes_in_a_row_has_the_run_quarantined_and_it_says_who_died_with_it() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        // It has no handler for the run and buries nobody, and hears of it all the same.
        let witness = start(db.config("witness").with(|c| c.settle = Some(lease() * 100))).await;
        let mut heard = witness.events();
        let mut pod = stage.pod(db.config("poisoned")).await;
        let run_id = pod.start(act()).await.unwrap().run_id;
        let mut dead = Vec::new();
        for crash in 1..=3 {
            let begun = stage.act().await;
            assert_eq!((begun.run.id(), begun.run.attempt()), (run_id, crash));
            assert_eq!(db.client.run(run_id).await.crashes, crash - 1);
            dead.push(pod.incarnation());
            drop((begun, pod));
            pod = stage.pod(db.config("poisoned")).await;
        }
        let end = db.client.run_in_state(run_id, "quarantined", SOON).await;
        assert_eq!((end.crashes, end.attempt, end.owner), (3, 3, Some(dead[2].as_uuid())));
        let finished = "SELECT finished_at IS NOT NULL FROM studio_runs WHERE run_id = $1";
        assert!(db.client.scalar::<bool>(finished, &[&run_id.as_uuid()]).await);
        assert_eq!(story(&db.client, run_id).await, told(&[("poisoned", Some("replaced")); 3]));
        let error = error_of(&db.client, run_id).await.expect("it says why");
        assert!(
            error.starts_with("3 owners in a row died with it, without progress in between: poisoned (replaced at 2"),
            "{error}"
        );
        assert_eq!(error.matches("poisoned (replaced at ").count(), 3, "{error}");

        let detail = detail_of_event(&db.client, "quarantined", pod.incarnation()).await.expect("an event");
        assert_eq!((&detail["run"], &detail["crashes"], &detail["kind"]), (&json!(run_id), &json!(3), &json!("act")));
        let owners = detail["owners"].as_array().unwrap();
        assert_eq!(
            owners.iter().map(|o| o["incarnation"].clone()).collect::<Vec<_>>(),
            dead.iter().map(|d| json!(d)).collect::<Vec<_>>()
        );
        let event = async {
            loop {
                if let PodEvent::Quarantined { run, by } = heard.recv().await.unwrap() {
                    return (run, by.to_string());
                }
            }
        };
        let event = tokio::time::timeout(SOON, event).await.expect("the others are told");
        assert_eq!(event, (run_id, "poisoned".to_owned()));
        let logged = eventually(SOON, "it is logged", || async {
            let events = trace::events(&run_id.to_string());
            let found = events.iter().find(|e| e.get("event").is_some_and(|kind| kind == "quarantined"));
            found.cloned().ok_or_else(|| format!("{events:?}"))
        })
        .await;
        assert!(logged["level"] == "ERROR" && logged["error"] == error && logged["by"] == "poisoned", "{logged:?}");

        let listed = pod.operator().runs(RunFilter::new().state("quarantined")).await.unwrap();
        assert_eq!(listed.len(), 1);
        let died_with: Vec<_> = listed[0].died_with.iter().map(|o| (o.incarnation, o.reason.as_str())).collect();
        assert_eq!(died_with, dead.iter().map(|d| (*d, "replaced")).collect::<Vec<_>>());
        stage.nothing_more_has_begun().await;
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// The statement and the pure rule say the same of every history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_claim_quarantines_what_the_rule_calls_poison_and_nothing_else() {
    timed(async {
        let db = Db::new().await;
        let reasons = Reason::ALL.map(Reason::as_str);
        for max_crashes in [0, 1, 2, 3] {
            let stage = Stage::new();
            let mut expected = Vec::new();
            for crashes in 0..=3_u32 {
                for reason in reasons.into_iter().map(Some).chain([None]) {
                    let run_id = orphan_after(&db.client, i32::try_from(crashes).unwrap(), reason).await;
                    let crashed = poison::crashes().any(|crash| Some(crash.as_str()) == reason);
                    let suspicion = poison::judge(crashes + u32::from(crashed), crashed, max_crashes);
                    let state = if suspicion == Suspicion::Poison { "quarantined" } else { "succeeded" };
                    expected.push((run_id, state, i32::try_from(crashes).unwrap() + i32::from(crashed)));
                }
            }
            let pod = stage.pod(db.config("a").with(|c| c.max_crashes = max_crashes)).await;
            for _ in expected.iter().filter(|(_, state, _)| *state == "succeeded") {
                stage.act().await.done(json!(null));
            }
            for (run_id, state, crashes) in expected {
                let end = db.client.run_in_state(run_id, state, SOON).await;
                assert_eq!(end.crashes, crashes, "max_crashes {max_crashes}: {end:?}");
            }
            stage.nothing_more_has_begun().await;
            drop(pod);
        }
    })
    .await;
}

/// At a limit of one, a single crash would do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_a_yield_and_an_eviction_by_an_operator_count_nothing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let config = || db.config("a").with(|c| c.max_crashes = 1);
        let mut pod = stage.pod(config()).await;
        let run_id = pod.start(act()).await.unwrap().run_id;
        for _ in 0..2 {
            let begun = stage.act().await;
            // The handler does not listen, and is aborted: its row still names the pod.
            assert_eq!(pod.shutdown(Duration::ZERO).await.unwrap().aborted, 1);
            drop(begun);
            pod = stage.pod(config()).await;
        }
        stage.act().await.give_back();
        let begun = stage.act().await;
        pod.operator().evict("a").await.expect("evicted");
        let again = stage.act().await;
        drop(begun);
        assert_eq!((again.run.id(), again.run.attempt()), (run_id, 5));
        again.done(json!(null));
        let end = db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(end.crashes, 0);
        let reasons: Vec<_> = story(&db.client, run_id).await.into_iter().filter_map(|(_, reason)| reason).collect();
        assert_eq!(reasons, ["shutdown", "shutdown", "yielded", "evicted", "succeeded"]);
    })
    .await;
}

/// Where no run makes progress between two kills, three kills are the end of it: that is the rule. Whatever does, goes
/// on for ever: "a kill every 20 s for ten minutes" is thirty kills, made here one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_kills_quarantine_nothing_that_saves_something_between_them() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let mut pod = stage.pod(db.config("a")).await;
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(pod.start(act()).await.unwrap().run_id);
        }
        let idle = pod.start(act()).await.unwrap().run_id;
        for kill in 1..=30 {
            let left = if kill <= 3 { 4 } else { 3 };
            let acts = stage.acts(left).await;
            for act in acts.iter().filter(|act| act.run.id() != idle) {
                assert_eq!(act.run.attempt(), kill);
                act.run.checkpoint(json!(kill)).await.unwrap();
            }
            drop((acts, pod));
            pod = stage.pod(db.config("a")).await;
        }
        for act in stage.acts(3).await {
            assert_eq!((act.run.attempt(), act.run.saved()), (31, Some(&json!(30))));
            act.done(json!(null));
        }
        for run_id in runs {
            assert_eq!(db.client.run_in_state(run_id, "succeeded", SOON).await.crashes, 1);
        }
        assert_eq!(db.client.run(idle).await.state, "quarantined", "and this one saved nothing");
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_one_suspect_at_a_time_beside_others_until_it_ends_or_makes_progress() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let mut suspects = BTreeSet::new();
        for _ in 0..4 {
            suspects.insert(orphan_after(&db.client, 1, Some("lost")).await);
        }
        let mut clean = BTreeSet::new();
        for _ in 0..3 {
            clean.insert(orphan_after(&db.client, 0, Some("lost")).await);
        }
        // Room for fewer than there are suspects: those that wait do not stand in the way of the others.
        let _a = stage.pod(db.config("a").capacity(4)).await;
        let mut acts = stage.acts(4).await;
        let suspect = acts.remove(acts.iter().position(|act| suspects.contains(&act.run.id())).expect("one suspect"));
        assert!(acts.iter().all(|act| clean.contains(&act.run.id())), "and no other");
        acts.remove(0).done(json!(null));
        nudge(&db.client).await;
        let _b = stage.pod(db.config("b").capacity(4)).await;
        let on_b = stage.act().await;
        assert!(suspects.contains(&on_b.run.id()) && on_b.pod() == "b", "each pod has its own");
        nudge(&db.client).await;
        tokio::time::sleep(lease() / 2).await;
        stage.nothing_more_has_begun().await;
        suspect.run.checkpoint(json!(1)).await.unwrap();
        let next = stage.act().await;
        assert!(suspects.contains(&next.run.id()) && next.pod() == "a", "progress clears it");
        on_b.done(json!(null));
        let last = stage.act().await;
        assert!(suspects.contains(&last.run.id()) && last.pod() == "b", "so does its end");
        for act in [suspect, next, last].into_iter().chain(acts) {
            act.done(json!(null));
        }
        no_orphans(&db.client).await;
        assert_eq!(quarantines(&db.client).await, 0);
    })
    .await;
}

/// A run that is poison, which `b` has read and is about to quarantine.
struct Doomed {
    db: Db,
    stage: Stage,
    pause: Pause,
    run_id: RunId,
    b: Pod,
}

impl Doomed {
    async fn seen() -> Self {
        let (db, stage) = (Db::new().await, Stage::new());
        let pause = Pause::install(&db).await;
        let run_id = orphan_after(&db.client, 2, Some("lost")).await;
        let b = stage.pod(Pause::config(&db, "b", 1)).await;
        blocked(&db.client, CLAIM, 1).await;
        Self { db, stage, pause, run_id, b }
    }

    /// `b` goes on; its pass ends, and a later run shows that.
    async fn goes_on(&self) {
        self.pause.release(1).await;
        blocked(&self.db.client, CLAIM, 0).await;
        let later = self.b.start(act()).await.unwrap().run_id;
        let begun = self.stage.act().await;
        assert_eq!(begun.run.id(), later);
        begun.done(json!(null));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_quarantine_a_run_at_once_do_it_once() {
    timed(async {
        let doomed = Doomed::seen().await;
        let Doomed { db, stage, pause, run_id, .. } = &doomed;
        let _c = stage.pod(Pause::config(db, "c", 2)).await;
        blocked(&db.client, CLAIM, 2).await;
        tokio::join!(pause.release(1), pause.release(2));
        let end = db.client.run_in_state(*run_id, "quarantined", SOON).await;
        blocked(&db.client, CLAIM, 0).await;
        nudge(&db.client).await;
        assert_eq!((end.crashes, end.attempt), (3, 1));
        assert_eq!(quarantines(&db.client).await, 1);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// `c` knows no limit. Whichever of the two comes first, the other finds nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_claim_and_a_quarantine_at_once_the_first_one_holds() {
    timed(async {
        let doomed = Doomed::seen().await;
        let c = doomed.stage.pod(doomed.db.config("c").with(|c| c.max_crashes = 0)).await;
        let claimed = doomed.stage.act().await;
        assert_eq!((claimed.run.id(), claimed.run.incarnation()), (doomed.run_id, c.incarnation()));
        let before = whole_run(&doomed.db.client, doomed.run_id).await;
        doomed.goes_on().await;
        assert_eq!(whole_run(&doomed.db.client, doomed.run_id).await, before);
        claimed.run.checkpoint(json!(1)).await.expect("c owns it");
        assert_eq!(quarantines(&doomed.db.client).await, 0);
        claimed.done(json!(null));

        let doomed = Doomed::seen().await;
        let Doomed { db, stage, pause, run_id, .. } = &doomed;
        let _c = stage.pod(Pause::config(db, "c", 2).with(|c| c.max_crashes = 0)).await;
        blocked(&db.client, CLAIM, 2).await;
        pause.release(1).await;
        db.client.run_in_state(*run_id, "quarantined", SOON).await;
        let before = whole_run(&db.client, *run_id).await;
        pause.release(2).await;
        blocked(&db.client, CLAIM, 0).await;
        assert_eq!(whole_run(&db.client, *run_id).await, before);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_cancelled_before_it_is_quarantined_stays_cancelled_and_the_other_way_round() {
    timed(async {
        let doomed = Doomed::seen().await;
        // Not by b's pool, which is held.
        let operator = Operator::connect(&doomed.db.config("x")).await.unwrap();
        assert_eq!(operator.cancel(doomed.run_id).await.unwrap(), Cancelled::Now);
        let before = whole_run(&doomed.db.client, doomed.run_id).await;
        doomed.goes_on().await;
        assert_eq!(whole_run(&doomed.db.client, doomed.run_id).await, before);

        let doomed = Doomed::seen().await;
        doomed.pause.release(1).await;
        doomed.db.client.run_in_state(doomed.run_id, "quarantined", SOON).await;
        let ended = Cancelled::AlreadyEnded { state: "quarantined".to_owned() };
        assert_eq!(doomed.b.operator().cancel(doomed.run_id).await.unwrap(), ended);
    })
    .await;
}

/// `a` is buried but alive, with a run under which two others crashed; `b` has read that, and is about to quarantine
/// it.
struct Late {
    db: Db,
    stage: Stage,
    pause: Pause,
    begun: super::stage::Act,
    run_id: RunId,
    _pods: [Pod; 2],
    _proxy: crate::support::proxy::Proxy,
}

impl Late {
    async fn buried() -> Self {
        let (db, stage) = (Db::new().await, Stage::new());
        let pause = Pause::install(&db).await;
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.on_detach = OnDetach::Continue)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        db.client.execute("UPDATE studio_runs SET crashes = 2", &[]).await.unwrap();
        let begun = stage.act().await;
        let b = stage.pod(Pause::config(&db, "b", 1)).await;
        proxy.all(&["liveness", "control", "watch"], Flow::Hole);
        blocked(&db.client, CLAIM, 1).await;
        assert_eq!(db.client.roster().await, ["b"]);
        Self { db, stage, pause, begun, run_id, _pods: [a, b], _proxy: proxy }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_finish_before_the_quarantine_holds_and_one_after_it_is_refused() {
    timed(async {
        let Late { db, stage, pause, begun, run_id, _pods, _proxy } = Late::buried().await;
        begun.done(json!("by its owner"));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        let before = whole_run(&db.client, run_id).await;
        pause.release(1).await;
        blocked(&db.client, CLAIM, 0).await;
        nudge(&db.client).await;
        assert_eq!(whole_run(&db.client, run_id).await, before);
        assert_eq!(quarantines(&db.client).await, 0);
        stage.nothing_more_has_begun().await;
    })
    .await;
    timed(async {
        let Late { db, stage, pause, begun, run_id, _pods, _proxy } = Late::buried().await;
        pause.release(1).await;
        db.client.run_in_state(run_id, "quarantined", SOON).await;
        let before = whole_run(&db.client, run_id).await;
        let refused = begun.run.checkpoint(json!(1)).await.expect_err("it is over");
        assert!(refused.is_fenced(), "{refused}");
        begun.done(json!("too late"));
        nudge(&db.client).await;
        assert_eq!(whole_run(&db.client, run_id).await, before);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_between_scan_and_claim_spares_the_run() {
    timed(async {
        let Late { db, stage, pause, begun, run_id, _pods, _proxy } = Late::buried().await;
        begun.run.checkpoint(json!({"at": 7})).await.expect("its fence is still the run's");
        pause.release(1).await;
        let taken = stage.act().await;
        assert_eq!((taken.run.id(), taken.pod(), taken.run.saved()), (run_id, "b", Some(&json!({"at": 7}))));
        assert_eq!(db.client.run(run_id).await.crashes, 1);
        assert_eq!(quarantines(&db.client).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_run_runs_again_with_its_crashes_forgotten() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let run_id = orphan_after(&db.client, 2, Some("lost")).await;
        let by_sql = orphan_after(&db.client, 2, Some("stalled")).await;
        let pod = stage.pod(db.config("a").lease(lease() * 10)).await;
        db.client.run_in_state(run_id, "quarantined", SOON).await;
        db.client.run_in_state(by_sql, "quarantined", SOON).await;
        let operator = pod.operator();
        assert_eq!(operator.release(run_id).await.unwrap(), Released::Now);
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt()), (run_id, 2), "and all pods were told");
        assert_eq!((db.client.run(run_id).await.crashes, error_of(&db.client, run_id).await), (0, None));
        let running = Released::NotQuarantined { state: "running".to_owned() };
        assert_eq!(operator.release(run_id).await.unwrap(), running);
        begun.done(json!("after all"));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run_id).await, told(&[("ghost", Some("lost")), ("a", Some("succeeded"))]));
        assert_eq!(operator.release(RunId::generate()).await.unwrap(), Released::NotFound);

        let released: Uuid = db.client.scalar("SELECT studio_release($1)", &[&by_sql.as_uuid()]).await;
        assert_eq!(released, by_sql.as_uuid());
        assert_eq!(stage.act().await.run.id(), by_sql);
        let refused = db.client.execute("SELECT studio_release($1)", &[&run_id.as_uuid()]).await.expect_err("it ended");
        assert_eq!(refused.code().map(|c| c.code()), Some("55000"), "{refused:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_whose_key_is_taken_is_refused_by_the_run_that_has_it() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let run_id = orphan_after(&db.client, 2, Some("lost")).await;
        db.client.execute("UPDATE studio_runs SET key = 'k'", &[]).await.unwrap();
        let pod = stage.pod(db.config("a")).await;
        db.client.run_in_state(run_id, "quarantined", SOON).await;
        let other = pod.start(act().key("k")).await.expect("a quarantined run holds no key").run_id;
        let begun = stage.act().await;
        let before = whole_run(&db.client, run_id).await;
        let refused = pod.operator().release(run_id).await.expect_err("the key is taken");
        assert_eq!((refused.kind(), refused.run_id()), (ErrorKind::KeyBusy, Some(other)), "{refused}");
        assert_eq!(whole_run(&db.client, run_id).await, before);
        begun.done(json!(null));
        db.client.run_in_state(other, "succeeded", SOON).await;
        assert_eq!(pod.operator().release(run_id).await.unwrap(), Released::Now);
        assert_eq!(stage.act().await.run.id(), run_id);
    })
    .await;
}

/// Three settled pods, of which a poison run has taken down two: the run, and the one that is left.
async fn last_of_three(db: &Db, stage: &Stage) -> (RunId, Pod) {
    let mut pods = Vec::new();
    for name in ["fleet-a", "fleet-b", "fleet-c"] {
        pods.push(stage.pod(db.config(name)).await);
    }
    // They may bury then, and have seen one another.
    tokio::time::sleep(lease() + Duration::from_millis(500)).await;
    eventually(SOON, "the third has counted the pods", || async {
        let counted = trace::events("max_crashes_high").iter().any(|e| e["pod"] == "fleet-c");
        if counted { Ok(()) } else { Err("it has not".to_owned()) }
    })
    .await;
    let run_id = pods[0].start(act()).await.unwrap().run_id;
    for _ in 0..2 {
        let begun = stage.act().await;
        let at = pods.iter().position(|pod| pod.pod_id().as_str() == begun.pod()).expect("one of them");
        drop((begun, pods.remove(at)));
    }
    let last = pods.pop().expect("the third");
    db.client.roster_is(&[last.pod_id().as_str()], SOON).await;
    (run_id, last)
}

/// "max_crashes (3) that is not below the number of pods lets one poison run take the whole fleet down."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_pods_survives_a_poison_run_that_took_the_others_down() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (run_id, last) = last_of_three(&db, &stage).await;
        let end = db.client.run_in_state(run_id, "quarantined", lease() * 10).await;
        assert_eq!((end.crashes, end.attempt), (2, 2), "it was not begun here");
        let error = error_of(&db.client, run_id).await.expect("it says why");
        assert!(error.starts_with("2 owners in a row died with it"), "{error}");
        stage.nothing_more_has_begun().await;
        assert_eq!(last.status().phase, podlock::Phase::Active);
        // What took nobody down goes on: the pod is not idle, it is only spared that one run.
        last.start(act()).await.expect("it works");
        stage.act().await.done(json!(null));

        let warned = trace::events("max_crashes_high");
        let warned = warned.iter().find(|e| e["pod"] == last.pod_id().as_str());
        let warned = warned.expect("it was warned of, with both numbers");
        assert_eq!((warned["max_crashes"].as_str(), warned["pods"].as_str()), ("3", "3"), "{warned:?}");
    })
    .await;
}

/// A supervisor starts a dead pod again: with another pod to spare the usual limit holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_pod_leaves_the_run_alone_until_another_pod_comes() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (run_id, last) = last_of_three(&db, &stage).await;
        // Passes come meanwhile, as each sweep brings one.
        tokio::time::sleep(lease()).await;
        stage.nothing_more_has_begun().await;
        assert_eq!(db.client.run(run_id).await.state, "running");
        let again = stage.pod(db.config("fleet-d")).await;
        let third = stage.act().await;
        assert_eq!((third.run.id(), third.run.attempt()), (run_id, 3));
        let survivor = if third.pod() == "fleet-d" {
            drop((third, again));
            last
        } else {
            drop((third, last));
            again
        };
        let end = db.client.run_in_state(run_id, "quarantined", lease() * 10).await;
        assert_eq!(end.crashes, 3, "the limit as it was set");
        assert_eq!(survivor.status().phase, podlock::Phase::Active);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// Set in the environment of the process below.
const AS_POD: &str = "POISON_IS_POD";
/// How long an innocent run takes, and how soon after its beginning a poison one aborts its process.
const INNOCENT: Duration = Duration::from_millis(600);
const POISON: Duration = Duration::from_millis(250);

/// The process of a pod: this program, started again for this one test.
#[test]
#[ignore = "is a pod, when another test starts it"]
fn the_process_of_a_pod() {
    if std::env::var_os(AS_POD).is_none() {
        return;
    }
    // It ends with the test that started it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let pod = Pod::builder(Config::from_env().unwrap())
            .handler("poison", |_run: Run| async {
                tokio::time::sleep(POISON).await;
                std::process::abort()
            })
            .handler("innocent", |_run: Run| async {
                tokio::time::sleep(INNOCENT).await;
                Ok(Outcome::Done(Value::Null))
            })
            .start()
            .await
            .expect("the pod starts");
        pod.closed().await;
    });
}

struct Process(Child);

impl Process {
    fn start(db: &Db, name: &str) -> Self {
        let this = std::env::current_exe().expect("this program");
        let child = clean(&mut Command::new(this))
            .args(["--exact", "runs::poison::the_process_of_a_pod", "--ignored", "--nocapture"])
            .env(AS_POD, "1")
            .env("DATABASE_URL", &db.pod_url)
            .env("POD_NAME", name)
            .env("PODLOCK_LEASE", "4s")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        Self(child)
    }

    fn has_died(&mut self) -> bool {
        self.0.try_wait().expect("its status").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ten runs that save nothing are on the pod each time that the eleventh aborts it. They become suspects with it, and
/// from then on no two of them are on a pod together: it dies alone, and they end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_aborts_its_process_is_quarantined_after_three_and_ten_that_shared_its_pods_all_succeed() {
    timed(async {
        let db = Db::new().await;
        // Handed in while no pod is there, the poison first: the oldest is taken first.
        let submit = "INSERT INTO studio_runs (run_id, kind, created_at) VALUES ($1, $2, now() + $3 * interval '1 s')";
        let mut runs = Vec::new();
        for i in 0..=10 {
            let run_id = RunId::generate();
            let kind = if i == 0 { "poison" } else { "innocent" };
            db.client.execute(submit, &[&run_id.as_uuid(), &kind, &f64::from(i)]).await.unwrap();
            runs.push(run_id);
        }
        let (mut pod, mut deaths) = (Process::start(&db, "a"), 0);
        eventually(SOON, "every run has ended", || {
            // As an orchestrator does it: a new process under the same name.
            if pod.has_died() {
                deaths += 1;
                pod = Process::start(&db, "a");
            }
            let running = db.client.scalar::<i64>("SELECT count(*) FROM studio_runs WHERE state = 'running'", &[]);
            async move { if running.await == 0 { Ok(()) } else { Err(format!("{deaths} deaths")) } }
        })
        .await;
        assert_eq!(deaths, 3);
        let poison = db.client.run(runs[0]).await;
        assert_eq!((poison.state.as_str(), poison.crashes, poison.attempt), ("quarantined", 3, 3));
        for run_id in &runs[1..] {
            let end = db.client.run(*run_id).await;
            assert_eq!((end.state.as_str(), end.crashes), ("succeeded", 2), "{end:?}");
            let lost = told(&[("a", Some("replaced")), ("a", Some("replaced")), ("a", Some("succeeded"))]);
            assert_eq!(story(&db.client, *run_id).await, lost, "it shared the pod both times");
        }
        let alone = "SELECT count(*) FROM studio_run_attempts p JOIN studio_run_attempts o USING (incarnation) \
                     WHERE p.run_id = $1 AND p.attempt = 3 AND o.run_id <> $1";
        assert_eq!(db.client.scalar::<i64>(alone, &[&runs[0].as_uuid()]).await, 0, "the third time it died alone");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_without_a_handler_are_left_alone_and_shown_as_unclaimable() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pod = stage.pod(db.config("a")).await;
        let unknown = pod.submit(NewRun::new("of-a-release-to-come")).await.unwrap();
        let known = pod.submit(act()).await.unwrap();
        assert_eq!(stage.act().await.run.id(), known);
        let unclaimable = || async {
            let listed = pod.operator().runs(RunFilter::new().unclaimable()).await.unwrap();
            listed.iter().map(|run| run.run_id).collect::<Vec<_>>()
        };
        assert_eq!(unclaimable().await, [unknown]);
        assert_eq!((db.client.run(unknown).await.owner, db.client.run(unknown).await.attempt), (None, 0));
        let kinds: Vec<String> = db.client.scalar("SELECT kinds FROM studio_pods", &[]).await;
        assert!(kinds.is_sorted() && kinds.contains(&"act".to_owned()), "{kinds:?}");
        // One that was built before pods said what they run may have a handler for it.
        db.client.execute("UPDATE studio_pods SET kinds = NULL", &[]).await.unwrap();
        assert_eq!(unclaimable().await, []);
        // A pod that drains takes nothing.
        db.client.execute("UPDATE studio_pods SET state = 'draining'", &[]).await.unwrap();
        assert_eq!(unclaimable().await, [unknown]);
    })
    .await;
}
