//! `make bench-stream`: how many chunks a second pass from one pod to a reader on another, beside a floor of bare INSERTs
//! of the same batches that is taken in the same run; and how long a chunk takes from append to reader, with how many
//! notifications and statements: while a hundred runs talk, while a few runs talk with pauses, and while all readers are
//! on the pod that executes the runs.
//!
//! It prints tables and says which goals are met. It asserts nothing, and writes nothing but to a private server that
//! is gone afterwards.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::future::{join_all, try_join_all};
use podlock::throwaway::Server;
use podlock::{Config, NewRun, Outcome, Pod, Run, RunId, StreamEvent};
use serde_json::json;
use tokio_postgres::{AsyncMessage, Client, NoTls};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What the flusher stores at once when it has plenty.
const BATCH: usize = 2048;
const BYTES: usize = 64;

#[derive(Parser)]
#[command(name = "bench-stream", about = "How fast chunks pass, beside the floor of bare SQL")]
struct Args {
    /// How many chunks pass in a round
    #[arg(long, default_value_t = 200_000)]
    chunks: usize,
    /// How many rounds, each with its floor
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many runs talk at a time while it is measured how long a chunk takes
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// How many chunks a second each of them says
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// For how long they do
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// How many runs talk with pauses
    #[arg(long, default_value_t = 2)]
    slow_runs: usize,
    /// How long each of them pauses after a chunk
    #[arg(long, default_value = "700ms", value_parser = humantime::parse_duration)]
    pause: Duration,
    /// What cargo passes to a benchmark. `cargo test --all-targets` does not, and then nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is measured without --bench: `make bench-stream` passes it");
        return Ok(());
    }
    let server = Server::builder()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("pg_stat_statements.track", "top")
        .start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(&args, &server.url("postgres")))
}

async fn measure(args: &Args, url: &str) -> Result<()> {
    let chunks = args.chunks;
    let began = Instant::now();
    let writer = Pod::builder(Config::new(url).name("writer").capacity(1000))
        .handler("pour", move |run: Run| async move {
            let body = "x".repeat(BYTES);
            for _ in 0..chunks {
                run.append(body.as_str()).await?;
            }
            Ok(Outcome::Done(json!(null)))
        })
        .handler("talk", move |run: Run| async move {
            let (count, every_us) = serde_json::from_value(run.input().clone())?;
            let mut ticks = tokio::time::interval(Duration::from_micros(every_us));
            for _ in 0..count {
                ticks.tick().await;
                run.append(began.elapsed().as_nanos().to_string()).await?;
            }
            Ok(Outcome::Done(json!(null)))
        })
        .start()
        .await?;
    let reader = Pod::builder(Config::new(url).name("reader")).start().await?;
    let sql = connect(url).await?;
    passing(args, &writer, &reader, &sql).await?;
    sql.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
    let count = Counter { sql, told: count_notifications(url).await? };
    let every = Duration::from_secs(1) / args.rate;
    delay(args, (args.runs, every), (&writer, &reader), &count, began).await?;
    delay(args, (args.slow_runs, args.pause), (&writer, &reader), &count, began).await?;
    println!("\nthe same, and all readers are on the pod that executes the runs");
    delay(args, (args.runs, every), (&writer, &writer), &count, began).await?;
    writer.shutdown(Duration::ZERO).await?;
    reader.shutdown(Duration::ZERO).await?;
    Ok(())
}

async fn passing(args: &Args, writer: &Pod, reader: &Pod, sql: &Client) -> Result<()> {
    println!("\n{} chunks of {BYTES} bytes, {} rounds: chunks a second", args.chunks, args.rounds);
    println!("{:>8} {:>12} {:>12} {:>8}", "round", "bare INSERT", "podlock", "ratio");
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        let bare = args.chunks as f64 / floor(sql, args.chunks).await?.as_secs_f64();
        let began = Instant::now();
        let run_id = writer.start(NewRun::new("pour")).await?.run_id;
        let count = read(reader, run_id, |_| {}).await?;
        assert_eq!(count, args.chunks, "chunks were lost");
        let passed = args.chunks as f64 / began.elapsed().as_secs_f64();
        println!("{round:>8} {bare:>12.0} {passed:>12.0} {:>8.2}", passed / bare);
        rates.push(passed);
        ratios.push(passed / bare);
        sql.execute("DELETE FROM studio_run_chunks", &[]).await?;
    }
    let (rate, ratio) = (median(&mut rates), median(&mut ratios));
    println!(
        "  median: {rate:.0} chunks a second (goal: 20000, {}), {ratio:.2} of bare INSERTs (goal: 0.5, {})",
        met(rate >= 20_000.0),
        met(ratio >= 0.5)
    );
    Ok(())
}

/// The same rows into a table of the same shape, in the same batches, one statement after the other, and nobody reads.
async fn floor(sql: &Client, chunks: usize) -> Result<Duration> {
    sql.batch_execute("DROP TABLE IF EXISTS bare; CREATE TABLE bare (LIKE studio_run_chunks INCLUDING ALL)").await?;
    let insert = "INSERT INTO bare (run_id, generation, seq, fence, body) \
                  SELECT $1, 1, c.seq, 1, c.body FROM unnest($2::int8[], $3::text[]) AS c(seq, body)";
    let insert = sql.prepare(insert).await?;
    let (run_id, body) = (RunId::generate().as_uuid(), "x".repeat(BYTES));
    let began = Instant::now();
    for first in (0..chunks).step_by(BATCH) {
        let seqs: Vec<i64> = (first..chunks.min(first + BATCH)).map(i64::try_from).collect::<Result<_, _>>()?;
        let bodies = vec![body.as_str(); seqs.len()];
        sql.execute(&insert, &[&run_id, &seqs, &bodies]).await?;
    }
    Ok(began.elapsed())
}

/// What is counted while chunks pass.
struct Counter {
    sql: Client,
    told: Arc<AtomicUsize>,
}

impl Counter {
    /// How often a statement ran that begins like this.
    async fn calls(&self, like: &str) -> Result<i64> {
        let sql = "SELECT COALESCE(sum(calls), 0)::int8 FROM pg_stat_statements WHERE query LIKE $1";
        Ok(self.sql.query_one(sql, &[&like]).await?.get(0))
    }
}

/// `talk`: how many runs, and the time between two chunks of each. `pods`: who writes, and who reads.
async fn delay(
    args: &Args,
    talk: (usize, Duration),
    pods: (&Pod, &Pod),
    count: &Counter,
    began: Instant,
) -> Result<()> {
    let ((runs, every), (writer, reader)) = (talk, pods);
    println!("\n{runs} runs, a chunk of each every {every:?}, for {:?}: from append to reader", args.time);
    let input = json!([(args.time.as_secs_f64() / every.as_secs_f64()) as usize, every.as_micros() as u64]);
    count.sql.query("SELECT pg_stat_statements_reset()", &[]).await?;
    count.told.store(0, Ordering::Relaxed);
    let from = Instant::now();
    let started = join_all((0..runs).map(|_| writer.start(NewRun::new("talk").input(input.clone())))).await;
    let reads = started.into_iter().map(|started| async move {
        let mut delays = Vec::new();
        let run_id = started?.run_id;
        read(reader, run_id, |body| {
            let said: u128 = body.parse().unwrap_or_default();
            delays.push((began.elapsed().as_nanos() - said) as f64 / 1e6);
        })
        .await?;
        Ok::<_, Box<dyn Error + Send + Sync>>(delays)
    });
    let mut delays: Vec<f64> = try_join_all(reads).await?.into_iter().flatten().collect();
    let seconds = from.elapsed().as_secs_f64();
    let told = count.told.load(Ordering::Relaxed) as f64 / seconds;
    let stored = count.calls("WITH wanted AS MATERIALIZED%INSERT INTO%run_chunks%").await? as f64 / seconds;
    let looked = count.calls("SELECT w.nth, r.state%").await? as f64 / seconds;
    let (middle, chunks) = (median(&mut delays), delays.len());
    let at = |share: f64| delays[((chunks - 1) as f64 * share) as usize];
    println!(
        "  {chunks} chunks: median {middle:.1} ms (goal: 21.6, {}), p90 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        met(middle <= 21.6),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    let most = if std::ptr::eq(writer, reader) { 0.0 } else { 5.0 };
    println!("  a second: {told:.1} notifications (goal: {most} at most, {})", met(told <= most));
    println!("  a second: {stored:.1} statements that store, {looked:.1} that read");
    Ok(())
}

/// Reads a stream to its end, and says how many chunks there were.
async fn read(pod: &Pod, run_id: RunId, mut each: impl FnMut(&str)) -> Result<usize> {
    let mut attached = pod.attach(run_id).await?;
    let mut count = 0;
    while let Some(event) = attached.next().await? {
        if let StreamEvent::Chunk { body, .. } = event {
            each(&body);
            count += 1;
        }
    }
    Ok(count)
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Counts what is told on the streams' channel from now on.
async fn count_notifications(url: &str) -> Result<Arc<AtomicUsize>> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    let count = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&count);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                told.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    client.batch_execute("LISTEN podstream_public").await?;
    // It ends with the program.
    std::mem::forget(client);
    Ok(count)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
