//! Servers that refuse, stall or are not there; names that are taken.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use podlock::{Config, ErrorKind, NewRun};
use serde_json::json;

use crate::patience::SOON;
use crate::support::faults::{OwnServer, free_port, hosts_url, nothing_is_left_of, refused, slack};
use crate::support::pgbouncer::{Manner, Relay};
use crate::support::{Db, eventually, lease, server, start, timed};

const CONNECT: Duration = Duration::from_millis(700);

/// Waits until a second liveness session of pod `a` waits for the lock. Each slice of the wait is a statement of its
/// own.
async fn second_waits(db: &Db) {
    let sql = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE NOT l.granted \
               AND l.locktype = 'advisory' AND a.application_name = 'podlock/a/liveness' \
               AND a.datname = current_database()";
    eventually(SOON, "a second pod waits for the lock", || async {
        match db.client.scalar::<i64>(sql, &[]).await {
            1 => Ok(()),
            n => Err(format!("{n} wait")),
        }
    })
    .await;
}

fn quick(url: String) -> Config {
    Config::new(url).name("a").lease(lease()).with(|c| c.connect_timeout = Some(CONNECT))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_auth_failed() {
    timed(async {
        let db = Db::new().await;
        let url = db.url.replace(server().password(), "hunter2-not-it");
        let refusal = refused(quick(url)).await;
        refusal.is(
            ErrorKind::AuthFailed,
            &["pod a cannot start", "password authentication", "28P01", "DATABASE_URL"],
            CONNECT,
        );
        assert!(!refusal.error.is_transient(), "trying again will not help");
        let url = db.url.replace("//podlock:", "//nobody-we-know:");
        refused(quick(url)).await.is(ErrorKind::AuthFailed, &["nobody-we-know", "correct the user"], CONNECT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_password_is_auth_failed_at_boot_and_in_the_pool() {
    timed(async {
        let db = Db::new().await;
        let url = db.url.replace(&format!(":{}@", server().password()), "@");
        assert_ne!(url, db.url, "there was one");
        let refusal = refused(quick(url.clone())).await;
        refusal.is(ErrorKind::AuthFailed, &["pod a cannot start", "password missing", "DATABASE_URL"], CONNECT);
        assert!(!refusal.error.is_transient(), "trying again will not help");
        let error = podlock::Operator::connect(&quick(url)).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::AuthFailed, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_database_is_a_config_error() {
    timed(async {
        let refusal = refused(quick(server().url("no_such_database"))).await;
        refusal.is(ErrorKind::Config, &["no_such_database", "does not exist", "create it"], CONNECT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_where_nobody_listens_is_unreachable() {
    timed(async {
        let port = free_port();
        let refusal = refused(quick(format!("postgres://u:hunter2@127.0.0.1:{port}/d"))).await;
        refusal.is(
            ErrorKind::Unreachable,
            &[&format!("127.0.0.1:{port}"), "refused", "see whether the server runs"],
            CONNECT,
        );
        assert!(refusal.error.is_transient());
        let refusal = refused(quick("host=/nonexistent user=u password=hunter2 dbname=d".to_owned())).await;
        refusal.is(ErrorKind::Unreachable, &["/nonexistent", "see whether the server runs"], CONNECT);
        let refusal = refused(quick("postgres://u:hunter2@no-such-host.invalid/d".to_owned())).await;
        assert!(matches!(refusal.error.kind(), ErrorKind::Unreachable | ErrorKind::Timeout), "{:?}", refusal.error);
        refusal.is(refusal.error.kind(), &["no-such-host.invalid"], CONNECT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_accepts_and_never_answers_is_a_timeout_of_connect_timeout() {
    timed(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Accepted, read from, never answered.
        let accepted = std::thread::spawn(move || listener.accept().map(|(socket, _)| socket));
        let refusal = refused(quick(format!("postgres://u:hunter2@127.0.0.1:{port}/d"))).await;
        refusal.is(
            ErrorKind::Timeout,
            &[&format!("connecting to 127.0.0.1:{port}"), "700ms", "stopped or unreachable"],
            CONNECT,
        );
        assert!(refusal.took >= CONNECT, "{:?}", refusal.took);
        let socket: TcpStream = accepted.join().unwrap().unwrap();
        // The client's hello, then its end: the socket was closed.
        let mut hello = Vec::new();
        std::io::Read::read_to_end(&mut &socket, &mut hello).expect("the client closed its socket");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_after_the_handshake_is_a_timeout_of_statement_timeout() {
    timed(async {
        let db = Db::new().await;
        let relay = Relay::start(server().port(), Manner::StallAfterHandshake);
        let limit = Duration::from_secs(1);
        let config = quick(hosts_url(server(), &[relay.port], &db.name)).with(|c| c.statement_timeout = Some(limit));
        let refusal = refused(config).await;
        refusal.is(
            ErrorKind::Timeout,
            &["asking the server who it is", "no answer within 1.25s", "see whether the server"],
            limit,
        );
        nothing_is_left_of(&db.client, "a").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_ends_a_start_within_its_limits_wherever_it_stands() {
    timed(async {
        let server = OwnServer::start(&[]).await;
        let db = Db::on(&server).await;
        let _holder = start(db.config("a")).await;
        // One start stands in its wait for the lock when the server freezes, another has yet to connect.
        let waiting = db.config("a").with(|c| c.acquire_timeout = Some(Duration::from_secs(60)));
        let statement = waiting.validate().unwrap().statement_timeout;
        let waiting = tokio::spawn(refused(waiting));
        second_waits(&db).await;
        server.suffers(podlock::throwaway::Server::pause).await;
        let frozen = std::time::Instant::now();
        let refusal = refused(quick(db.url.clone())).await;
        refusal.is(ErrorKind::Timeout, &["connecting to 127.0.0.1", "700ms"], CONNECT);
        let refusal = waiting.await.unwrap();
        assert!(frozen.elapsed() < statement + slack(), "{:?}: {:?}", frozen.elapsed(), refusal.error);
        refusal.is(ErrorKind::Timeout, &["waiting for the pod's lock", "no answer within"], Duration::from_secs(30));
        server.suffers(podlock::throwaway::Server::resume).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_the_first_that_lives_is_taken() {
    timed(async {
        let db = Db::new().await;
        let hosts = hosts_url(server(), &[free_port(), server().port()], &db.name);
        let pod = start(quick(hosts)).await;
        let run = pod.start(NewRun::new("echo").input(json!(1))).await.unwrap();
        db.client.run_in_state(run.run_id, "succeeded", SOON).await;
        // The reason of a host that answers says more than that of one that is down.
        let hosts = hosts_url(server(), &[free_port(), server().port()], "no_such_database");
        refused(quick(hosts)).await.is(ErrorKind::Config, &["no_such_database"], CONNECT * 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_held_by_a_live_pod_is_taken_and_the_error_says_by_whom() {
    timed(async {
        let db = Db::new().await;
        let holder = db.pod("a").await;
        let wait = Duration::from_millis(600);
        let refusal = refused(db.config("a").with(|c| c.acquire_timeout = Some(wait))).await;
        // By its row: the server's process of one that was refused may take a moment to go.
        let pid: i32 = db.client.scalar("SELECT liveness_pid FROM studio_pods WHERE pod_id = 'a'", &[]).await;
        let words = [&format!("server process {pid} from 127.0.0.1"), "s old", "600ms", "its own name"];
        refusal.is(ErrorKind::NameTaken, &words, wait);
        assert!(refusal.error.is_name_taken() && refusal.took >= wait);
        // The holder was not disturbed, and nothing of the other is left.
        assert!(holder.status().attached);
        let sessions: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_sessions", &[]).await;
        assert_eq!(sessions, 1);
        db.client.armed("a", SOON).await;
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock' \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                     AND pid NOT IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'podlock/a/watch')";
        eventually(SOON, "the holder's two locks alone", || async {
            match db.client.scalar::<i64>(locks, &[]).await {
                2 => Ok(()),
                n => Err(format!("{n} locks")),
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_comes_free_while_its_successor_waits() {
    timed(async {
        let db = Db::new().await;
        let first = db.pod("a").await;
        let (old, second) = (first.incarnation(), tokio::spawn(start(db.config("a"))));
        second_waits(&db).await;
        drop(first);
        let second = second.await.unwrap();
        assert_eq!(db.client.session_end(old).await, Some(("replaced".to_owned(), None)));
        assert_ne!(second.incarnation(), old);
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_colliding_key_is_an_error_whether_the_other_lives_or_has_left_its_row() {
    timed(async {
        let db = Db::new().await;
        podlock::migrate::up(&db.config("a")).await.expect("migrated");
        let constant = "CREATE OR REPLACE FUNCTION studio_lock_key(pod_id text) RETURNS bigint \
                        LANGUAGE sql STABLE STRICT PARALLEL SAFE AS 'SELECT 42::bigint'";
        db.client.batch_execute(constant).await.unwrap();
        let other = db.pod("a").await;
        let wait = Duration::from_millis(600);
        let config = || db.config("b").with(|c| c.acquire_timeout = Some(wait));
        let refusal = refused(config()).await;
        refusal.is(ErrorKind::KeyCollision, &["pod b", "same lock key as pod a", "another name"], wait);
        assert!(other.status().attached);
        // Nobody is left to bury it: its row stays, its lock comes free.
        drop(other);
        nothing_is_left_of(&db.client, "a").await;
        let refusal = refused(config()).await;
        refusal.is(ErrorKind::KeyCollision, &["pod b", "same lock key", "another name"], wait);
        nothing_is_left_of(&db.client, "b").await;
        assert_eq!(db.client.roster().await, ["a"]);
        let again = db.pod("a").await;
        assert!(again.status().attached, "the name's owner itself comes back");
    })
    .await;
}
