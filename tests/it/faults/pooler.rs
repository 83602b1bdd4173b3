//! PgBouncer between a pod and its server.

use std::time::Duration;

use podlock::{Config, ErrorKind, NewRun};
use tokio_postgres::NoTls;

use crate::patience::CONNECT;
use crate::patience::{SOON, TEST};
use crate::support::faults::{Audit, audited, no_lock_is_left, nothing_is_left_of, refused};
use crate::support::pgbouncer::{Manner, PgBouncer, Relay};
use crate::support::{Db, eventually, lease, server, start, timed, within};

const ANSWER: Duration = Duration::from_secs(4);

fn config(url: &str, pod: &str) -> Config {
    Config::new(url).name(pod).lease(lease()).with(|c| c.connect_timeout = Some(CONNECT))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_in_transaction_mode_is_refused_every_time_and_no_lock_is_left() {
    within(TEST, async {
        let db = Db::new().await;
        let pools = [("one", 1), ("two", 2), ("four", 4), ("many", 20)];
        let options = pools.map(|(_, size)| format!("dbname={} pool_mode=transaction pool_size={size}", db.name));
        let databases: Vec<_> = pools.iter().zip(&options).map(|((name, _), o)| (*name, o.as_str())).collect();
        let pooler = PgBouncer::start(server(), &databases).await;
        podlock::migrate::up(&db.config("a")).await.unwrap();
        // Others use the pool meanwhile, so that backends come and go.
        let mut others = Vec::new();
        for (name, _) in &pools[2..] {
            let (client, connection) = tokio_postgres::connect(&pooler.url(name), NoTls).await.unwrap();
            others.push(tokio::spawn(connection));
            others.push(tokio::spawn(async move {
                while client.simple_query("SELECT pg_sleep(random() * 0.01)").await.is_ok() {}
                Ok(())
            }));
        }
        for boot in 0..32 {
            let (name, size) = pools[boot % pools.len()];
            let refusal = refused(config(&pooler.url(name), "a")).await;
            println!("pool of {size}: {:?}", refusal.took);
            refusal.is(
                ErrorKind::PooledLock,
                &["session locks mean nothing", "pool_mode = session", "not registered"],
                ANSWER,
            );
            assert_eq!(db.client.roster().await, Vec::<String>::new());
        }
        for other in others {
            other.abort();
        }
        no_lock_is_left(&db.client).await;
        // A backend that saw nothing of the pod but its name, in a statement in between, is the pooler's for as long as
        // it likes.
        drop(pooler);
        nothing_is_left_of(&db.client, "a").await;
        let sessions: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_sessions", &[]).await;
        assert_eq!(sessions, 0, "never once accepted");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_in_statement_mode_is_refused() {
    timed(async {
        let db = Db::new().await;
        let options = format!("dbname={} pool_mode=statement", db.name);
        let pooler = PgBouncer::start(server(), &[("d", &options)]).await;
        for _ in 0..3 {
            let refusal = refused(config(&pooler.url("d"), "a")).await;
            refusal.is(ErrorKind::PooledLock, &["session locks mean nothing", "pool_mode = session"], ANSWER);
        }
        no_lock_is_left(&db.client).await;
        drop(pooler);
        nothing_is_left_of(&db.client, "a").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_in_session_mode_carries_pods_and_a_kill_is_noticed() {
    timed(async {
        let db = Db::new().await;
        let options = format!("dbname={} pool_mode=session", db.name);
        let pooler = PgBouncer::start(server(), &[("d", &options)]).await;
        let audit = Audit::new();
        let a = audited(config(&pooler.url("d"), "a"), &audit).start().await.unwrap();
        let b = audited(config(&pooler.url("d"), "b"), &audit).start().await.unwrap();
        let run = b.start(NewRun::new("work")).await.unwrap().run_id;
        let alive = "SELECT count(*) FROM studio_pod_status WHERE alive AND witness AND holder_pid IS NOT NULL";
        assert_eq!(db.client.scalar::<i64>(alive, &[]).await, 2);
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        assert_eq!(db.client.scalar::<i64>(alive, &[]).await, 2);
        let (dead, began) = (b.incarnation(), std::time::Instant::now());
        drop(b);
        db.client.run_owned_by(run, a.incarnation(), a.settings().worst_case().process_killed).await;
        println!("taken over after {:?}", began.elapsed());
        assert_eq!(db.client.session_end(dead).await, Some(("lost".to_owned(), Some("a".to_owned()))));
        audit.let_finish();
        assert_eq!(db.client.run_in_state(run, "succeeded", SOON).await.attempt, 2);
        a.shutdown(Duration::from_secs(5)).await.unwrap();
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// A session pooler keeps the backend of a client that went and hands it to the next one. A pod that comes back ends
/// its former backend "if the server still has it": by then it may be anybody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_returns_through_a_session_pooler_ends_no_other_pods_backend() {
    timed(async {
        let db = Db::new().await;
        let options = format!("dbname={} pool_mode=session", db.name);
        let pooler = PgBouncer::start(server(), &[("d", &options)]).await;
        let relay = Relay::start(pooler.port, Manner::Forward);
        let through_relay = pooler.url("d").replace(&format!(":{}/", pooler.port), &format!(":{}/", relay.port));
        let a = start(config(&through_relay, "a").lease(Duration::from_secs(8))).await;
        let was = a.incarnation();
        for cuts in 1..=4_i64 {
            // Another takes the backend that pod a leaves behind, before pod a is back.
            let pid: i32 = db.client.scalar("SELECT liveness_pid FROM studio_pods", &[]).await;
            assert_eq!(relay.cut("podlock/a/liveness"), 1);
            let (client, connection) = tokio_postgres::connect(&pooler.url("d"), NoTls).await.unwrap();
            let bystander = tokio::spawn(connection);
            let got: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
            println!("pod a had backend {pid}, the bystander got {got}");
            eventually(SOON, "pod a returned", || async {
                match db.client.scalar::<i64>("SELECT session FROM studio_pods", &[]).await {
                    n if n == cuts + 1 => Ok(()),
                    n => Err(format!("session {n}, {} due", cuts + 1)),
                }
            })
            .await;
            db.client.armed("a", SOON).await;
            let still: Result<_, _> = client.query_one("SELECT pg_backend_pid()", &[]).await;
            assert!(still.is_ok(), "the bystander's session was ended: {still:?}");
            bystander.abort();
        }
        assert_eq!(a.incarnation(), was);
        let others: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'buried'", &[]).await;
        assert_eq!(others, 0);
    })
    .await;
}

/// Operators, migrations and pods that are refused leave every setting of a transaction pooler's backends as it was:
/// the application that shares them still finds its tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_by_a_transaction_pooler_leaves_no_setting_on_its_backends() {
    within(Duration::from_secs(120), async {
        for size in [1, 3] {
            let db = Db::new().await;
            let options = format!("dbname={} pool_mode=transaction pool_size={size}", db.name);
            let pooler = PgBouncer::start(server(), &[("d", &options)]).await;
            // A backend for each place of the pool, each in a transaction.
            let mut clients = Vec::new();
            for _ in 0..size {
                let (client, connection) = tokio_postgres::connect(&pooler.url("d"), NoTls).await.unwrap();
                tokio::spawn(connection);
                clients.push(client);
            }
            clients[0].batch_execute("CREATE TABLE orders (id int)").await.unwrap();
            let settings = async || {
                let mut all = std::collections::BTreeMap::new();
                for client in &clients {
                    client.batch_execute("BEGIN").await.unwrap();
                }
                for client in &clients {
                    let sql = "SELECT pg_backend_pid()::text || ' ' || name || '=' || setting FROM pg_settings \
                               WHERE name NOT IN ('application_name', 'transaction_isolation', \
                               'transaction_read_only')";
                    for message in client.simple_query(sql).await.unwrap() {
                        let tokio_postgres::SimpleQueryMessage::Row(row) = message else { continue };
                        let (pid, setting) = row.get(0).unwrap().split_once(' ').unwrap();
                        all.entry(pid.to_owned()).or_insert_with(Vec::new).push(setting.to_owned());
                    }
                    client.batch_execute("SELECT FROM orders; COMMIT").await.expect("the application finds its tables");
                }
                all
            };
            let before = settings().await;
            assert_eq!(before.len(), size);
            let fresh = before.values().next().unwrap().clone();
            assert!(before.values().all(|of| *of == fresh), "{before:?}");
            let through = || config(&pooler.url("d"), "a");
            let mut refusals = vec![
                podlock::migrate::up(&through()).await.map(drop).unwrap_err(),
                podlock::migrate::status(&through()).await.map(drop).unwrap_err(),
                podlock::Operator::connect(&through()).await.map(drop).unwrap_err(),
            ];
            refusals.push(refused(through()).await.error);
            for refusal in refusals {
                assert_eq!(refusal.kind(), ErrorKind::PooledLock, "{refusal}");
                assert!(refusal.to_string().contains("pool_mode = session"), "{refusal}");
            }
            for (backend, now) in settings().await {
                assert_eq!(now, fresh, "backend {backend} of a pool of {size}");
            }
        }
    })
    .await;
}

/// A pooler whose pool is full lets a client log in, and then has it wait for its first answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_session_pooler_is_named_with_the_connections_that_a_pod_needs() {
    within(Duration::from_secs(120), async {
        let words = ["a pooler in between may be full", "up to 8 connections", "3 more while it starts", "pool_size"];
        // Either the pooler ends the wait (`query_wait_timeout`), or podlock does (`connect_timeout`).
        for own_limit in ["", "\n[pgbouncer]\nquery_wait_timeout = 1"] {
            let db = Db::new().await;
            let options = format!("dbname={} pool_mode=session pool_size=9{own_limit}", db.name);
            let pooler = PgBouncer::start(server(), &[("d", &options)]).await;
            let quick =
                |pod: &str| config(&pooler.url("d"), pod).with(|c| c.connect_timeout = Some(Duration::from_secs(3)));
            let a = start(quick("a")).await;
            let mut others = Vec::new();
            // These three sessions leave less room in the pool than a start needs.
            for _ in 0..3 {
                let (client, connection) = tokio_postgres::connect(&pooler.url("d"), NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute("SELECT 1").await.unwrap();
                others.push(client);
            }
            let refusal = refused(quick("b")).await;
            refusal.is(ErrorKind::Timeout, &words, Duration::from_secs(10));
            assert_eq!(db.client.roster().await, ["a"]);
            let refusal = podlock::Operator::connect(&quick("c")).await.map(drop).unwrap_err();
            assert_eq!(refusal.kind(), ErrorKind::Timeout, "{refusal}");
            assert!(words.iter().all(|word| refusal.to_string().contains(word)), "{refusal}");
            drop(others);
            // With room again, it starts.
            start(quick("b")).await.shutdown(Duration::from_secs(5)).await.unwrap();
            a.shutdown(Duration::from_secs(5)).await.unwrap();
        }
    })
    .await;
}
