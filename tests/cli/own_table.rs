//! `examples/own_table.rs`, run as its head says.

use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Db, Lines, SOON, TEST, clean, example, finish, signal, wait_for, within};

#[test]
fn the_example_answers_on_a_survivor_what_a_killed_pod_was_asked() {
    let program = within(10 * TEST, example("own_table"));
    within(TEST, async {
        let db = Db::new().await;
        let command = |name: &str, args: &[&str]| {
            let mut command = clean(&program);
            command.args(args).env("DATABASE_URL", &db.url).env("POD_NAME", name).env("PODLOCK_LEASE", "3s");
            command
        };
        let start = |name: &str, args: &[&str]| {
            let mut child = command(name, args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let log = Lines::read(child.stderr.take().unwrap());
            (child, log)
        };
        let question = "what is a lease ".repeat(10);
        let (mut first, log) = start("first", &["t-1", &question]);
        log.find("it is asked", |line| line.contains("asked run=").then_some(())).await;
        let client = db.client().await;
        let run = || async {
            let row = client.query_one("SELECT state, attempt, checkpoint IS NOT NULL FROM studio_runs", &[]).await;
            let row = row.unwrap();
            (row.get::<_, String>(0), row.get::<_, i32>(1), row.get::<_, bool>(2))
        };
        wait_for("it is at work", || async {
            let run = run().await;
            if run.2 { Ok(()) } else { Err(format!("{run:?}")) }
        })
        .await;
        // Asked again, it is the same run.
        let (mut second, log) = start("second", &["t-1", "and what else"]);
        log.find("it knows", |line| line.contains("is being answered").then_some(())).await;
        signal(first.id().unwrap(), Signal::KILL);
        first.wait().await.unwrap();
        wait_for("it has ended", || async {
            let run = run().await;
            if run.0 == "succeeded" { Ok(()) } else { Err(format!("{run:?}: {:#?}", log.all())) }
        })
        .await;
        assert_eq!(run().await.1, 2);
        let answer: String = client.query_one("SELECT answer FROM threads", &[]).await.unwrap().get(0);
        assert_eq!(answer, question.trim().to_uppercase());
        let looked = finish(command("third", &["t-1"])).await;
        assert!(looked.code == 0 && looked.stdout.contains("is succeeded, attempt 2 by second"), "{looked:?}");
        assert!(looked.stdout.trim_end().ends_with(&answer), "{looked:?}");
        db.ok(&["drain", "second"]).await;
        let status = tokio::time::timeout(SOON, second.wait()).await;
        assert!(status.unwrap_or_else(|_| panic!("it has not ended: {:#?}", log.all())).unwrap().success());
    });
}
