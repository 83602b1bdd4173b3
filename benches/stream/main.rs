//! `make bench-stream`: how many chunks a second pass from one pod to a reader on another, beside a floor of bare INSERTs
//! of the same batches that is taken in the same run; and how long a chunk takes from append to reader while a hundred
//! runs talk.
//!
//! It prints tables and says which goals are met. It asserts nothing, and writes nothing but to a private server that
//! is gone afterwards.

use std::error::Error;
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
    let server = Server::builder().start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(&args, &server.url("postgres")))
}

async fn measure(args: &Args, url: &str) -> Result<()> {
    let rate = args.rate;
    let (time, chunks) = (args.time, args.chunks);
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
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            for _ in 0..(time.as_secs_f64() * f64::from(rate)) as usize {
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
    delay(args, &writer, &reader, url, began).await?;
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

async fn delay(args: &Args, writer: &Pod, reader: &Pod, url: &str, began: Instant) -> Result<()> {
    println!("\n{} runs, {} chunks a second each, for {:?}: from append to reader", args.runs, args.rate, args.time);
    let told = count_notifications(url).await?;
    let from = Instant::now();
    let started = join_all((0..args.runs).map(|_| writer.start(NewRun::new("talk")))).await;
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
    let per_second = told.load(std::sync::atomic::Ordering::Relaxed) as f64 / from.elapsed().as_secs_f64();
    let (middle, count) = (median(&mut delays), delays.len());
    let at = |share: f64| delays[((count - 1) as f64 * share) as usize];
    println!(
        "  {count} chunks: median {middle:.1} ms (goal: 20, {}), p90 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        met(middle <= 20.0),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    println!("  {per_second:.1} notifications a second (goal: 50 at most, {})", met(per_second <= 50.0));
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
async fn count_notifications(url: &str) -> Result<std::sync::Arc<std::sync::atomic::AtomicUsize>> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let told = std::sync::Arc::clone(&count);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
