//! No short time-out of ours is in force at COMMIT. A transaction that notified waits there behind the commits of all
//! others that did; here one of those hangs, since it waits for a standby that does not exist.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::patience::SOON;
use crate::support::faults::OwnServer;
use crate::support::{Db, eventually, lease, sql, start, timed};

/// Far more than the milliseconds for which a slice waits for a witness, and less than `statement_timeout`.
const LONG: Duration = Duration::from_millis(400);

/// A server whose commits are local, unless a session asks for the standby.
async fn server() -> OwnServer {
    OwnServer::start(&[("synchronous_standby_names", "nope"), ("synchronous_commit", "local")]).await
}

/// Somebody else's transaction that has notified, and hangs in its COMMIT.
struct Foreign {
    pid: i32,
    committing: JoinHandle<sql::Client>,
}

impl Foreign {
    async fn hang(db: &Db) -> Self {
        let client = sql::connect(&db.url).await;
        client.batch_execute("CREATE TABLE IF NOT EXISTS of_the_service (n int)").await.unwrap();
        let pid: i32 = client.scalar("SELECT pg_backend_pid()", &[]).await;
        let committing = tokio::spawn(async move {
            let sql = "SET synchronous_commit = on; BEGIN; INSERT INTO of_the_service \
                       VALUES (1); NOTIFY of_the_service; COMMIT";
            client.batch_execute(sql).await.expect("its commit");
            client
        });
        eventually(SOON, "the foreign commit hangs", || async {
            let sql = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1";
            let waits: Option<String> = db.client.scalar(sql, &[&pid]).await;
            if waits.as_deref() == Some("SyncRep") { Ok(()) } else { Err(format!("{waits:?}")) }
        })
        .await;
        Self { pid, committing }
    }

    /// Lets it commit.
    async fn go_on(self, db: &Db) {
        assert!(db.client.scalar::<bool>("SELECT pg_cancel_backend($1)", &[&self.pid]).await);
        self.committing.await.expect("it commits");
    }
}

/// Waits until somebody, of an application that is like this, has been waiting in a COMMIT for so long; returns its pid
/// and since when.
async fn waits_in_its_commit(db: &Db, application: &str, long: Duration) -> (i32, f64) {
    let sql = "SELECT l.pid, extract(epoch FROM l.waitstart)::float8, extract(epoch \
                 FROM clock_timestamp() - l.waitstart)::float8 FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                WHERE l.locktype = 'object' AND l.database = 0 AND NOT l.granted AND a.application_name LIKE $1";
    eventually(SOON, &format!("{application} waits in its COMMIT for {long:?}"), || async {
        let rows = db.client.query(sql, &[&application]).await.unwrap();
        let waits: Vec<(i32, f64, f64)> =
            rows.iter().filter_map(|r| Some((r.get(0), r.get::<_, Option<f64>>(1)?, r.get(2)))).collect();
        let longest = waits.iter().find(|(_, _, waited)| *waited > long.as_secs_f64());
        longest.map(|(pid, since, _)| (*pid, *since)).ok_or(format!("{waits:?}"))
    })
    .await
}

async fn trigger(db: &Db, pod: &str) -> Option<String> {
    let sql = "SELECT detail->>'trigger' FROM studio_pod_events WHERE kind = 'buried' AND pod_id = $1";
    db.client.query_opt(sql, &[&pod]).await.unwrap().map(|row| row.get(0))
}

/// `SELECT * FROM studio_watch(1, 2, 900, 25)` next to a commit that hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_was_granted_is_not_cancelled_while_it_tells_the_others() {
    timed(async {
        let server = server().await;
        let db = Db::on(&server).await;
        let pod = db.pod("a").await;
        let (eyes, mut heard) = sql::listening(&db.url).await;
        let channel: String = eyes.scalar("SELECT quote_ident(studio_channel())", &[]).await;
        eyes.batch_execute(&format!("LISTEN {channel}")).await.unwrap();
        let foreign = Foreign::hang(&db).await;
        let watcher = sql::connect(&format!("{}?application_name=watcher", db.url)).await;
        let watching =
            tokio::spawn(async move { watcher.query_one("SELECT answer FROM studio_watch(1, 2, 900, 25)", &[]).await });
        waits_in_its_commit(&db, "watcher", LONG).await;
        foreign.go_on(&db).await;
        let answer = watching.await.unwrap().expect("the watch is not cancelled");
        assert_eq!(answer.get::<_, &str>(0), "both");
        let told = tokio::time::timeout(SOON, async {
            loop {
                let notice = heard.recv().await.expect("a notice");
                // The pod's own are others: it is alone, and watches nobody.
                if notice == "free" {
                    return;
                }
            }
        });
        told.await.expect("all are told");
        drop(pod);
    })
    .await;
}

/// Whatever their answer, the functions leave `lock_timeout` as they found it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_functions_that_wait_put_the_callers_lock_timeout_back() {
    timed(async {
        let db = Db::new().await;
        let holder = sql::connect(&db.url).await;
        holder.batch_execute("SELECT pg_advisory_lock(11), pg_advisory_lock(22)").await.unwrap();
        for (call, answer) in [
            ("SELECT answer FROM studio_watch(1, 2, 50, 10)", "both"),
            ("SELECT answer FROM studio_watch(1, 22, 50, 10)", "liveness"),
            ("SELECT answer FROM studio_watch(11, 22, 50, 10)", "held"),
            ("SELECT studio_lock(3, 50)::text", "true"),
            ("SELECT studio_lock(11, 50)::text", "false"),
        ] {
            for callers in ["7s", "0"] {
                db.client.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = '{callers}'")).await.unwrap();
                assert_eq!(db.client.scalar::<String>(call, &[]).await, answer, "{call}");
                let after: String = db.client.scalar("SHOW lock_timeout", &[]).await;
                assert_eq!(after, callers, "{call}");
                db.client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
    })
    .await;
}

/// A death while a foreign commit hangs: the watch's notice waits behind it, and the burial is pushed once it goes
/// through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_beside_a_foreign_commit_is_pushed_once_that_goes_through() {
    timed(async {
        let server = server().await;
        let db = Db::on(&server).await;
        let [a, b] = db.settled_pods().await;
        for pod in ["a", "b"] {
            db.client.armed(pod, SOON).await;
        }
        let watch = db.client.backend("b", "watch").await;
        let foreign = Foreign::hang(&db).await;
        drop(a);
        let (waits, _) = waits_in_its_commit(&db, "podlock/b/watch", LONG).await;
        assert_eq!(Some(waits), watch);
        foreign.go_on(&db).await;
        db.client.roster_is(&["b"], SOON).await;
        assert_eq!(trigger(&db, "a").await.as_deref(), Some("push"));
        assert_eq!(db.client.backend("b", "watch").await, watch, "the watch session was lost over it");
        drop(b);
    })
    .await;
}

/// The same for the burial's own COMMIT: a wait that is longer than any warm-up's, and one that is longer than
/// `statement_timeout`, after which the server answers, nothing was done, and the burial is repeated on the same
/// session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burial_whose_commit_waits_behind_a_foreign_one_goes_through_or_is_repeated() {
    timed(async {
        for outlasts in [false, true] {
            let server = server().await;
            let mut db = Db::on(&server).await;
            let [a, b] = db.settled_pods().await;
            for pod in ["a", "b"] {
                db.client.armed(pod, SOON).await;
            }
            let watch = db.client.backend("b", "watch").await;
            let eyes = Db {
                client: sql::connect(&db.url).await,
                url: db.url.clone(),
                pod_url: db.pod_url.clone(),
                name: db.name.clone(),
            };
            // The burial stands before the log until the foreign commit hangs.
            let log = db.client.transaction().await.unwrap();
            log.batch_execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
            drop(a);
            eventually(SOON, "the burial stands before the log", || async {
                let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'podlock/b/watch' \
                           AND wait_event_type = 'Lock' AND query LIKE 'WITH proof%'";
                eyes.client.query_opt(sql, &[]).await.unwrap().map(drop).ok_or("it does not".to_owned())
            })
            .await;
            let foreign = Foreign::hang(&eyes).await;
            log.rollback().await.unwrap();
            let (_, since) = waits_in_its_commit(&eyes, "podlock/b/watch", LONG).await;
            if outlasts {
                let limit = b.settings().statement_timeout;
                eventually(limit + SOON, "it was cancelled, and waits again", || async {
                    let (_, now) = waits_in_its_commit(&eyes, "podlock/b/%", Duration::ZERO).await;
                    if now > since { Ok(()) } else { Err(format!("since {since}")) }
                })
                .await;
                assert_eq!(trigger(&eyes, "a").await, None, "nothing was done");
            }
            foreign.go_on(&eyes).await;
            eyes.client.roster_is(&["b"], SOON).await;
            if !outlasts {
                assert_eq!(trigger(&eyes, "a").await.as_deref(), Some("push"));
            }
            assert_eq!(
                eyes.client.backend("b", "watch").await,
                watch,
                "outlasts: {outlasts}: the watch session was lost over it"
            );
            eyes.client.assert_fold_is_roster().await;
            drop(b);
        }
    })
    .await;
}

/// A registration whose COMMIT was cancelled is undone and tried again: the pod starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_whose_commit_waits_for_longer_than_a_statement_may_take_is_tried_again() {
    timed(async {
        let server = server().await;
        let db = Db::on(&server).await;
        podlock::migrate::up(&db.config("a")).await.unwrap();
        let foreign = Foreign::hang(&db).await;
        let config = db.config("a");
        let starting = tokio::spawn(async move { start(config).await });
        let (pid, since) = waits_in_its_commit(&db, "podlock/a/liveness", LONG).await;
        eventually(lease() + SOON, "it was cancelled, and waits again", || async {
            let (again, now) = waits_in_its_commit(&db, "podlock/a/liveness", Duration::ZERO).await;
            if now > since && again == pid {
                Ok(())
            } else {
                Err(format!("{again} since {now}, at first {pid} since {since}"))
            }
        })
        .await;
        assert_eq!(db.client.roster().await, [""; 0]);
        foreign.go_on(&db).await;
        let pod = starting.await.unwrap();
        db.client.roster_is(&["a"], SOON).await;
        db.client.assert_fold_is_roster().await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
