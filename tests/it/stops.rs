//! The clean stop where the database does not answer: bounded, and the runs are told all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podlock::{NewRun, Outcome, Pod, Run};

use crate::patience::{SOON, slack};
use crate::support::{Db, lease, start, timed, trace};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_under_a_stalled_database_tells_its_runs_at_once_and_ends() {
    timed(async {
        let server =
            Arc::new(tokio::task::spawn_blocking(|| crate::inherited::postgres().start().unwrap()).await.unwrap());
        let db = Db::on(&server).await;
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let pod = Pod::builder(db.config("a"))
            .handler("wait", move |run: Run| {
                let tell = tell.clone();
                async move {
                    let reason = run.stopped().await;
                    let _ = tell.send((Instant::now(), reason)).await;
                    Ok(Outcome::Yield)
                }
            })
            .start()
            .await
            .unwrap();
        pod.start(NewRun::new("wait")).await.unwrap();
        let pausing = Arc::clone(&server);
        tokio::task::spawn_blocking(move || pausing.pause().unwrap()).await.unwrap();
        // Under way when the stop begins, and never answered.
        let stuck = tokio::spawn({
            let pod = pod.clone();
            async move { pod.start(NewRun::new("wait")).await }
        });
        let began = Instant::now();
        let grace = Duration::from_secs(2);
        let report = pod.shutdown(grace).await.expect("it stops");
        let took = began.elapsed();
        let (at, reason) = told.recv().await.expect("the handler was told");
        assert!(at - began < slack(Duration::from_secs(1)), "told after {:?}, {reason}", at - began);
        assert_eq!((report.finished, report.yielded, report.aborted), (0, 0, 1), "its yield could not be written");
        // The grace, the tasks that wait for the database, and what a busy machine adds: far less than their sum.
        assert!(took < grace + slack(lease() * 2), "{took:?}");
        stuck.await.unwrap().expect_err("the pod has ended");
        let resuming = Arc::clone(&server);
        tokio::task::spawn_blocking(move || resuming.resume().unwrap()).await.unwrap();
    })
    .await;
}

/// A part that does not end when the pod does would be waited for, and left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_clean_stop_no_part_of_the_pod_is_left() {
    timed(async {
        let db = Db::new().await;
        let pod = start(db.config("stops-whole")).await;
        pod.shutdown(SOON).await.unwrap();
        let logged = trace::events("stops-whole");
        let named = |event: &str| logged.iter().filter(|e| e.get("event").is_some_and(|e| e == event)).count();
        assert_eq!((named("drained"), named("tasks_left")), (1, 0), "{logged:?}");
    })
    .await;
}
