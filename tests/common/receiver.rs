//! A receiver of webhooks: a real HTTP server that records what it gets, and answers as the test says.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// A message as it came.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) id: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    pub(crate) alert: Value,
    /// The status that was answered.
    pub(crate) answered: Option<u16>,
}

/// How a message is answered.
#[derive(Clone)]
pub(crate) enum Answer {
    Status(u16),
    /// Never.
    Hang,
    /// 200, when the semaphore has a permit.
    Gate(Arc<Semaphore>),
}

type Plan = dyn Fn(&Got, usize) -> Answer + Send + Sync;

pub(crate) struct Receiver {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Got>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Answers 200 to everything.
    pub(crate) async fn start() -> Self {
        Self::answering(|_, _| Answer::Status(200)).await
    }

    /// Answers by the message and the number of the messages before it.
    pub(crate) async fn answering(plan: impl Fn(&Got, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), plan)
    }

    pub(crate) fn on(listener: TcpListener, plan: impl Fn(&Got, usize) -> Answer + Send + Sync + 'static) -> Self {
        let url = format!("http://{}/alerts?from=podlock", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let (seen, plan): (_, Arc<Plan>) = (Arc::clone(&got), Arc::new(plan));
        let router = Router::new().route(
            "/alerts",
            axum::routing::post(move |headers: HeaderMap, body: Bytes| {
                answer(seen.clone(), plan.clone(), headers, body)
            }),
        );
        let task = tokio::spawn(async move { podlock::http::serve(listener, router).await.unwrap() });
        Self { url, got, task }
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Got>> {
        self.got.lock().unwrap()
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.locked().clone()
    }

    /// The ids of the messages that were answered with a success, in their order.
    pub(crate) fn accepted(&self) -> Vec<String> {
        let accepted = |got: &&Got| got.answered.is_some_and(|status| status < 300);
        self.locked().iter().filter(accepted).map(|got| got.id.clone()).collect()
    }

    /// The ids of all messages, in their order.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.locked().iter().map(|got| got.id.clone()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(seen: Arc<Mutex<Vec<Got>>>, plan: Arc<Plan>, headers: HeaderMap, body: Bytes) -> Response {
    let headers: BTreeMap<_, _> =
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let alert = serde_json::from_str(&body).unwrap();
    let got = Got { id: headers["webhook-id"].clone(), headers, body, alert, answered: None };
    let (number, answer) = {
        let mut seen = seen.lock().unwrap();
        let (number, answer) = (seen.len(), plan(&got, seen.len()));
        seen.push(got);
        (number, answer)
    };
    let status = match answer {
        Answer::Status(status) => status,
        Answer::Hang => std::future::pending().await,
        Answer::Gate(gate) => {
            gate.acquire().await.unwrap().forget();
            200
        }
    };
    seen.lock().unwrap()[number].answered = Some(status);
    let status = StatusCode::from_u16(status).unwrap();
    // A receiver that is followed would record the same message twice.
    (status, [("location", "/alerts")], "x".repeat(100_000)).into_response()
}
