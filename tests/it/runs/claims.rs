//! Claims against finishes, against other claims, and against claims by the living.

use podlock::{Incarnation, OnDetach, Pod, RunId};
use serde_json::json;

use super::stage::{
    Act, CLAIM, Pause, SOON, Stage, act, behind_proxy, blocked, no_orphans, nudge, orphan, story, told, whole_run,
};
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, lease, sql, timed};

/// `a` is buried but alive, and its fence is still the run's: it may finish until somebody has
/// claimed. `b` has its snapshot, in which the run runs, and is held before it picks a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_finishes_between_scan_and_claim_and_is_not_run_again() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pause = Pause::install(&db).await;
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.on_detach = OnDetach::Continue)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let b = stage.pod(Pause::config(&db, "b", 1)).await;
        proxy.all(&["liveness", "control", "watch"], Flow::Hole);
        blocked(&db.client, CLAIM, 1).await;
        assert_eq!(db.client.roster().await, ["b"]);
        begun.done(json!("by its first owner"));
        let ended = db.client.run_in_state(run_id, "succeeded", SOON).await;
        let whole = whole_run(&db.client, run_id).await;
        pause.release(1).await;
        blocked(&db.client, CLAIM, 0).await;
        // A later run's claim shows that the pass is over.
        b.submit(act()).await.unwrap();
        let next = stage.act().await;
        assert!(next.run.id() != run_id && next.pod() == "b");
        assert_eq!(whole_run(&db.client, run_id).await, whole);
        assert_eq!(ended.attempt, 1);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// The other side of it: the finish holds the row while the claim looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_passes_over_a_run_that_is_being_finished() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        podlock::migrate::up(&db.config("m")).await.unwrap();
        let (run_id, _) = orphan(&db.client, "act").await;
        let mut finisher = sql::connect(&db.url).await;
        let txn = finisher.transaction().await.unwrap();
        txn.batch_execute("UPDATE studio_runs SET state = 'succeeded', finished_at = now()").await.unwrap();
        let b = stage.pod(db.config("b")).await;
        for _ in 0..2 {
            // Whatever is taken after it: the pass that took it saw the older orphan, and tried.
            b.submit(act()).await.unwrap();
            assert!(stage.act().await.run.id() != run_id);
        }
        txn.commit().await.unwrap();
        b.submit(act()).await.unwrap();
        assert!(stage.act().await.run.id() != run_id);
        let end = db.client.run(run_id).await;
        assert_eq!((end.state.as_str(), end.attempt), ("succeeded", 1));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

const RUNS: usize = 200;

/// `a` dies with 200 runs; `b` and `c` have seen all of them as orphans, and are about to pick.
struct Orphaned {
    db: Db,
    stage: Stage,
    pause: Pause,
    runs: Vec<RunId>,
    dead: Incarnation,
    survivors: [Pod; 2],
}

impl Orphaned {
    async fn seen_by_survivors_with_room(rooms: [usize; 2]) -> Self {
        let (db, stage) = (Db::new().await, Stage::new());
        let pause = Pause::install(&db).await;
        let a = stage.pod(db.config("a").capacity(RUNS)).await;
        let survivors = [
            stage.pod(Pause::config(&db, "b", 1).capacity(rooms[0])).await,
            stage.pod(Pause::config(&db, "c", 2).capacity(rooms[1])).await,
        ];
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            runs.push(a.start(act()).await.unwrap().run_id);
        }
        runs.sort_unstable();
        let dead = a.incarnation();
        drop(stage.acts(RUNS).await);
        // From here on the survivors may bury.
        tokio::time::sleep(lease()).await;
        drop(a);
        blocked(&db.client, CLAIM, 2).await;
        Self { db, stage, pause, runs, dead, survivors }
    }

    /// Every run was claimed once, its attempts say so, and so does the log. Returns how many each survivor has.
    async fn assert_each_claimed_once(&self, acts: &[Act]) -> [usize; 2] {
        let client = &self.db.client;
        let mut taken: Vec<_> = acts.iter().map(|act| act.run.id()).collect();
        taken.sort_unstable();
        assert_eq!(taken, self.runs, "each of them exactly once");
        no_orphans(client).await;
        for act in acts {
            assert_eq!(story(client, act.run.id()).await, told(&[("a", Some("lost")), (act.pod(), None)]));
            assert_eq!(client.run(act.run.id()).await.owner, Some(act.run.incarnation().as_uuid()));
        }
        let sql = "SELECT detail FROM studio_pod_events WHERE kind = 'claimed'";
        let mut said = 0;
        for row in client.query(sql, &[]).await.unwrap() {
            let detail: serde_json::Value = row.get(0);
            assert_eq!(detail["from"], json!([self.dead]));
            said += detail["runs"].as_u64().unwrap();
        }
        assert_eq!(said, RUNS as u64, "the log counts the rows that came back");
        self.stage.nothing_more_has_begun().await;
        self.survivors.each_ref().map(|pod| acts.iter().filter(|act| act.pod() == pod.pod_id().as_str()).count())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_survivors_claim_the_same_200_orphans_at_once_and_each_is_claimed_once() {
    timed(async {
        let orphaned = Orphaned::seen_by_survivors_with_room([RUNS, RUNS]).await;
        tokio::join!(orphaned.pause.release(1), orphaned.pause.release(2));
        let acts = orphaned.stage.acts(RUNS).await;
        orphaned.assert_each_claimed_once(&acts).await;
    })
    .await;
}

/// The same, with the first one's claim committed before the second one picks by what it saw earlier. The first one
/// takes its half and, as the second one does not come for long, what it has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_that_comes_late_claims_what_the_first_one_left() {
    timed(async {
        let orphaned = Orphaned::seen_by_survivors_with_room([120, RUNS]).await;
        orphaned.pause.release(1).await;
        let mut acts = orphaned.stage.acts(120).await;
        assert!(acts.iter().all(|act| act.pod() == "b"));
        orphaned.pause.release(2).await;
        acts.extend(orphaned.stage.acts(RUNS - 120).await);
        let shares = orphaned.assert_each_claimed_once(&acts).await;
        assert_eq!(shares, [120, RUNS - 120]);
    })
    .await;
}

/// The interleaving that plausible claim statements get wrong: `b`'s snapshot shows an orphan,
/// `c` claims it and commits, and only then does `b` pick and lock the row's newest version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_a_living_pod_claimed_just_now_is_not_claimed_again() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pause = Pause::install(&db).await;
        let b = stage.pod(Pause::config(&db, "b", 1)).await;
        let (run_id, _) = orphan(&db.client, "act").await;
        let (second, _) = orphan(&db.client, "act").await;
        nudge(&db.client).await;
        blocked(&db.client, CLAIM, 1).await;
        let c = stage.pod(db.config("c")).await;
        let taken = stage.acts(2).await;
        assert!(taken.iter().all(|act| act.pod() == "c" && act.run.attempt() == 2));
        let before = [whole_run(&db.client, run_id).await, whole_run(&db.client, second).await];
        pause.release(1).await;
        blocked(&db.client, CLAIM, 0).await;
        eventually(SOON, "b's pass is over", || async {
            if b.status().runs == 0 { Ok(()) } else { Err(format!("{:?}", b.status())) }
        })
        .await;
        for act in &taken {
            act.run.checkpoint(json!(1)).await.expect("c still owns it");
        }
        for (run_id, before) in [run_id, second].into_iter().zip(before) {
            let row = db.client.run(run_id).await;
            assert_eq!((row.owner, row.attempt), (Some(c.incarnation().as_uuid()), 2), "{before}");
            assert_eq!(story(&db.client, run_id).await.len(), 2);
        }
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// A guard's or a frozen client's row lock holds up neither the pass nor, once it is gone, the run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_orphan_is_passed_over_and_claimed_when_it_is_free() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let mut holder = sql::connect(&db.url).await;
        podlock::migrate::up(&db.config("m")).await.unwrap();
        let (locked, _) = orphan(&db.client, "act").await;
        let (free, _) = orphan(&db.client, "act").await;
        let txn = holder.transaction().await.unwrap();
        txn.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR SHARE", &[&locked.as_uuid()]).await.unwrap();
        let _a = stage.pod(db.config("a")).await;
        assert_eq!(stage.act().await.run.id(), free);
        assert_eq!(db.client.run(locked).await.attempt, 1);
        txn.rollback().await.unwrap();
        assert_eq!(stage.act().await.run.id(), locked);
    })
    .await;
}
