//! Passwords that rotate.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podlock::{Config, ErrorKind, NewRun, Outcome, PasswordRequest, Pod, Run};
use serde_json::json;

use super::authority::TlsServer;
use crate::patience::{CONNECT, SOON};
use crate::support::faults::refused;
use crate::support::{eventually, lease, start, timed};

/// Connections are lost when the password has just been changed and the service does not know it yet: the run that ends
/// meanwhile waits for it, and is not failed for want of a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_ends_while_no_connection_can_be_had_is_not_failed_for_it() {
    timed(async {
        let tls = TlsServer::start().await;
        let token = Arc::new(Mutex::new("first".to_owned()));
        let threads: Arc<Mutex<Vec<String>>> = Arc::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let source = {
            let (token, threads, asked) = (Arc::clone(&token), Arc::clone(&threads), Arc::clone(&asked));
            move |_: PasswordRequest| {
                asked.fetch_add(1, Ordering::SeqCst);
                threads.lock().unwrap().push(std::thread::current().name().unwrap_or_default().to_owned());
                let token = token.lock().unwrap().clone();
                async move { Ok::<_, std::io::Error>(token) }
            }
        };
        let end = Arc::new(tokio::sync::Notify::new());
        let may_end = Arc::clone(&end);
        let config = Config::new(tls.trusting("app", "sslmode=verify-full")).name("a").lease(Duration::from_secs(30));
        let pod = Pod::builder(config.password_from(source))
            .handler("held", move |run: Run| {
                let may_end = Arc::clone(&may_end);
                async move {
                    may_end.notified().await;
                    run.checkpoint(json!("kept")).await?;
                    Ok(Outcome::Done(json!("result")))
                }
            })
            .start()
            .await
            .expect("the pod starts");
        let run = pod.start(NewRun::new("held")).await.expect("started").run_id;
        *token.lock().unwrap() = "expired".to_owned();
        assert!(tls.db.client.terminate("a", "pool").await > 0);
        // A connection may have been under way with the first token.
        eventually(SOON, "the pool has no connection", || async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let ended = tls.db.client.terminate("a", "pool").await;
            if ended == 0 { Ok(()) } else { Err(format!("{ended} ended")) }
        })
        .await;
        let before = asked.load(Ordering::SeqCst);
        end.notify_one();
        eventually(SOON, "the pool was refused a few times", || async {
            let refused = asked.load(Ordering::SeqCst) - before;
            if refused >= 3 { Ok(()) } else { Err(format!("{refused}")) }
        })
        .await;
        assert_eq!(tls.db.client.run(run).await.state, "running");
        *token.lock().unwrap() = "first".to_owned();
        let ended = tls.db.client.run_in_state(run, "succeeded", SOON).await;
        assert_eq!(ended.attempt, 1, "{ended:?}");
        // The service is asked on its own runtime, never on the thread that keeps the pod alive.
        let threads = threads.lock().unwrap().clone();
        assert!(!threads.is_empty() && threads.iter().all(|name| name != "podlock-keeper"), "{threads:?}");
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// The role's password is changed under a living pod, and every connection is lost: each is opened with the new one,
/// since the service is asked at every reconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_callback_is_asked_at_every_reconnect() {
    timed(async {
        let tls = TlsServer::start().await;
        let token = Arc::new(Mutex::new("first".to_owned()));
        let asked = Arc::new(AtomicUsize::new(0));
        let last: Arc<Mutex<Option<PasswordRequest>>> = Arc::default();
        let source = {
            let (token, asked, last) = (Arc::clone(&token), Arc::clone(&asked), Arc::clone(&last));
            move |request: PasswordRequest| {
                asked.fetch_add(1, Ordering::SeqCst);
                *last.lock().unwrap() = Some(request);
                let token = token.lock().unwrap().clone();
                async move {
                    tokio::task::yield_now().await;
                    Ok::<_, std::io::Error>(token)
                }
            }
        };
        // The string's own password is wrong: the source wins.
        let url = tls.trusting("changing", "sslmode=verify-full password=stale");
        let config = Config::new(url).name("a").lease(lease()).password_from(source);
        let pod = start(config.clone()).await;
        tls.db.client.armed("a", SOON).await;
        let run = pod.start(NewRun::new("wait")).await.expect("the pool asked, too");
        let before = asked.load(Ordering::SeqCst);
        assert!(before >= 4, "each of the four kinds asked: {before}");
        let request = last.lock().unwrap().clone().expect("asked");
        assert_eq!((request.host.as_str(), request.port), ("localhost", tls.server.port()));
        assert_eq!((request.user.as_str(), &request.database), ("changing", &tls.db.name));

        tls.db.client.batch_execute("ALTER ROLE changing PASSWORD 'second'").await.unwrap();
        *token.lock().unwrap() = "second".to_owned();
        tls.end_all_of(&pod).await;
        let echo = pod.start(NewRun::new("echo").input(json!(1))).await.expect("the pool asked again");
        tls.db.client.run_in_state(echo.run_id, "succeeded", SOON).await;
        // The watch session holds no lock: nobody has waited for it yet.
        eventually(SOON, "each of the four kinds has asked again", || async {
            let times = asked.load(Ordering::SeqCst);
            if times >= before + 4 { Ok(()) } else { Err(format!("{times} times, {before} before")) }
        })
        .await;
        // Nobody's run was disturbed by it.
        let state = tls.db.client.run(run.run_id).await;
        assert_eq!((state.state.as_str(), state.attempt), ("running", 1), "{state:?}");
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_source_that_fails_is_an_error_of_the_start_and_one_that_hangs_is_not_waited_for() {
    timed(async {
        let tls = TlsServer::start().await;
        let url = tls.trusting("app", "sslmode=verify-full");
        let config = |name: &str| Config::new(&url).name(name).lease(lease());
        let patient = |name: &str| config(name).with(|c| c.connect_timeout = Some(CONNECT));
        let failing = patient("a").password_from(|_| async { Err::<String, _>("the vault is sealed") });
        refused(failing).await.is(ErrorKind::AuthFailed, &["the vault is sealed", "localhost"], lease());
        let panicking = patient("a").password_from(|_| async { panic!("as asked") as Result<String, std::io::Error> });
        refused(panicking).await.is(ErrorKind::AuthFailed, &["asking the service for the password"], lease());
        let hanging = config("a").password_from(|_| std::future::pending::<Result<String, std::io::Error>>());
        let limit = config("a").validate().unwrap().connect_timeout;
        refused(hanging).await.is(ErrorKind::Timeout, &["connecting to localhost"], limit);
    })
    .await;
}
