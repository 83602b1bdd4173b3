//! The output of runs, stored once: a result or a text, written under the fence, by the handler's word or its return.

use std::time::Duration;

use podlock::operator::RunOutput;
use podlock::{ErrorKind, Outcome, Output, OutputFormat, Pod, RunId};
use serde_json::{Value, json};

use super::stage::{FINISH, SOON, Stage, act, behind_proxy, blocked, orphan, port_of_blocked, story, told, whole_run};
use crate::support::proxy::Flow;
use crate::support::sql::Client;
use crate::support::{Db, eventually, sql, timed};

async fn output_of(pod: &Pod, run_id: RunId) -> RunOutput {
    pod.operator().run(run_id).await.expect("described").expect("it is there").output
}

/// Waits until the attempt's task has ended.
async fn over(pod: &Pod) {
    eventually(SOON, "no attempt is left", || async {
        if pod.status().runs == 0 { Ok(()) } else { Err(format!("{:?}", pod.status())) }
    })
    .await;
}

async fn columns(client: &Client, run_id: RunId) -> Value {
    let sql = "SELECT jsonb_build_object('result', result, 'none', result IS NULL, 'stdout', stdout, 'stderr', stderr, \
               'exit_code', exit_code, 'escaped', output_escaped, 'parsed', parse_error IS NULL) FROM studio_runs \
               WHERE run_id = $1";
    client.scalar(sql, &[&run_id.as_uuid()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_is_stored_once_and_the_api_shows_what_the_row_holds() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let parse = |format, code, stdout: &[u8]| Output::parse(format, code, stdout, "noise");
        let noise = |result: Value, none: bool, stdout: &str, code: i32, escaped: bool, parsed: bool| {
            json!({"result": result, "none": none, "stdout": stdout, "stderr": "noise", "exit_code": code,
                   "escaped": escaped, "parsed": parsed})
        };
        use OutputFormat::{Json, Jsonl, Text, Yaml};
        for (output, row) in [
            (parse(Json, 0, b"{\"a\": 1}"), noise(json!({"a": 1}), false, "", 0, false, true)),
            (
                parse(Json, 0, b"[5e-324, 1.7976931348623157e308, 1e22, 18446744073709551615, -0.1, 1e-7]"),
                noise(json!([5e-324, 1.7976931348623157e308, 1e22, u64::MAX, -0.1, 1e-7]), false, "", 0, false, true),
            ),
            (parse(Json, 0, b"null"), noise(json!(null), false, "", 0, false, true)),
            (parse(Yaml, 3, b"a: [1, x]"), noise(json!({"a": [1, "x"]}), false, "", 3, false, true)),
            (parse(Jsonl, 0, b"1\n2\n"), noise(json!([1, 2]), false, "", 0, false, true)),
            (parse(Text, 1, b"plain \\ text"), noise(json!(null), true, "plain \\ text", 1, false, true)),
            (parse(Json, 0, b""), noise(json!(null), true, "", 0, false, false)),
            (parse(Json, 0, b"[1e400]"), noise(json!(null), true, "[1e400]", 0, false, false)),
            (parse(Json, 0, br#""a\u0000b""#), noise(json!(null), true, r#""a\u0000b""#, 0, false, false)),
            (parse(Json, 0, br#""\ud800""#), noise(json!(null), true, r#""\ud800""#, 0, false, false)),
            (parse(Text, 0, b"a\0\\\xff"), noise(json!(null), true, r"a\x00\\\xff", 0, true, true)),
        ] {
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act().await;
            let finished = begun.run.finish(output.clone()).await.expect("it is finished");
            assert_eq!(finished, Outcome::Finished);
            assert_eq!(db.client.run(run_id).await.state, "succeeded", "at once, and whatever the exit code");
            assert_eq!(columns(&db.client, run_id).await, row);
            let shown = output_of(&a, run_id).await;
            assert_eq!((shown.result.as_ref(), shown.has_result), (output.result(), output.result().is_some()));
            assert_eq!(shown.stdout_bytes().unwrap(), output.stdout());
            assert_eq!(shown.stderr_bytes().unwrap(), output.stderr());
            assert_eq!((shown.exit_code, shown.parse_error.as_deref()), (output.exit_code(), output.parse_error()));
            assert_eq!(shown.error, None);
            begun.end(Ok(finished));
            assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
        }
        over(&a).await;
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_output_ends_the_run_and_a_failed_one_keeps_its_output() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let output = Output::parse(OutputFormat::Json, 3, "[1]", "no such page");
        for (output, state, error) in
            [(output.clone(), "succeeded", None), (output.fail_unless_exit_0(), "failed", Some("exit code 3"))]
        {
            let run_id = a.start(act()).await.unwrap().run_id;
            stage.act().await.end(Ok(output.into()));
            db.client.run_in_state(run_id, state, SOON).await;
            let shown = output_of(&a, run_id).await;
            assert_eq!((shown.result, shown.error.as_deref(), shown.exit_code), (Some(json!([1])), error, Some(3)));
            assert_eq!(shown.stderr, "no such page");
            assert_eq!(story(&db.client, run_id).await, told(&[("a", Some(state))]));
        }
    })
    .await;
}

/// The law of the table, whoever writes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_with_both_a_result_and_a_text_is_refused_by_the_table() {
    timed(async {
        let db = Db::new().await;
        let (run_id, _) = orphan(&db.client, "nobody-has-this").await;
        for (columns, allowed) in [
            ("result = '1', stdout = 'x'", false),
            ("result = 'null', stdout = 'x'", false),
            ("result = '1', parse_error = 'x'", false),
            ("result = NULL, stdout = NULL", false),
            ("result = '1', stdout = ''", true),
            ("result = NULL, stdout = 'x', parse_error = 'x'", true),
        ] {
            let sql =
                format!("UPDATE studio_runs SET {columns}, state = 'succeeded', finished_at = now() WHERE run_id = $1");
            let done = db.client.execute(&sql, &[&run_id.as_uuid()]).await;
            let code = done.as_ref().err().and_then(|e| e.code()).map(|c| c.code());
            let refused = if columns.ends_with("NULL") { "23502" } else { "23514" };
            assert_eq!(code, (!allowed).then_some(refused), "{columns}: {done:?}");
        }
    })
    .await;
}

/// A pod of before the columns: what it writes is a row that obeys the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_that_an_older_binary_writes_is_accepted() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let _begun = stage.act().await;
        let old = "UPDATE studio_runs SET state = 'succeeded', result = '{\"a\": 1}', error = NULL, \
                   finished_at = clock_timestamp() WHERE run_id = $1 AND state = 'running'";
        assert_eq!(db.client.execute(old, &[&run_id.as_uuid()]).await.unwrap(), 1);
        let shown = output_of(&a, run_id).await;
        assert_eq!((shown.result, shown.stdout.as_str(), shown.exit_code), (Some(json!({"a": 1})), "", None));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_whole_and_the_run_can_be_finished_otherwise() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let limits = |c: &mut podlock::Config| (c.result_max_bytes, c.stderr_max_bytes) = (1000, 100);
        let a = stage.pod(db.config("a").with(limits)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let before = whole_run(&db.client, run_id).await;
        for (output, word) in [
            (Output::value("x".repeat(999)), "result_max_bytes"),
            (Output::text("x".repeat(1001)), "result_max_bytes"),
            (Output::text("x").with_stderr("x".repeat(101)), "stderr_max_bytes"),
        ] {
            let error = begun.run.finish(output).await.expect_err("too large");
            assert_eq!((error.kind(), error.run_id()), (ErrorKind::TooLarge, Some(run_id)));
            assert!(error.to_string().contains(word) && !error.may_have_been_done(), "{error}");
        }
        let error = begun.run.finish(json!("a\0b")).await.expect_err("no text of PostgreSQL's");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(whole_run(&db.client, run_id).await, before, "nothing was written");
        begun.run.finish(Output::text("x".repeat(1000)).with_stderr("x".repeat(100))).await.expect("that is no more");
        begun.end(Ok(Outcome::Finished));
        // Returned, it fails the run, once, and says why.
        let run_id = a.start(act()).await.unwrap().run_id;
        stage.act().await.done(json!("x".repeat(999)));
        db.client.run_in_state(run_id, "failed", SOON).await;
        let shown = output_of(&a, run_id).await;
        assert!(shown.error.is_some_and(|e| e.contains("result_max_bytes")) && !shown.has_result);
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("failed"))]));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// Megabytes of every kind, at the default limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_outputs_that_are_allowed_are_stored_whole() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let patient = |c: &mut podlock::Config| c.statement_timeout = Some(Duration::from_secs(30));
        let a = stage.pod(db.config("a").with(patient)).await;
        let whole = "é\\".repeat(16 << 18);
        let many: Value = (0..1_500_000).collect::<Vec<u32>>().into();
        for output in [Output::text(whole).with_stderr("x".repeat(1 << 20)), Output::value(many)] {
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act().await;
            begun.run.finish(output.clone()).await.expect("it is stored");
            begun.end(Ok(Outcome::Finished));
            let shown = output_of(&a, run_id).await;
            assert!(shown.result.as_ref() == output.result() && shown.stdout.as_bytes() == output.stdout());
            assert_eq!(shown.stderr.len(), output.stderr().len());
        }
    })
    .await;
}

/// Of several ends, the first that is accepted stands, whatever else the handler and its clones do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        for how in 0..4 {
            let run_id = a.start(act().key("k")).await.unwrap().run_id;
            let begun = stage.act().await;
            let clone = begun.run.clone();
            let (one, other) = tokio::join!(begun.run.finish(json!(1)), clone.finish(json!(2)));
            let (accepted, refused) = match (one, other) {
                (Ok(_), Err(e)) => (json!(1), e),
                (Err(e), Ok(_)) => (json!(2), e),
                both => panic!("{both:?}"),
            };
            assert!(refused.is_fenced() && !refused.may_have_been_done(), "{refused}");
            assert!(clone.finish(json!(3)).await.expect_err("it has ended").is_fenced());
            let late = clone.checkpoint(json!(4)).await.expect_err("it has ended");
            assert!(late.is_fenced() && late.to_string().contains("the run is succeeded"), "{late}");
            let next = a.start(act().key("k")).await.expect("its key is free, though its handler still runs");
            stage.act().await.done(json!(null));
            db.client.run_in_state(next.run_id, "succeeded", SOON).await;
            match how {
                0 => begun.done(json!("something else")),
                1 => begun.fail("broken"),
                2 => begun.give_back(),
                _ => begun.end(Ok(Outcome::Finished)),
            }
            over(&a).await;
            assert_eq!(output_of(&a, run_id).await.result, Some(accepted));
            assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
        }
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_says_finished_and_was_not_fails() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        stage.act().await.end(Ok(Outcome::Finished));
        db.client.run_in_state(run_id, "failed", SOON).await;
        let error = output_of(&a, run_id).await.error;
        assert!(error.is_some_and(|e| e.contains("had not finished the run")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_finish_of_a_run_that_is_anothers_or_was_cancelled_writes_nothing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        // Pod b adopts each run that `to_b` assigns to it, and executes the run on a stage that this test does not
        // watch.
        let elsewhere = Stage::new();
        let b = elsewhere.pod(db.config("b")).await;
        let to_b = format!(
            "UPDATE studio_runs SET fence = nextval('studio_fence'), owner_pod = 'b', owner_incarnation = '{}'",
            b.incarnation()
        );
        for take in [
            to_b.as_str(),
            "UPDATE studio_runs SET state = 'cancelled', finished_at = now()",
            "DELETE FROM studio_runs",
        ] {
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act().await;
            db.client.execute(&format!("{take} WHERE run_id = $1"), &[&run_id.as_uuid()]).await.unwrap();
            let error = begun.run.finish(json!("not mine to say")).await.expect_err(take);
            assert!(error.is_fenced() && begun.run.stop_reason().is_some(), "{take}: {error}");
            let written =
                "SELECT count(*) FROM studio_runs WHERE run_id = $1 AND (result IS NOT NULL OR state = 'succeeded')";
            assert_eq!(db.client.scalar::<i64>(written, &[&run_id.as_uuid()]).await, 0, "{take}");
            begun.end(Ok(Outcome::Finished));
            over(&a).await;
        }
    })
    .await;
}

/// A finish that commits and whose reply never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finish_by_the_handler_whose_reply_was_lost_is_read_back() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.statement_timeout = Some(Duration::from_secs(20)))).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()]).await.unwrap();
        let run = begun.run.clone();
        let finishing = tokio::spawn(async move { run.finish(json!("once")).await });
        let link = port_of_blocked(&db.client, FINISH).await;
        proxy.one(link, Flow::Mute);
        gate.rollback().await.unwrap();
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        proxy.one(link, Flow::Cut);
        assert_eq!(finishing.await.unwrap().expect("read back"), Outcome::Finished);
        assert_eq!(begun.run.stop_reason(), None, "somebody called it fenced");
        assert!(begun.run.finish(json!("twice")).await.expect_err("once").is_fenced());
        begun.end(Ok(Outcome::Finished));
        over(&a).await;
        assert_eq!(output_of(&a, run_id).await.result, Some(json!("once")));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
    })
    .await;
}

/// A handler that gives a finish up half way, and ends in another way: what was accepted first stands, and no later
/// call is told that its own output was stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_dropped_finish_the_first_accepted_end_stands_and_nobody_is_told_otherwise() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(Duration::from_secs(20)))).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()]).await.unwrap();
        let run = begun.run.clone();
        let dropped = tokio::spawn(async move { run.finish(json!("first")).await });
        blocked(&db.client, FINISH, 1).await;
        dropped.abort();
        assert!(dropped.await.unwrap_err().is_cancelled());
        let run = begun.run.clone();
        let second = tokio::spawn(async move { run.finish(json!("second")).await });
        blocked(&db.client, FINISH, 2).await;
        gate.rollback().await.unwrap();
        let error = second.await.unwrap().expect_err("the first one stands");
        assert!(error.is_fenced() && error.may_have_been_done(), "{error}");
        begun.done(json!("third"));
        over(&a).await;
        assert_eq!(output_of(&a, run_id).await.result, Some(json!("first")));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
    })
    .await;
}
