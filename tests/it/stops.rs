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

/// L2, L4: nobody has to have settled to remove the row of a pod whose stop is complete. That of a pod that died stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_the_row_of_a_complete_stop_is_removed_by_a_pod_that_has_just_started_and_that_of_a_dead_pod_is_not() {
    timed(async {
        let db = Db::new().await;
        let [stops, dies] = ["stops-clean", "stops-dead"].map(|name| db.config(name));
        let (stops, dies) = (start(stops).await, start(dies).await);
        let [stopped, dead] = [stops.incarnation(), dies.incarnation()];
        // They may not bury either.
        stops.shutdown(SOON).await.unwrap();
        let mark = "SELECT stopped FROM studio_pods WHERE pod_id = $1";
        drop(dies);
        // It never settles in this test.
        let new = start(db.config("stops-new").with(|c| c.settle = Some(Duration::from_secs(600)))).await;
        db.client.roster_is(&["stops-dead", "stops-new"], SOON).await;
        assert_eq!(db.client.session_end(stopped).await.expect("it is buried").0, "shutdown");
        // By now it has looked at the dead one as well, which has no mark.
        tokio::time::sleep(lease()).await;
        assert!(!db.client.scalar::<bool>(mark, &[&"stops-dead"]).await);
        assert_eq!(db.client.session_end(dead).await, None, "it may live, for all that the new one knows");
        drop(new);
    })
    .await;
}
