//! Guards: a transaction on a table of the service's own that commits only while the run is its attempt's. Guards come
//! through the pods' role, with just its rights.

use podlock::{ErrorKind, Incarnation, Run, RunId, StopReason};
use serde_json::json;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::stage::{FINISH, SOON, Stage, act, blocked, nudge};
use crate::inherited::clean;
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, lease, timed};

/// The service's own table: what was written under which run's fence. `n` is given under the guard.
async fn own_table(db: &Db) {
    let sql = "CREATE TABLE answers (n bigserial, run uuid NOT NULL, fence bigint NOT NULL); \
               GRANT ALL ON answers, answers_n_seq TO podlock_pod";
    db.client.batch_execute(sql).await.unwrap();
}

const WRITE: &str = "INSERT INTO answers (run, fence) VALUES ($1, $2)";

async fn answers(db: &Db) -> i64 {
    db.client.scalar("SELECT count(*) FROM answers", &[]).await
}

/// Guard, write, commit, as a service would.
async fn write_guarded(client: &mut Client, run: &Run) -> Result<(), podlock::Error> {
    let txn = client.transaction().await.expect("a transaction");
    run.guard(&txn).await?;
    txn.execute(WRITE, &[&run.id().as_uuid(), &run.fence().get()]).await.expect("a write under a guard");
    txn.commit().await.expect("a commit under a guard");
    Ok(())
}

/// Makes somebody else the owner of a run, as a claim does.
const TAKE: &str = "UPDATE studio_runs SET owner_pod = 'other', owner_incarnation = $2, fence = \
                    nextval('studio_fence'), attempt = attempt + 1 WHERE run_id = $1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_passes_over_a_guarded_run_and_takes_it_when_the_transaction_is_over() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        let b = stage.pod(db.config("b")).await;
        let guarded = a.start(act().key("guarded")).await.unwrap().run_id;
        let first = stage.act().await;
        tokio::time::sleep(lease()).await;
        let mut client = sql::connect(&db.pod_url).await;
        let txn = client.transaction().await.unwrap();
        first.run.guard(&txn).await.expect("it is this attempt's");
        drop(a);
        db.client.roster_is(&["b"], SOON).await;
        // A later run's claim shows that a pass was made.
        let later = b.submit(act()).await.unwrap();
        assert_eq!(stage.act().await.run.id(), later);
        assert_eq!(db.client.run(guarded).await.attempt, 1);
        txn.execute(WRITE, &[&guarded.as_uuid(), &first.run.fence().get()]).await.unwrap();
        txn.commit().await.expect("the guard was there before the claim");
        nudge(&db.client).await;
        let second = stage.act().await;
        assert_eq!((second.run.id(), second.run.attempt(), second.pod()), (guarded, 2, "b"));
        assert_eq!(answers(&db).await, 1, "the next attempt finds what was written");
        write_guarded(&mut client, &second.run).await.expect("it is the second one's now");
        let error = write_guarded(&mut client, &first.run).await.unwrap_err();
        assert!(error.is_fenced(), "{error}");
        assert_eq!(answers(&db).await, 2);
    })
    .await;
}

/// The claim has the row and has not committed when the guard asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_overtakes_a_guard_leaves_its_transaction_nothing_to_commit() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let run = stage.act().await.run;
        let other = Incarnation::generate();
        let mut claimer = sql::connect(&db.url).await;
        let claim = claimer.transaction().await.unwrap();
        claim.execute(TAKE, &[&run_id.as_uuid(), &other.as_uuid()]).await.unwrap();

        let mut client = sql::connect(&db.pod_url).await;
        let pid: i32 = client.scalar("SELECT pg_backend_pid()", &[]).await;
        let txn = client.transaction().await.unwrap();
        let id = run_id.as_uuid();
        txn.execute(WRITE, &[&id, &run.fence().get()]).await.expect("written before the guard");
        let waits = async {
            eventually(SOON, "the guard waits for the claim", || async {
                let sql = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $1";
                let seen: Option<String> = db.client.scalar(sql, &[&pid]).await;
                if seen.as_deref() == Some("Lock") { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
            claim.commit().await.unwrap();
        };
        let (guard, ()) = tokio::join!(run.guard(&txn), waits);
        let error = guard.unwrap_err();
        assert_eq!((error.kind(), error.run_id(), error.sqlstate()), (ErrorKind::Fenced, Some(run_id), Some("PL001")));
        for words in ["pod other owns it", "nothing of the transaction can be committed"] {
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(run.stop_reason(), Some(StopReason::Fenced));
        // A service that does not heed the error.
        let refused = txn.execute(WRITE, &[&id, &run.fence().get()]).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
        // PostgreSQL answers with a rollback.
        txn.commit().await.unwrap();
        assert_eq!(answers(&db).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_waits_for_a_guard() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let act = stage.act().await;
        let run = act.run.clone();
        let mut client = sql::connect(&db.pod_url).await;
        let txn = client.transaction().await.unwrap();
        run.guard(&txn).await.unwrap();
        act.done(json!("done"));
        blocked(&db.client, FINISH, 1).await;
        assert_eq!(db.client.run(run_id).await.state, "running");
        txn.execute(WRITE, &[&run_id.as_uuid(), &run.fence().get()]).await.unwrap();
        txn.commit().await.unwrap();
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(answers(&db).await, 1);
        assert!(write_guarded(&mut client, &run).await.unwrap_err().is_fenced(), "it has ended");
    })
    .await;
}

/// Whose run the pod itself knows to be over is refused before the server is asked, and the transaction is over all the
/// same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_of_a_cancelled_run_is_refused_and_its_transaction_commits_nothing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        for told in [true, false] {
            let run_id = a.start(act()).await.unwrap().run_id;
            let run = stage.act_of(run_id).await.run;
            if told {
                a.cancel(run_id).await.unwrap();
                assert_eq!(run.stopped().await, StopReason::Cancelled);
            } else {
                let sql = "UPDATE studio_runs SET state = 'cancelled', finished_at = now() WHERE run_id = $1";
                db.client.execute(sql, &[&run_id.as_uuid()]).await.unwrap();
            }
            let mut client = sql::connect(&db.pod_url).await;
            let txn = client.transaction().await.unwrap();
            let id = run_id.as_uuid();
            txn.execute(WRITE, &[&id, &run.fence().get()]).await.unwrap();
            let error = run.guard(&txn).await.unwrap_err();
            assert!(error.is_fenced() && error.to_string().contains("cancelled"), "{error}");
            assert_eq!(run.stop_reason(), Some(StopReason::Cancelled));
            assert!(txn.execute(WRITE, &[&id, &run.fence().get()]).await.is_err());
            txn.commit().await.unwrap();
            assert_eq!(answers(&db).await, 0);
        }
    })
    .await;
}

/// A run made by hand.
async fn run_of(db: &Db, owner: Option<Incarnation>, fence: i64, state: &str) -> RunId {
    let run_id = RunId::generate();
    let sql = "INSERT INTO studio_runs (run_id, kind, state, owner_pod, owner_incarnation, fence, finished_at) \
               SELECT $1, 'by hand', $2, CASE WHEN $3::uuid IS NOT NULL THEN 'o''brien' END, $3, $4, \
                      CASE WHEN $2 <> 'running' THEN now() END";
    let owner = owner.map(|o| o.as_uuid());
    db.client.execute(sql, &[&run_id.as_uuid(), &state, &owner, &fence]).await.unwrap();
    run_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_the_sql_function_compares_incarnation_and_fence_and_says_who_owns_the_run_now() {
    timed(async {
        let db = Db::new().await;
        let (own, other) = (Incarnation::generate(), Incarnation::generate());
        let as_pod = sql::connect(&db.pod_url).await;
        let check = async |run: RunId, incarnation: Option<Uuid>, fence: Option<i64>| {
            let sql = "SELECT studio_fence_check($1, $2, $3)";
            as_pod.query(sql, &[&run.as_uuid(), &incarnation, &fence]).await
        };
        let (me, it) = (Some(own.as_uuid()), Some(other.as_uuid()));
        let mine = run_of(&db, Some(own), 7, "running").await;
        check(mine, me, Some(7)).await.expect("it is this owner's");
        let owned = format!("Pod 'o''brien' ({own}) owns it under fence 7.");
        let ended = async |state: &str| run_of(&db, Some(own), 7, state).await;
        let cases = [
            (mine, me, Some(6), owned.as_str()),
            (mine, me, Some(8), &owned),
            (mine, it, Some(7), &owned),
            (mine, None, Some(7), &owned),
            (mine, me, None, &owned),
            (run_of(&db, None, 7, "running").await, me, Some(7), "Nobody owns it."),
            (ended("succeeded").await, me, Some(7), "The run is succeeded."),
            (ended("failed").await, me, Some(7), "The run is failed."),
            (ended("cancelled").await, me, Some(7), "The run is cancelled."),
            (ended("quarantined").await, me, Some(7), "The run is quarantined."),
            (RunId::generate(), me, Some(7), "The run is gone."),
        ];
        for (run, incarnation, fence, detail) in cases {
            let error = check(run, incarnation, fence).await.expect_err(detail);
            let error = error.as_db_error().unwrap();
            assert_eq!((error.code().code(), error.detail()), ("PL001", Some(detail)), "{error:?}");
            assert!(error.message().contains(&run.to_string()) && error.hint().is_some(), "{error:?}");
        }
        // The two given the other way round; the check rests on nothing but what it is given.
        assert!(check(mine, it, Some(7)).await.is_err() && check(mine, me, Some(7)).await.is_ok());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_an_old_snapshot_a_guard_fails_instead_of_passing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        for level in ["REPEATABLE READ", "SERIALIZABLE"] {
            for taken in [true, false] {
                let run_id = a.start(act()).await.unwrap().run_id;
                let run = stage.act_of(run_id).await.run;
                let mut client = sql::connect(&db.pod_url).await;
                let begin = format!("SET default_transaction_isolation = '{level}'");
                client.batch_execute(&begin).await.unwrap();
                let txn = client.transaction().await.unwrap();
                // The snapshot: in it, the run is this attempt's.
                txn.execute(WRITE, &[&run_id.as_uuid(), &run.fence().get()]).await.unwrap();
                if taken {
                    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
                        [&run_id.as_uuid(), &Incarnation::generate().as_uuid()];
                    db.client.execute(TAKE, &params).await.unwrap();
                } else {
                    run.checkpoint(json!(1)).await.unwrap();
                }
                let error = run.guard(&txn).await.unwrap_err();
                assert_eq!((error.sqlstate(), error.is_transient()), (Some("40001"), true), "{level}: {error}");
                txn.commit().await.unwrap();
                assert_eq!(answers(&db).await, 0);
                assert_eq!(run.stop_reason(), None, "that is not known yet");
                // Begun again, it is.
                let txn = client.transaction().await.unwrap();
                let again = run.guard(&txn).await;
                assert_eq!(again.is_err_and(|e| e.is_fenced()), taken, "{level}");
                txn.rollback().await.unwrap();
            }
        }
    })
    .await;
}

const LIMITS: [&str; 4] =
    ["statement_timeout", "idle_in_transaction_session_timeout", "tcp_user_timeout", "lock_timeout"];

async fn limits(on: &tokio_postgres::Transaction<'_>) -> Vec<String> {
    let mut limits = Vec::new();
    for name in LIMITS {
        let row = on.query_one("SELECT setting FROM pg_settings WHERE name = $1", &[&name]).await.unwrap();
        limits.push(row.get(0));
    }
    limits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_limits_its_transaction_never_lengthens_a_limit_and_is_gone_with_it() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        a.start(act()).await.unwrap();
        let run = stage.act().await.run;
        let mut client = sql::connect(&db.pod_url).await;
        let half = (lease() / 2).as_millis().to_string();
        for (before, during) in [
            (["0", "0", "0", "0"], [&*half, &half, &half, "0"]),
            (["3600000", "86400000", "90000", "61000"], [&half, &half, &half, "61000"]),
            (["1500", "900", "1100", "20"], ["1500", "900", "1100", "20"]),
        ] {
            for (name, value) in LIMITS.iter().zip(before) {
                client.batch_execute(&format!("SET {name} = {value}")).await.unwrap();
            }
            let txn = client.transaction().await.unwrap();
            run.guard(&txn).await.unwrap();
            run.guard(&txn).await.expect("once more changes nothing");
            assert_eq!(limits(&txn).await, during);
            txn.commit().await.unwrap();
            let txn = client.transaction().await.unwrap();
            assert_eq!(limits(&txn).await, before);
        }
    })
    .await;
}

/// The client of the guard lives, and says nothing any more: for the server the same as one that is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_guard_is_ended_by_the_server_and_its_run_goes_on_elsewhere() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        let _b = stage.pod(db.config("b")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let first = stage.act().await;
        tokio::time::sleep(lease()).await;
        let mut client = sql::connect(&db.pod_url).await;
        let txn = client.transaction().await.unwrap();
        first.run.guard(&txn).await.unwrap();
        txn.execute(WRITE, &[&run_id.as_uuid(), &first.run.fence().get()]).await.unwrap();
        drop(a);
        let second = stage.act().await;
        assert_eq!((second.run.id(), second.run.attempt(), second.pod()), (run_id, 2, "b"));
        assert!(txn.commit().await.is_err(), "the server has ended it");
        assert_eq!(answers(&db).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_inside_of_its_own_guard_ends_with_the_idle_transaction() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let run = stage.act().await.run;
        let mut client = sql::connect(&db.pod_url).await;
        let txn = client.transaction().await.unwrap();
        run.guard(&txn).await.unwrap();
        txn.execute(WRITE, &[&run_id.as_uuid(), &run.fence().get()]).await.unwrap();
        run.checkpoint(json!("saved")).await.expect("the server has ended the transaction that it waited for");
        assert!(txn.commit().await.is_err());
        assert_eq!(answers(&db).await, 0);
    })
    .await;
}

/// Pods hand runs to and fro while each attempt guards, checkpoints, and ends or gives back, some beside others'
/// guards.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn guards_claims_checkpoints_and_ends_never_deadlock() {
    const RUNS: usize = 6;
    const ROUNDS: i32 = 8;
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        own_table(&db).await;
        let a = stage.pod(db.config("a")).await;
        let _b = stage.pod(db.config("b")).await;
        for _ in 0..RUNS {
            a.submit(act()).await.unwrap();
        }
        let mut tasks = tokio::task::JoinSet::new();
        let mut before: Vec<Run> = Vec::new();
        for _ in 0..RUNS * usize::try_from(ROUNDS).unwrap() {
            let act = stage.act().await;
            let (url, stale) = (db.pod_url.clone(), before.iter().rev().take(4).cloned().collect::<Vec<_>>());
            before.push(act.run.clone());
            tasks.spawn(async move {
                let run = act.run.clone();
                let (mut one, mut two) = (sql::connect(&url).await, sql::connect(&url).await);
                let others = async {
                    // Two runs in one transaction, in any order; those of former attempts are refused or not there yet.
                    for other in &stale {
                        let txn = two.transaction().await.unwrap();
                        let both = async {
                            other.guard(&txn).await?;
                            run.guard(&txn).await
                        };
                        if let Err(e) = both.await {
                            assert!(e.is_fenced(), "{e}");
                        }
                    }
                };
                let own = async {
                    for step in 0..3 {
                        write_guarded(&mut one, &run).await.expect("it is this attempt's");
                        run.checkpoint(json!(step)).await.expect("it is this attempt's");
                    }
                };
                let _ = tokio::join!(others, own);
                if run.attempt() == ROUNDS { act.done(json!(null)) } else { act.give_back() }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        for run in &before {
            db.client.run_in_state(run.id(), "succeeded", SOON).await;
        }
        let sql = "SELECT count(*), count(*) FILTER (WHERE fence < newest) FROM (SELECT fence, max(fence) OVER \
                   (PARTITION BY run ORDER BY n ROWS UNBOUNDED PRECEDING) AS newest FROM answers) AS a";
        let row = db.client.query_one(sql, &[]).await.unwrap();
        let written = i64::try_from(before.len() * 3).unwrap();
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, i64>(1)),
            (written, 0),
            "no older attempt wrote after a newer one"
        );
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        assert_eq!(db.client.scalar::<i64>(deadlocks, &[]).await, 0);
    })
    .await;
}

/// The page's statements, as `psql` runs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statements_of_the_page_do_what_it_says() {
    timed(async {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guards.md")).unwrap();
        let script = page.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0;
        let db = Db::new().await;
        let own = Incarnation::generate();
        let run = run_of(&db, Some(own), 7, "running").await;
        let psql = async |fence: i64| {
            let mut psql = tokio::process::Command::new("psql");
            clean(psql.as_std_mut());
            psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-d", &db.url]);
            let variables = [format!("run={run}"), format!("incarnation={own}"), format!("fence={fence}")];
            psql.args(variables.iter().flat_map(|v| ["-v", v.as_str()])).args(["-f", "-"]);
            let mut psql =
                psql.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
            let mut stdin = psql.stdin.take().unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stdin, script.as_bytes()).await.unwrap();
            drop(stdin);
            let done = psql.wait_with_output().await.unwrap();
            (done.status.success(), String::from_utf8(done.stderr).unwrap())
        };
        let answer = async || db.client.scalar::<Option<String>>("SELECT answer FROM threads", &[]).await;
        let (fine, said) = psql(6).await;
        assert!(!fine && said.contains("PL001") && said.contains("owns it under fence 7"), "{said}");
        assert_eq!(answer().await, None);
        let (fine, said) = psql(7).await;
        assert!(fine, "{said}");
        assert_eq!(answer().await.as_deref(), Some("Because."));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_in_a_database_without_podlocks_tables_says_so_and_the_run_goes_on() {
    timed(async {
        let (db, elsewhere, stage) = (Db::new().await, Db::empty().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        a.start(act()).await.unwrap();
        let run = stage.act().await.run;
        let mut client = sql::connect(&elsewhere.url).await;
        let txn = client.transaction().await.unwrap();
        let error = run.guard(&txn).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SchemaMissing, "{error}");
        run.checkpoint(json!(1)).await.expect("the run goes on");
        assert_eq!(run.stop_reason(), None);
    })
    .await;
}
