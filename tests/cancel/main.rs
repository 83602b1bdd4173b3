//! What a dropped future leaves behind: nothing. Every public future is polled so many times, or for so long, and
//! dropped, for each number until it completes.
//!
//! A binary of its own, whose tests run one after the other, because it counts what belongs to the whole process:
//! threads, file descriptors, memory.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod cut;
#[path = "../common/inherited.rs"]
mod inherited;
mod left;
#[path = "../common/patience.rs"]
mod patience;

use std::time::Duration;

use podlock::operator::{EventFilter, Operator, PodFilter, RunFilter};
use podlock::{Config, NewRun, Outcome, Pod, PodBuilder, Run, RunId, migrate};
use serde_json::json;
use tokio::sync::mpsc;

use cut::{after_each_delay, at_each_poll, at_each_poll_of};
use left::{Db, ONE_AT_A_TIME, Usage, connect, eventually, resident_kib};
use patience::CONNECT;

/// Short, so that what is to be buried soon may be; long enough for a loaded machine.
const LEASE: Duration = Duration::from_secs(3);
/// Each of these tests makes some thousand calls, one after the other: minutes on a quiet machine, more next to other
/// suites.
const TEST: Duration = Duration::from_secs(40 * 60);
/// What pools, name resolution and the like may hold or let go of meanwhile. They were never seen to differ by more
/// than one.
const SLACK: usize = 4;
/// How often a call is cut at each of its polls: what it leaves behind at one of them alone is beyond the slack.
const TIMES: usize = 2 * SLACK;

fn config(url: &str, name: &str) -> Config {
    Config::new(url).name(name).lease(LEASE).with(|c| c.connect_timeout = Some(CONNECT))
}

fn builder(url: &str, name: &str) -> PodBuilder {
    Pod::builder(config(url, name)).handler("echo", |run: Run| async move { Ok(Outcome::Done(run.input().clone())) })
}

/// One test with a server, a runtime of its own, and the process to itself.
fn alone<F: Future<Output = ()>>(test: impl FnOnce(Db) -> F) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let server = inherited::postgres().start().expect("a throwaway PostgreSQL");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let db = Db::new(server.socket_url("postgres")).await;
        tokio::time::timeout(TEST, test(db)).await.expect("the whole test took too long");
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

#[test]
fn a_dropped_call_of_a_pod_a_run_or_an_operator_leaves_nothing_behind() {
    alone(|db| async move {
        let url = db.url.clone();
        let (hand_out, mut handed) = mpsc::unbounded_channel();
        let a = builder(&url, "a").handler("hold", move |run: Run| {
            hand_out.send(run.clone()).unwrap();
            async move {
                run.stopped().await;
                Ok(Outcome::Yield)
            }
        });
        let a = a.start().await.unwrap();
        let held = a.start(NewRun::new("hold")).await.unwrap().run_id;
        let run: Run = handed.recv().await.unwrap();
        let operator = Operator::connect(&config(&url, "-")).await.unwrap();
        operator.pods(PodFilter::new()).await.unwrap();
        let usage = Usage::of(&db, SLACK).await;
        let echo = || NewRun::new("echo").input(json!("x"));

        at_each_poll(TIMES, "Pod::start", || a.start(echo())).await;
        after_each_delay("Pod::start", || a.start(echo())).await;
        at_each_poll(TIMES, "Pod::submit", || a.submit(echo())).await;
        after_each_delay("Pod::submit", || a.submit(echo())).await;
        at_each_poll(TIMES, "Pod::cancel", || a.cancel(RunId::generate())).await;
        after_each_delay("Pod::cancel", || a.cancel(RunId::generate())).await;
        usage.is_all_that_is_left(&db, "Pod's calls").await;
        for owned in [true, false] {
            at_each_poll(TIMES, "Pod::*_in_txn", || async {
                let mut client = connect(&db.url).await;
                let txn = client.transaction().await.unwrap();
                let started =
                    if owned { a.start_in_txn(&txn, echo()).await } else { a.submit_in_txn(&txn, echo()).await };
                started.unwrap();
                txn.rollback().await.unwrap();
            })
            .await;
        }
        usage.is_all_that_is_left(&db, "calls in a caller's transaction").await;

        at_each_poll(TIMES, "Run::checkpoint", || run.checkpoint(json!({ "at": 1 }))).await;
        after_each_delay("Run::checkpoint", || run.checkpoint(json!({ "at": 1 }))).await;
        at_each_poll(TIMES, "Run::append", || run.append("a")).await;
        at_each_poll(TIMES, "Run::flush", || async {
            run.append("b").await?;
            run.flush().await
        })
        .await;
        after_each_delay("Run::append_with_checkpoint", || run.append_with_checkpoint("c", json!({ "at": 1 }))).await;
        at_each_poll(TIMES, "Run::append_with_checkpoint", || run.append_with_checkpoint("c", json!({ "at": 1 })))
            .await;
        at_each_poll(TIMES, "Run::continue_from", || run.continue_from(1)).await;
        at_each_poll(TIMES, "Run::restart_stream", || async {
            run.append("d").await?;
            run.restart_stream().await
        })
        .await;
        usage.is_all_that_is_left(&db, "Run's calls").await;

        run.append("e").await.unwrap();
        run.flush().await.unwrap();
        at_each_poll(TIMES, "Attached::next", || async { a.attach(held).await?.next().await }).await;
        let mut attached = a.attach(held).await.unwrap();
        attached.next().await.unwrap();
        // Nothing more comes: it is dropped while it waits.
        for _ in 0..100 {
            assert!(tokio::time::timeout(Duration::from_millis(1), attached.next()).await.is_err());
        }
        drop(attached);
        usage.is_all_that_is_left(&db, "Attached's calls").await;

        at_each_poll(TIMES, "Operator::connect", || async { Operator::connect(&config(&url, "-")).await }).await;
        at_each_poll(TIMES, "Operator::pods", || operator.pods(PodFilter::new())).await;
        at_each_poll(TIMES, "Operator::pod", || operator.pod("a")).await;
        at_each_poll(TIMES, "Operator::runs", || operator.runs(RunFilter::new())).await;
        at_each_poll(TIMES, "Operator::run", || operator.run(held)).await;
        at_each_poll(TIMES, "Operator::events", || operator.events(EventFilter::new())).await;
        at_each_poll(TIMES, "Operator::cancel", || operator.cancel(RunId::generate())).await;
        at_each_poll(TIMES, "Follow::next", || async {
            operator.follow(EventFilter::new().after(0)).await?.next().await
        })
        .await;
        at_each_poll(TIMES, "Notices::next", || async {
            let mut notices = operator.notices().await?;
            // Nothing happens that a notification would tell of.
            tokio::time::timeout(Duration::from_millis(20), notices.next()).await.unwrap_or(Ok(()))
        })
        .await;
        usage.is_all_that_is_left(&db, "Operator's calls").await;

        // What only waits is dropped while it waits.
        for _ in 0..100 {
            let waits = async {
                tokio::join!(a.drain_requested(), a.closed(), a.status_changes(), run.stopped());
            };
            assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err());
        }
        usage.is_all_that_is_left(&db, "what waits").await;

        // Every run that was started all the same has run, and the pod is as it was.
        eventually("no run is left but the one that is held", || async {
            let running: i64 = db.scalar("SELECT count(*) FROM studio_runs WHERE state = 'running'").await;
            let others: i64 =
                db.scalar("SELECT count(*) FROM studio_runs WHERE state NOT IN ('running', 'succeeded')").await;
            if (running, others) == (1, 0) { Ok(()) } else { Err(format!("{running} running, {others} failed")) }
        })
        .await;
        assert_eq!((a.status().runs, run.stop_reason()), (1, None));
        run.checkpoint(json!({ "at": 2 })).await.expect("the run goes on");
        a.shutdown(Duration::from_secs(5)).await.unwrap();
    });
}

#[test]
fn a_dropped_start_shutdown_or_migration_leaves_nothing_behind() {
    alone(|db| async move {
        let url = db.url.clone();
        let survivor = builder(&url, "survivor").start().await.unwrap();
        let usage = Usage::of(&db, SLACK).await;

        // The boot goes on in a thread of its own, so it is time that tells where it was cut.
        let start = |n: usize| builder(&url, &format!("start{n}")).start();
        let mut n = 0;
        let mut next = || {
            n += 1;
            start(n)
        };
        at_each_poll(TIMES, "PodBuilder::start", &mut next).await;
        after_each_delay("PodBuilder::start", &mut next).await;
        usage.is_all_that_is_left(&db, "PodBuilder::start").await;

        let mut n = 0;
        let mut another = async || {
            n += 1;
            start(100_000 + n).await.unwrap()
        };
        for _ in 0..3 {
            at_each_poll_of("Pod::shutdown", &mut another, |pod| pod.shutdown(Duration::from_secs(5))).await;
        }
        usage.is_all_that_is_left(&db, "Pod::shutdown").await;

        let mut n = 0;
        let schemas = std::cell::RefCell::new(Vec::new());
        let mut migration = || {
            n += 1;
            let config = config(&url, "-").schema(format!("m{n}"));
            schemas.borrow_mut().push(config.clone());
            async move { migrate::up(&config).await }
        };
        at_each_poll(2, "migrate::up", &mut migration).await;
        after_each_delay("migrate::up", &mut migration).await;
        at_each_poll(TIMES, "migrate::status", || async { migrate::status(&config(&url, "-")).await }).await;
        usage.is_all_that_is_left(&db, "migrations").await;
        for config in schemas.take() {
            migrate::up(&config).await.expect("a migration that was cut can be made");
            assert!(migrate::status(&config).await.unwrap().iter().all(|version| version.applied), "{config:?}");
        }
        usage.is_all_that_is_left(&db, "completed migrations").await;
        survivor.shutdown(Duration::from_secs(5)).await.unwrap();
    });
}

/// How much more memory the process may hold after 448 more pods: 9 KiB for each. The allocator keeps what it had at
/// its peak.
const MEMORY_SLACK_KIB: usize = 4 * 1024;

/// So many pods, four at a time, each under the name of one before it.
async fn lives(url: &str, pods: usize) {
    let life = async |lane: usize| {
        for n in 0..pods / 4 {
            let pod = builder(url, &format!("lane{lane}")).start().await.unwrap();
            if n % 8 == 0 {
                pod.start(NewRun::new("echo")).await.unwrap();
            }
            pod.shutdown(Duration::from_secs(5)).await.unwrap();
        }
    };
    tokio::join!(life(0), life(1), life(2), life(3));
}

#[test]
fn five_hundred_pods_leave_nothing_behind() {
    alone(|db| async move {
        let url = db.url.clone();
        let survivor = builder(&url, "survivor").start().await.unwrap();
        let usage = Usage::of(&db, SLACK).await;
        lives(&url, 52).await;
        let before = resident_kib();
        lives(&url, 448).await;
        usage.is_all_that_is_left(&db, "500 pods").await;
        let after = resident_kib();
        println!("{before} KiB after 52 pods, {after} KiB after 500");
        assert!(after < before + MEMORY_SLACK_KIB, "{before} KiB after 52 pods, {after} KiB after 500");
        survivor.shutdown(Duration::from_secs(5)).await.unwrap();
    });
}
