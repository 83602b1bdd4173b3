//! A service that has a table of its own, and does its long work under podlock: a thread's question is stored together
//! with the run that answers it, and the answer is written by whichever pod has the run, once.
//!
//! ```sh
//! export DATABASE_URL=postgres://app@localhost/app                       # any PostgreSQL 14 or newer
//! POD_NAME=a cargo run --example own_table -- t-1 "what is a lease" &    # asks, and serves until SIGTERM
//! POD_NAME=b cargo run --example own_table &                             # kill -9 the first: this one answers
//! cargo run --example own_table -- t-1                                   # how it stands
//! ```

use std::time::Duration;

use podlock::tokio_postgres::Client;
use podlock::{Config, ErrorKind, HandlerError, NewRun, Operator, Outcome, Pod, Run, StopReason};
use serde_json::json;

const GRACE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<(), HandlerError> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut db = connect().await?;
    let table = "CREATE TABLE IF NOT EXISTS threads (id text PRIMARY KEY, question text NOT NULL, answer text)";
    db.batch_execute(table).await?;
    let mut words = std::env::args().skip(1);
    let (thread, question) = (words.next(), words.next());
    if let (Some(thread), None) = (&thread, &question) {
        return look(&db, thread).await;
    }
    let builder = Pod::builder(Config::from_env()?).handler("answer", answer).stop_on_signals();
    let pod = builder.start().await?;
    if let (Some(thread), Some(question)) = (thread, question)
        && let Err(e) = ask(&pod, &mut db, &thread, &question).await
    {
        pod.shutdown(GRACE).await?;
        return Err(e);
    }
    pod.until_stopped(GRACE).await?;
    Ok(())
}

/// The question and the run that answers it: both are there, or neither is.
async fn ask(pod: &Pod, db: &mut Client, thread: &str, question: &str) -> Result<(), HandlerError> {
    let txn = db.transaction().await?;
    let store = "INSERT INTO threads VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET question = $2, answer = NULL";
    txn.execute(store, &[&thread, &question]).await?;
    match pod.start_in_txn(&txn, NewRun::new("answer").key(thread)).await {
        Ok(run) => {
            txn.commit().await?;
            tracing::info!(%run, thread, "asked"); // this pod takes it up now, or a survivor if it dies first
        }
        // Dropped, the transaction is rolled back: the question that is being answered stays.
        Err(e) if e.kind() == ErrorKind::KeyBusy => tracing::info!(run = ?e.run_id(), thread, "is being answered"),
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

/// One attempt at an answer.
async fn answer(run: Run) -> Result<Outcome, HandlerError> {
    let thread = run.key().ok_or("a run of this kind is keyed by its thread")?;
    let mut db = connect().await?;
    let question: String = db.query_one("SELECT question FROM threads WHERE id = $1", &[&thread]).await?.get(0);
    let mut said = run.saved().and_then(|s| s["said"].as_str()).unwrap_or_default().to_owned();
    for word in question.split_whitespace().skip(said.split_whitespace().count()) {
        match run.stop_reason() {
            None => {}
            Some(StopReason::Draining) => return Ok(Outcome::Yield),
            Some(reason) => return Err(reason.to_string().into()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await; // … the long work …
        said = format!("{said} {}", word.to_uppercase()).trim().to_owned();
        run.checkpoint(json!({ "said": said })).await?;
    }
    let txn = db.transaction().await?;
    run.guard(&txn).await?; // from here to the commit the run stays this attempt's; refused, nothing is written
    txn.execute("UPDATE threads SET answer = $2 WHERE id = $1", &[&thread, &said]).await?;
    txn.commit().await?;
    Ok(Outcome::Done(json!({ "thread": thread })))
}

/// The thread, and its latest run, which is found by its key.
async fn look(db: &Client, thread: &str) -> Result<(), HandlerError> {
    let row = db.query_opt("SELECT answer FROM threads WHERE id = $1", &[&thread]).await?.ok_or("no such thread")?;
    let operator = Operator::connect(&Config::from_env()?).await?;
    let run = operator.latest("answer", thread).await?.ok_or("it was never asked")?.row;
    let by = run.owner_pod.as_deref().unwrap_or("nobody");
    let answer = row.get::<_, Option<String>>(0).unwrap_or_else(|| "none yet".to_owned());
    println!("run {} is {}, attempt {} by {by}; answer: {answer}", run.run_id, run.state, run.attempt);
    Ok(())
}

/// The service's own connection, with the pod's settings: TLS, hosts, passwords. It ends with the client; a pool does
/// as well.
async fn connect() -> Result<Client, HandlerError> {
    Ok(podlock::connect(&Config::from_env()?).await?)
}
