//! Who is notified of chunks, and how often: nobody for a stream that no other pod reads, and its readers a few times a
//! second. The others read by themselves.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use podlock::protocol::notices::{StreamNotice, group};
use podlock::{NewRun, Outcome, Pod, Run, RunId};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use super::{SOON, attach, chunk, end, next, rest, say, whole};
use crate::patience::slack;
use crate::runs::stage::{Stage, act, blocked};
use crate::support::{Db, eventually, lease, sql, start, timed};

/// A connection that hears the notifications on the streams' channel.
struct Ear {
    client: sql::Client,
    heard: UnboundedReceiver<String>,
}

impl Ear {
    async fn new(db: &Db) -> Self {
        let (client, heard) = sql::listening(&db.url).await;
        client.batch_execute("LISTEN podstream_public").await.expect("listening");
        Self { client, heard }
    }

    /// How many notifications came since the last call. Those that were sent before this call are among them, because
    /// the server delivers notifications in the order of the commits.
    async fn count(&mut self) -> usize {
        self.take().await.len()
    }

    /// How many of them named the group of this run.
    async fn count_of(&mut self, run_id: RunId) -> usize {
        let names = |notice: &StreamNotice| notice.groups.as_ref().is_none_or(|groups| groups.contains(&group(run_id)));
        let heard = self.take().await;
        heard.iter().filter(|payload| names(&StreamNotice::parse(payload).expect("a notice"))).count()
    }

    async fn take(&mut self) -> Vec<String> {
        self.client.batch_execute("NOTIFY podstream_public, 'mark'").await.expect("a mark");
        let mut taken = Vec::new();
        loop {
            let heard = tokio::time::timeout(SOON, self.heard.recv()).await.expect("the mark comes");
            match heard.expect("the connection lives") {
                mark if mark == "mark" => return taken,
                heard => taken.push(heard),
            }
        }
    }
}

/// Waits until the table says that these readers read this run.
async fn is_read_by(db: &Db, run_id: RunId, readers: &[Uuid]) {
    let mut expected = readers.to_vec();
    expected.sort_unstable();
    eventually(SOON, "the readers of the run", || async {
        let sql = "SELECT reader FROM studio_stream_readers WHERE run_id = $1 ORDER BY reader";
        let rows = db.client.query(sql, &[&run_id.as_uuid()]).await.expect("readers");
        let seen: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Long enough for the readers of a stream to fall asleep.
const PAUSE: Duration = Duration::from_millis(600);

/// Each chunk comes after a pause, so each would be told of.
async fn say_with_pauses(run: &Run, count: usize) {
    for n in 0..count {
        tokio::time::sleep(PAUSE).await;
        say(run, &[&n.to_string()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_on_another_pod_reads_sends_no_notification() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, db.pod("b").await);
        let mut ear = Ear::new(&db).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut here = attach(&a, run_id).await;
        say_with_pauses(&begun.run, 4).await;
        assert_eq!(ear.count().await, 0, "all readers are on the pod of the run");
        // The same stream, read elsewhere.
        let mut there = attach(&b, run_id).await;
        is_read_by(&db, run_id, &[b.incarnation().as_uuid()]).await;
        say_with_pauses(&begun.run, 1).await;
        assert_eq!(ear.count().await, 1);
        // And once more, when nobody reads it there any more.
        drop(there);
        is_read_by(&db, run_id, &[]).await;
        say_with_pauses(&begun.run, 2).await;
        assert_eq!(ear.count().await, 0, "the reader has gone");
        there = attach(&b, run_id).await;
        begun.done(json!(null));
        let (here, there) = (rest(&mut here).await, rest(&mut there).await);
        assert_eq!((here.len(), here.last()), (8, Some(&end("succeeded"))));
        assert_eq!(whole(&here), whole(&there));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_streams_are_read_a_pod_sends_at_most_a_few_notifications_a_second() {
    timed(async {
        let db = Db::new().await;
        // Of every two runs, one talks all the time, and one pauses after each chunk.
        let talk = |run: Run| async move {
            let (count, pause) = if run.input() == &json!(0) { (80, 40) } else { (8, 400) };
            for n in 0..count {
                run.append(n.to_string()).await?;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Ok(Outcome::Done(json!(count)))
        };
        let a = Pod::builder(db.config("a")).handler("talk", talk).start().await.unwrap();
        let b = db.pod("b").await;
        let mut ear = Ear::new(&db).await;
        let began = Instant::now();
        let runs = (0..20).map(|n| a.start(NewRun::new("talk").input(json!(n % 2))));
        let runs: Vec<RunId> = join_all(runs).await.into_iter().map(|run| run.expect("started").run_id).collect();
        let reads = runs.iter().map(|run_id| async { rest(&mut attach(&b, *run_id).await).await });
        for (n, seen) in join_all(reads).await.into_iter().enumerate() {
            let count = if n % 2 == 0 { 80 } else { 8 };
            assert_eq!(whole(&seen), (0..count).map(|n: usize| n.to_string()).collect::<Vec<_>>());
        }
        let (count, took) = (ear.count().await, began.elapsed());
        let most = took.as_millis() / 300 + 3;
        assert!(count > 0 && u128::try_from(count).unwrap() <= most, "{count} notifications in {took:?}");
    })
    .await;
}

/// The reader sleeps before each chunk. Without a notification it would read half a second later on average.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_after_a_pause_is_told_of_once_and_reaches_the_reader_at_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, db.pod("b").await);
        let mut ear = Ear::new(&db).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut reader = attach(&b, run_id).await;
        is_read_by(&db, run_id, &[b.incarnation().as_uuid()]).await;
        let mut waited = Duration::ZERO;
        for n in 0..8 {
            tokio::time::sleep(PAUSE).await;
            say(&begun.run, &[&n.to_string()]).await;
            let since = Instant::now();
            assert_eq!(next(&mut reader).await, Some(chunk(1, n, &n.to_string())));
            waited += since.elapsed();
            assert_eq!(ear.count().await, 1, "of chunk {n}");
        }
        assert!(waited < slack(Duration::from_millis(1200)), "{waited:?} for 8 chunks");
        tokio::time::sleep(PAUSE).await;
        begun.done(json!(null));
        assert_eq!(next(&mut reader).await, Some(end("succeeded")));
        // The reader may have read the end by itself before the pod notified.
        while ear.count().await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_interest_of_a_reader_that_died_ends_with_its_burial_and_its_rows_are_deleted() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b, c) = (stage.pod(db.config("a")).await, db.pod("b").await, db.pod("c").await);
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        let mut ear = Ear::new(&db).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let dead = b.incarnation().as_uuid();
        let reader = attach(&b, run_id).await;
        is_read_by(&db, run_id, &[dead]).await;
        say_with_pauses(&begun.run, 1).await;
        assert_eq!(ear.count().await, 1);
        drop(b);
        db.client.roster_is(&["a", "c"], SOON).await;
        say_with_pauses(&begun.run, 2).await;
        assert_eq!(ear.count().await, 0, "the reader is dead");
        is_read_by(&db, run_id, &[dead]).await;
        drop(reader);
        // A reader that is no pod, and says until when it reads.
        let enter = "INSERT INTO studio_stream_readers (run_id, reader, until) \
                     VALUES ($1, gen_random_uuid(), clock_timestamp() + interval '1 hour')";
        db.client.execute(enter, &[&run_id.as_uuid()]).await.unwrap();
        say_with_pauses(&begun.run, 1).await;
        assert_eq!(ear.count().await, 1, "somebody reads who is no pod");
        let over = "UPDATE studio_stream_readers SET until = clock_timestamp() WHERE until IS NOT NULL";
        db.client.execute(over, &[]).await.unwrap();
        say_with_pauses(&begun.run, 1).await;
        assert_eq!(ear.count().await, 0, "its time is over");
        // The next pod with readers deletes the rows of both.
        let _reader = attach(&c, run_id).await;
        is_read_by(&db, run_id, &[c.incarnation().as_uuid()]).await;
        begun.done(json!(null));
    })
    .await;
}

/// The table is not logged. After a crash it is empty, and so is a promoted standby's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_registered_again_with_each_session_and_gone_without_readers() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, db.pod("b").await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let reader = attach(&b, run_id).await;
        let own = b.incarnation().as_uuid();
        is_read_by(&db, run_id, &[own]).await;
        db.client.batch_execute("DELETE FROM studio_stream_readers").await.unwrap();
        assert_eq!(db.client.terminate("b", "stream").await, 1);
        is_read_by(&db, run_id, &[own]).await;
        // The reader goes while the session is lost.
        db.client.terminate("b", "stream").await;
        drop(reader);
        is_read_by(&db, run_id, &[]).await;
        begun.done(json!(null));
    })
    .await;
}

/// The statement that stores a chunk takes its snapshot before the reader's row is there, so it notifies nobody, and
/// stores the chunk after the reader has read. Without a further read, the reader would read half a second later on
/// average.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_that_races_an_append_has_the_chunk_soon_although_nobody_is_told() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        // Statements are held on purpose, and must not be given up and tried again.
        let patient = |name| db.config(name).with(|c| c.statement_timeout = Some(Duration::from_secs(30)));
        let (a, b) = (stage.pod(patient("a")).await, start(patient("b")).await);
        let hold = "CREATE FUNCTION test_hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                      PERFORM pg_catalog.pg_advisory_xact_lock_shared(7); RETURN NULL; END $$; \
                    CREATE TRIGGER test_hold BEFORE INSERT ON studio_run_chunks \
                      FOR EACH STATEMENT EXECUTE FUNCTION test_hold()";
        db.client.batch_execute(hold).await.unwrap();
        let mut ear = Ear::new(&db).await;
        // Another reader keeps the session of the pod open.
        let other = a.start(act()).await.unwrap().run_id;
        let other = (stage.act().await, attach(&b, other).await);
        is_read_by(&db, other.1.run_id(), &[b.incarnation().as_uuid()]).await;
        let mut waited = Duration::ZERO;
        for _ in 0..6 {
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act_of(run_id).await;
            // The reader attaches, finds nothing, and falls asleep before its row can be written.
            let (entering, storing) = (sql::connect(&db.url).await, sql::connect(&db.url).await);
            entering.batch_execute("BEGIN; LOCK TABLE studio_stream_readers IN SHARE MODE").await.unwrap();
            let mut reader = attach(&b, run_id).await;
            let reading = tokio::spawn(async move { (next(&mut reader).await, reader) });
            // After two notifications in a row the next one is due later, and would see the row. That time passes, too.
            tokio::time::sleep(PAUSE).await;
            storing.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
            let run = begun.run.clone();
            let saying = tokio::spawn(async move { say(&run, &["late"]).await });
            blocked(&db.client, "%studio_run_chunks%", 1).await;
            entering.batch_execute("COMMIT").await.unwrap();
            let registered = "SELECT count(*) FROM studio_stream_readers WHERE run_id = $1";
            while db.client.scalar::<i64>(registered, &[&run_id.as_uuid()]).await == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // It reads once more, and finds nothing.
            tokio::time::sleep(Duration::from_millis(50)).await;
            storing.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
            saying.await.unwrap();
            let since = Instant::now();
            let (seen, mut reader) = reading.await.unwrap();
            assert_eq!(seen, Some(chunk(1, 0, "late")));
            waited += since.elapsed();
            assert_eq!(ear.count_of(run_id).await, 0, "the row was not there yet");
            begun.done(json!(null));
            rest(&mut reader).await;
        }
        assert!(waited < slack(Duration::from_millis(500)), "{waited:?} for 6 chunks");
        other.0.done(json!(null));
    })
    .await;
}

/// The reader has everything when it attaches, and asks for more only after its row was written: its pod is about to
/// read for it, and did not wait for anything before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_asks_after_it_was_registered_is_read_for() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, db.pod("b").await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["0"]).await;
        let mut first = attach(&a, run_id).await;
        begun.done(json!(null));
        assert_eq!(rest(&mut first).await, [chunk(1, 0, "0"), end("succeeded")]);
        // As an operator's release of a quarantined run.
        let undo = "UPDATE studio_runs SET state = 'running', finished_at = NULL";
        db.client.batch_execute(undo).await.unwrap();
        let mut reader = b.attach_after(run_id, first.position()).await.unwrap();
        is_read_by(&db, run_id, &[b.incarnation().as_uuid()]).await;
        // `first` has the end, and needs no row.
        let redo = "UPDATE studio_runs SET state = 'failed', finished_at = clock_timestamp(), error = 'x'";
        let (seen, _) = tokio::join!(next(&mut reader), async {
            tokio::time::sleep(PAUSE).await;
            db.client.batch_execute(redo).await.unwrap();
        });
        assert_eq!(seen, Some(end("failed")));
    })
    .await;
}
