//! A server that shuts down accepts no connection, and ends its sessions one after another. A stopped postmaster is such
//! a server, at a moment that the test chooses: its backends go on.

use std::time::{Duration, Instant};

use podlock::{Incarnation, Pod};
use rustix::process::{Pid, Signal, kill_process};

use crate::connections::authority::TlsServer;
use crate::patience::SOON;
use crate::support::faults::OwnServer;
use crate::support::{Db, eventually, lease, sql, start, timed, trace};

/// A postmaster that is stopped as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn of(server: &OwnServer) -> Self {
        let pid = i32::try_from(server.postmaster_pid().expect("a postmaster")).expect("a pid");
        let pid = Pid::from_raw(pid).expect("a pid");
        kill_process(pid, Signal::STOP).expect("stop the postmaster");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("resume the postmaster");
    }
}

async fn door_closed(by: &[&str]) {
    eventually(SOON, "a pod finds that the server accepts nobody", || async {
        let found: usize = by.iter().map(|pod| trace::count("door_closed", pod)).sum();
        if found > 0 { Ok(()) } else { Err("none yet".to_owned()) }
    })
    .await;
}

/// Three pods that may bury, with names of this test's own.
async fn settled(db: &Db, names: &[String; 3]) -> [Pod; 3] {
    let mut pods = Vec::new();
    for name in names {
        pods.push(start(db.config(name)).await);
    }
    tokio::time::sleep(lease() + Duration::from_millis(200)).await;
    pods.try_into().expect("three")
}

fn names(test: &str) -> [String; 3] {
    ["a", "b", "c"].map(|pod| format!("{test}-{pod}"))
}

async fn buried(db: &Db) -> Vec<(Incarnation, i64)> {
    let sql = "SELECT incarnation, (detail->'evidence'->>'in_sight_ms')::bigint FROM studio_pod_events \
               WHERE kind = 'buried'";
    let rows = db.client.query(sql, &[]).await.expect("the log");
    rows.iter().map(|row| (row.get::<_, uuid::Uuid>(0).into(), row.get(1))).collect()
}

/// L2: a shutdown that has ended the sessions of one pod, and not yet those of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_pod_whose_sessions_a_shutdown_ended_first_is_not_buried() {
    timed(async {
        let server = OwnServer::start(&[]).await;
        let mut db = Db::on(&server).await;
        let names = names("first-to-go");
        let [a, b, c] = settled(&db, &names).await;
        let before = a.incarnation();
        let stopped = Stopped::of(&server);
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE $1";
        let ended: i64 = db.client.scalar(sql, &[&format!("podlock/{}/%", names[0])]).await;
        assert!(ended >= 3, "{ended} sessions");
        door_closed(&[&names[1], &names[2]]).await;
        assert_eq!(buried(&db).await, Vec::new(), "during the shutdown");
        let ended: i64 = db.client.scalar(sql, &[&"podlock/%"]).await;
        assert!(ended >= 6, "{ended} sessions");
        drop(stopped);
        server.suffers(podlock::throwaway::Server::restart_fast).await;
        let client = sql::connect(&db.url).await;
        for name in &names {
            client.armed(name, SOON).await;
        }
        db.client = client;
        assert_eq!(buried(&db).await, Vec::new(), "after the shutdown");
        assert_eq!(a.incarnation(), before, "it is the same incarnation");
        db.client.assert_fold_is_roster().await;
        for pod in [a, b, c] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// L12: the server never accepts a connection again. The dead pod waits for `settle`, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_server_that_accepts_nobody_delays_a_burial_by_settle() {
    timed(async {
        let server = OwnServer::start(&[]).await;
        let db = Db::on(&server).await;
        let names = names("never-opens");
        let [a, b, c] = settled(&db, &names).await;
        let (dead, settle) = (a.incarnation(), lease());
        let stopped = Stopped::of(&server);
        let died = Instant::now();
        drop(a);
        door_closed(&[&names[1], &names[2]]).await;
        eventually(b.settings().worst_case().many_lost + SOON, "the dead pod is buried", || async {
            match buried(&db).await.as_slice() {
                [] => Err("not yet".to_owned()),
                [(buried, in_sight)] => {
                    assert_eq!(*buried, dead);
                    assert!(u128::try_from(*in_sight).unwrap() >= settle.as_millis(), "in sight for {in_sight} ms");
                    Ok(())
                }
                more => panic!("{more:?}"),
            }
        })
        .await;
        assert!(died.elapsed() >= settle);
        drop(stopped);
        for pod in [b, c] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Whether the server accepts connections is asked at each burial, so it must not fill the server's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burial_on_a_server_with_tls_adds_no_line_to_its_log() {
    timed(async {
        let tls = TlsServer::start().await;
        let names = names("quiet-log");
        let db = &tls.db;
        let mut pods = Vec::new();
        for name in &names {
            let config = podlock::Config::new(tls.trusting("app", "sslmode=verify-full")).name(name).lease(lease());
            pods.push(start(config).await);
        }
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        let before = tls.server.log_text().expect("the log");
        let dead = pods.remove(0);
        let incarnation = dead.incarnation();
        drop(dead);
        eventually(SOON, "the dead pod is buried", || async {
            let buried = buried(db).await;
            if buried.iter().any(|(buried, _)| *buried == incarnation) { Ok(()) } else { Err(format!("{buried:?}")) }
        })
        .await;
        let after = tls.server.log_text().expect("the log");
        let new: Vec<&str> = after[before.len()..].lines().filter(|line| !line.trim().is_empty()).collect();
        let about_clients: Vec<&&str> = new
            .iter()
            .filter(|line| ["SSL", "GSS", "startup", "authentication"].iter().any(|w| line.contains(w)))
            .collect();
        assert!(about_clients.is_empty(), "{new:?}");
        for pod in pods {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}
