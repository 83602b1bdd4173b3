//! The routes of workers, in a service's own router.

use std::sync::Arc;
use std::time::Duration;

use podlock::http::{not_found, router, serve, workers_router};
use podlock::workers::NewWorker;
use podlock::{NewRun, Outcome, Phase, Pod};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{Db, eventually, timed};

const SOON: Duration = Duration::from_secs(10);

/// A router that is served until this is dropped.
struct Served {
    url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn of(router: axum::Router) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/workers", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { serve(listener, router.fallback(not_found)).await.unwrap() });
        Self { url, task }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_the_routes_of_workers_only_if_it_merges_them() {
    timed(async {
        let db = Db::new().await;
        let pod = db.pod("a").await;
        let without = Served::of(router(pod.clone())).await;
        let (status, answer) = without.answer(http().get(&without.url)).await;
        assert_eq!((status, &answer["kind"]), (404, &json!("not_found")), "{answer}");
        let with = Served::of(router(pod.clone()).merge(workers_router(pod.clone()))).await;
        assert_eq!(with.answer(http().get(&with.url)).await, (200, json!([])));
        pod.workers().register(NewWorker::new("http://127.0.0.1:9")).unwrap();
        let (status, workers) = with.answer(http().get(&with.url)).await;
        assert_eq!((status, &workers[0]["url"]), (200, &json!("http://127.0.0.1:9")), "{workers}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_stops_takes_no_worker_and_one_that_has_ended_changes_none() {
    timed(async {
        let db = Db::new().await;
        let gate = Arc::new(Semaphore::new(0));
        let wait = Arc::clone(&gate);
        let slow = move |_| {
            let gate = Arc::clone(&wait);
            async move {
                drop(gate.acquire().await);
                Ok(Outcome::Done(json!(null)))
            }
        };
        let pod = Pod::builder(db.config("a")).handler("slow", slow).start().await.unwrap();
        let served = Served::of(workers_router(pod.clone())).await;
        let put = || served.answer(http().put(&served.url).json(&json!({"url": "http://127.0.0.1:9"})));
        let (status, registered) = put().await;
        assert_eq!(status, 200, "{registered}");
        pod.start(NewRun::new("slow")).await.unwrap();
        let stop = tokio::spawn(pod.clone().shutdown(SOON));
        eventually(SOON, "the pod drains", || async {
            let phase = pod.status().phase;
            if phase == Phase::Draining { Ok(()) } else { Err(phase.to_string()) }
        })
        .await;
        let (status, refused) = put().await;
        assert_eq!((status, &refused["kind"]), (503, &json!("draining")), "{refused}");
        gate.close();
        stop.await.unwrap().unwrap();
        let (status, refused) = put().await;
        assert_eq!((status, &refused["kind"]), (503, &json!("stopped")), "{refused}");
        let one = format!("{}/{}", served.url, registered["worker_id"].as_str().unwrap());
        let (status, refused) = served.answer(http().delete(one)).await;
        assert_eq!((status, &refused["kind"]), (503, &json!("stopped")), "{refused}");
    })
    .await;
}
