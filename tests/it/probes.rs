//! The probes as a router of their own, in a service with routes of its own.

use axum::Router;
use axum::routing::get;
use podlock::http::probes;
use serde_json::Value;

use crate::patience::SOON;
use crate::support::{Db, eventually, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_nests_the_probes_beside_its_own_routes_and_answers_with_our_errors() {
    timed(async {
        let db = Db::new().await;
        let pod = db.pod("a").await;
        let starting = pod.clone();
        // A handler of the service's own: an error of ours is its answer.
        let start = async move || -> podlock::Result<String> {
            starting.start(podlock::NewRun::new("wait")).await.map(|run| run.run_id.to_string())
        };
        let router = Router::new().route("/mine", get(start)).nest("/pod", probes(pod.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { podlock::http::serve(listener, router).await });
        let ask = async |path: &str| reqwest::get(format!("{url}{path}")).await.unwrap();
        for probe in ["/pod/livez", "/pod/readyz", "/pod/healthz"] {
            assert_eq!(ask(probe).await.status(), 200, "{probe}");
        }
        assert_eq!(ask("/pod/v1/runs").await.status(), 404, "the probes alone");
        assert_eq!(ask("/mine").await.status(), 200);

        // A cordoned pod serves what it has, and new work goes elsewhere.
        let phase = async |wanted: &str| {
            eventually(SOON, &format!("the pod is {wanted}"), async || {
                let body: Value = ask("/pod/healthz").await.json().await.unwrap();
                if body["phase"] == wanted && body["ready"] == (wanted == "active") {
                    Ok(())
                } else {
                    Err(body.to_string())
                }
            })
            .await;
        };
        pod.operator().cordon("a").await.unwrap();
        phase("cordoned").await;
        assert_eq!(ask("/pod/livez").await.status(), 200);
        for path in ["/pod/readyz", "/mine"] {
            let refused = ask(path).await;
            assert_eq!(refused.status(), 503, "{path}");
            let body: Value = refused.json().await.unwrap();
            assert_eq!(body["kind"], "cordoned", "{body}");
        }
        pod.operator().uncordon("a").await.unwrap();
        phase("active").await;
        assert_eq!(ask("/mine").await.status(), 200);

        // During a deploy: a client is told to go elsewhere, and is not answered 500.
        pod.shutdown(std::time::Duration::ZERO).await.unwrap();
        assert_eq!(ask("/pod/livez").await.status(), 200);
        for path in ["/pod/readyz", "/mine"] {
            let refused = ask(path).await;
            assert_eq!(refused.status(), 503, "{path}");
            assert_eq!(refused.headers()["retry-after"], "1", "{path}");
            let body: Value = refused.json().await.unwrap();
            assert_eq!(body["kind"], "stopped", "{body}");
        }
        server.abort();
    })
    .await;
}
