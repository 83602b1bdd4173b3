//! Replies that are lost, calls that are given up, and pods that are killed while groups are under way.

use std::time::Duration;

use futures_util::future::join_all;
use podlock::NewRun;
use serde_json::json;

use super::super::stage::{SOON, Stage, act, attempts, behind_proxy, story};
use super::{GROUP_OF_STARTS, GROUP_OF_WRITES, MANY, acts, checkpoint_of, is_blocked, roomy};
use crate::support::process::Process;
use crate::support::proxy::{Flow, Proxy};
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, lease, timed};

/// Holds the statements of pods that write runs once they are under way, until it is opened.
struct Pause<'a>(&'a Client);

impl<'a> Pause<'a> {
    async fn install(db: &Db) {
        let trigger = "CREATE FUNCTION test_pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                         PERFORM pg_catalog.pg_advisory_xact_lock_shared(77); RETURN NULL; END $$; \
                       CREATE TRIGGER test_pause BEFORE INSERT OR UPDATE ON studio_runs \
                         FOR EACH STATEMENT EXECUTE FUNCTION test_pause()";
        db.client.batch_execute(trigger).await.unwrap();
    }

    async fn begin(client: &'a Client) -> Self {
        client.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
        Self(client)
    }

    async fn end(self) {
        self.0.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
    }
}

/// Makes `writes` while the pod's statements are held, and loses the replies of those that then commit. `committed`
/// counts the writes that the tables show.
async fn with_lost_replies<T>(
    db: &Db,
    proxy: &Proxy,
    group: &str,
    committed: &str,
    writes: impl Future<Output = T>,
) -> T {
    let client = sql::connect(&db.url).await;
    let pause = Pause::begin(&client).await;
    tokio::pin!(writes);
    assert!(futures_util::poll!(&mut writes).is_pending());
    is_blocked(&db.client, group).await;
    proxy.present(&["pool"], Flow::Mute);
    pause.end().await;
    eventually(SOON, "a write is committed", || async {
        match db.client.scalar::<i64>(committed, &[]).await {
            n if n > 0 => Ok(()),
            n => Err(format!("{n} writes")),
        }
    })
    .await;
    proxy.present(&["pool"], Flow::Cut);
    writes.await
}

/// Issue: "what was sent and got no reply is repeated under the numbers that make repetition harmless".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_whose_replies_are_lost_are_written_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        Pause::install(&db).await;
        let (proxy, config) = behind_proxy(&db, "a").await;
        // Longer than a statement may take: only the cut ends it.
        let patient = |c: &mut podlock::Config| c.statement_timeout = Some(Duration::from_secs(20));
        let a = stage.pod(config.with(patient).with(roomy)).await;
        let all = i64::try_from(MANY).unwrap();

        let runs = "SELECT count(*) FROM studio_runs";
        let starts = a.start_many((0..MANY).map(|n| act().input(json!(n))));
        for started in with_lost_replies(&db, &proxy, GROUP_OF_STARTS, runs, starts).await {
            started.expect("started, by this try or the next");
        }
        let acts = stage.acts(MANY).await;
        stage.nothing_more_has_begun().await;
        assert_eq!(db.client.scalar::<i64>(runs, &[]).await, all);

        let saved = "SELECT count(*) FROM studio_runs WHERE checkpoint IS NOT NULL";
        let saving = join_all(acts.iter().map(|act| act.run.checkpoint(json!("saved"))));
        for saved in with_lost_replies(&db, &proxy, GROUP_OF_WRITES, saved, saving).await {
            saved.expect("saved, by this try or the next");
        }
        assert_eq!(db.client.scalar::<i64>(saved, &[]).await, all);

        let ended = "SELECT count(*) FROM studio_runs WHERE state = 'succeeded'";
        let ending = join_all(acts.iter().map(|act| act.run.finish(json!("once"))));
        for ended in with_lost_replies(&db, &proxy, GROUP_OF_WRITES, ended, ending).await {
            ended.expect("ended, by this try or an earlier one");
        }
        assert_eq!(db.client.scalar::<i64>(ended, &[]).await, all);
        for act in &acts {
            assert_eq!(attempts(&db.client, act.run.id()).await.len(), 1);
        }
    })
    .await;
}

/// Issue: "500 tasks that write at once with random cancellation". What was acknowledged is there, a later write is
/// never replaced by an earlier one, and nobody waits for a write that nobody wants any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_give_writes_up_at_random_lose_nothing_that_was_acknowledged() {
    const TASKS: usize = 500;
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(roomy)).await;
        let acts = acts(&stage, &a, TASKS).await;
        let writing = acts.into_iter().enumerate().map(|(task, act)| {
            tokio::spawn(async move {
                let mut dice = u64::try_from(task).unwrap() * 2 + 1;
                let (mut acknowledged, mut last) = (0, 0);
                for n in 1..=20_i64 {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let patience = Duration::from_micros(dice >> 50);
                    last = n;
                    // A third of the writes have all the time that they need.
                    let saved = if dice >> 40 & 3 == 0 {
                        Some(act.run.checkpoint(json!(n)).await)
                    } else {
                        tokio::time::timeout(patience, act.run.checkpoint(json!(n))).await.ok()
                    };
                    if let Some(saved) = saved {
                        saved.unwrap();
                        acknowledged = n;
                    }
                }
                (act, acknowledged, last)
            })
        });
        for written in join_all(writing).await {
            let (act, acknowledged, last) = written.unwrap();
            let saved = checkpoint_of(&db.client, &act.run).await.as_i64().unwrap_or(0);
            assert!((acknowledged..=last).contains(&saved), "{acknowledged} was acknowledged, and {saved} is there");
            act.done(json!(null));
        }
        eventually(SOON, "all have ended", || async {
            let left = "SELECT count(*) FROM studio_runs WHERE state <> 'succeeded'";
            match db.client.scalar::<i64>(left, &[]).await {
                0 => Ok(()),
                left => Err(format!("{left} runs")),
            }
        })
        .await;
    })
    .await;
}

/// Issue: "a crash of the pod between send and reply at each write". The server makes what the dead pod had sent, and
/// nobody hears of it. Each run ends once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_whose_pod_is_killed_while_its_writes_are_under_way_end_once() {
    timed(async {
        let db = Db::new().await;
        Pause::install(&db).await;
        let client = sql::connect(&db.url).await;
        let process = async |name: &'static str| {
            let url = db.pod_url.clone();
            tokio::task::spawn_blocking(move || Process::start(&url, name, lease())).await.unwrap()
        };
        let _survivor = process("survivor").await;
        let front = db.pod("front").await;
        let demo = || NewRun::new("demo").input(json!({"chunks": 5, "delay_ms": 20, "resume": "continue"}));
        let mut runs = Vec::new();
        for name in ["first", "second"] {
            let victim = process(name).await;
            for submitted in front.submit_many((0..60).map(|_| demo())).await {
                runs.push(submitted.unwrap());
            }
            let under_way = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name = 'podlock/{name}/pool' AND wait_event_type = 'Lock' AND query LIKE '%studio_runs%'"
            );
            let owned = format!("SELECT count(*) FROM studio_runs WHERE owner_pod = '{name}' AND state = 'running'");
            eventually(SOON, "the victim executes runs", || async {
                if db.client.scalar::<i64>(&owned, &[]).await > 0 { Ok(()) } else { Err("none yet".to_owned()) }
            })
            .await;
            let pause = Pause::begin(&client).await;
            eventually(SOON, "writes of the victim are under way", || async {
                if db.client.scalar::<i64>(&under_way, &[]).await > 0 { Ok(()) } else { Err("none".to_owned()) }
            })
            .await;
            victim.signal(rustix::process::Signal::KILL);
            drop(victim);
            pause.end().await;
        }
        for run in runs {
            db.client.run_in_state(run, "succeeded", SOON).await;
            let story = story(&db.client, run).await;
            let ends = story.iter().filter(|(_, reason)| reason.as_deref() == Some("succeeded")).count();
            assert_eq!((ends, story.last().and_then(|(_, reason)| reason.as_deref())), (1, Some("succeeded")), "{story:?}");
        }
    })
    .await;
}
