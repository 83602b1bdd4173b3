//! L12: a row that cannot be deleted is named and passed over. What keeps it is the service's own: a foreign key, a
//! trigger, a lock.

use super::*;
use crate::support::trace;

/// More than two batches are kept, and they are the oldest: behind them wait those that can go.
const KEPT: i32 = 450;
const FREE: i32 = 250;

/// What may keep a run, and what the report says of it.
const KEEPERS: [(&str, &str); 9] = [
    (
        "CREATE TABLE answers (run_id uuid REFERENCES studio_runs (run_id)); INSERT INTO answers SELECT run_id \
         FROM oldest",
        "answers_run_id_fkey",
    ),
    (
        "CREATE TABLE answers (run_id uuid REFERENCES studio_runs (run_id) ON DELETE RESTRICT); INSERT INTO answers \
         SELECT run_id FROM oldest",
        "answers_run_id_fkey",
    ),
    // This one would fail at COMMIT.
    (
        "CREATE TABLE answers (run_id uuid REFERENCES studio_runs (run_id) DEFERRABLE INITIALLY DEFERRED); \
         INSERT INTO answers SELECT run_id FROM oldest",
        "answers_run_id_fkey",
    ),
    (
        "CREATE TABLE notes (run_id uuid, attempt int, FOREIGN KEY (run_id, attempt) REFERENCES studio_run_attempts); \
         INSERT INTO notes SELECT run_id, 2 FROM oldest",
        "notes_run_id_attempt_fkey",
    ),
    (
        "INSERT INTO studio_run_chunks (run_id, generation, seq, fence, body) SELECT run_id, 1, 0, 1, 'x' FROM oldest; \
         CREATE TABLE quotes (run_id uuid, generation int, seq bigint, FOREIGN KEY (run_id, generation, seq) \
         REFERENCES studio_run_chunks); \
         INSERT INTO quotes SELECT run_id, 1, 0 FROM oldest",
        "quotes_run_id_generation_seq_fkey",
    ),
    (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF EXISTS (SELECT FROM public.oldest o WHERE o.run_id = OLD.run_id) THEN RAISE EXCEPTION 'needed for the \
           audit'; END IF; RETURN OLD; END $$; \
         CREATE TRIGGER refuse BEFORE DELETE ON studio_runs FOR EACH ROW EXECUTE FUNCTION refuse()",
        "needed for the audit",
    ),
    (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF EXISTS (SELECT FROM public.oldest o WHERE o.run_id = OLD.run_id) THEN RAISE EXCEPTION 'needed at the \
           end'; END IF; RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER refuse AFTER DELETE ON studio_runs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW \
         EXECUTE FUNCTION refuse()",
        "needed at the end",
    ),
    (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF EXISTS (SELECT FROM public.oldest o WHERE o.run_id = OLD.run_id) THEN RETURN NULL; END \
           IF; RETURN OLD; END $$; \
         CREATE TRIGGER refuse BEFORE DELETE ON studio_runs FOR EACH ROW EXECUTE FUNCTION refuse()",
        "a trigger kept the row",
    ),
    // One that asks for what the schema's owner may not do.
    (
        "CREATE TABLE secrets (x int); CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF EXISTS (SELECT FROM public.oldest o WHERE o.run_id = OLD.run_id) THEN INSERT INTO public.secrets \
           VALUES (1); END IF; RETURN OLD; END $$; \
         CREATE TRIGGER refuse BEFORE DELETE ON studio_runs FOR EACH ROW EXECUTE FUNCTION refuse()",
        "permission denied for table secrets",
    ),
];

/// Old runs, of which the oldest stand in a table of the service's own.
async fn with_oldest(db: &Db) {
    ended(&db.client, "succeeded", KEPT, 9.0).await;
    ended(&db.client, "succeeded", FREE, 8.0).await;
    let sql = "CREATE TABLE oldest AS SELECT run_id FROM studio_runs WHERE finished_at < now() - interval '8.5 days'; \
               GRANT SELECT ON oldest TO PUBLIC";
    db.client.batch_execute(sql).await.unwrap();
}

async fn old_session(client: &Client, days: f64) -> uuid::Uuid {
    let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason) \
               VALUES (gen_random_uuid(), 'x', now() - make_interval(secs => $1), now() - make_interval(secs => $1), \
               'lost') RETURNING incarnation";
    client.scalar(sql, &[&(days * 86_400.0)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_what_keeps_some_runs_is_named_once_and_the_rest_is_pruned() {
    timed(async {
        for (sql, why) in KEEPERS {
            let db = Db::new().await;
            with_oldest(&db).await;
            old_session(&db.client, 9.0).await;
            for name in ["x", "y"] {
                life(&db.client, name).await;
            }
            age_events(&db.client, i64::MAX).await;
            db.client.batch_execute(sql).await.expect(sql);
            let keep = Retention::new().runs(7 * DAY).events(DAY);
            let pruned = operator(&db).await.prune(&keep).await.unwrap();
            assert_eq!((pruned.runs, pruned.events, pruned.sessions), (i64::from(FREE), 3, 1), "{sql}: {pruned:?}");
            let [kept] = pruned.kept.as_slice() else { panic!("{sql}: {pruned:?}") };
            assert_eq!((kept.what, kept.count), ("run", i64::from(KEPT)), "{sql}: {kept:?}");
            assert!(kept.why.contains(why), "{sql}: {kept:?}");
            // What stays is whole, and what is named is one of them.
            let named = "SELECT count(*) FROM oldest WHERE run_id::text = $1";
            assert_eq!(db.client.scalar::<i64>(named, &[&kept.first]).await, 1, "{kept:?}");
            let left = "SELECT count(*) FROM studio_runs JOIN oldest USING (run_id)";
            assert_eq!(db.client.scalar::<i64>(left, &[]).await, i64::from(KEPT), "{sql}");
            assert_eq!(count(&db.client, "studio_runs").await, i64::from(KEPT), "{sql}");
            assert_eq!(count(&db.client, "studio_run_attempts").await, 2 * i64::from(KEPT), "{sql}");
            // When nothing keeps them any more, they go.
            db.client.batch_execute("TRUNCATE oldest; DROP TABLE IF EXISTS answers, notes, quotes").await.unwrap();
            let pruned = operator(&db).await.prune(&keep).await.unwrap();
            assert_eq!((pruned.runs, pruned.kept.len()), (i64::from(KEPT), 0), "{sql}: {pruned:?}");
        }
    })
    .await;
}

/// A reference to an incarnation keeps that one; of the log, all before the event that is referred to goes. The other
/// kinds go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_session_or_an_event_that_is_referenced_stops_neither_its_kind_nor_the_others() {
    timed(async {
        let db = Db::new().await;
        for _ in 0..210 {
            old_session(&db.client, 9.0).await;
        }
        let sessions = "CREATE TABLE visits (incarnation uuid REFERENCES studio_pod_sessions); \
                        INSERT INTO visits SELECT incarnation FROM studio_pod_sessions";
        db.client.batch_execute(sessions).await.unwrap();
        for _ in 0..30 {
            old_session(&db.client, 8.0).await;
        }
        for n in 0..40 {
            life(&db.client, &format!("p{n}")).await;
        }
        age_events(&db.client, i64::MAX).await;
        let fifty: i64 =
            db.client.scalar("SELECT idx FROM studio_pod_events ORDER BY idx OFFSET 50 LIMIT 1", &[]).await;
        let events =
            format!("CREATE TABLE marks (idx bigint REFERENCES studio_pod_events); INSERT INTO marks VALUES ({fifty})");
        db.client.batch_execute(&events).await.unwrap();
        ended(&db.client, "succeeded", 5, 8.0).await;
        let keep = Retention::new().runs(7 * DAY).events(DAY);
        let operator = operator(&db).await;
        let pruned = operator.prune(&keep).await.unwrap();
        // The event whose position is kept has become the snapshot.
        assert_eq!((pruned.runs, pruned.events, pruned.sessions), (5, 50, 30), "{pruned:?}");
        let kept: Vec<_> = pruned.kept.iter().map(|k| (k.what, k.count, k.why.as_str())).collect();
        let [(event, 1, mark), ("session", 210, visit)] = kept.as_slice() else { panic!("{kept:?}") };
        assert!(
            *event == "event" && mark.contains("marks_idx_fkey") && visit.contains("visits_incarnation_fkey"),
            "{kept:?}"
        );
        assert_eq!(count(&db.client, "studio_pod_events").await, 30, "a snapshot, and what came after it");
        db.client.assert_fold_is_roster().await;
        db.client.batch_execute("DROP TABLE marks, visits").await.unwrap();
        let pruned = operator.prune(&keep).await.unwrap();
        assert_eq!((pruned.events, pruned.sessions, pruned.kept.len()), (29, 210, 0), "{pruned:?}");
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// A log that cannot be folded keeps the events, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_each_pruning_runs_whatever_becomes_of_the_others() {
    timed(async {
        let db = Db::new().await;
        let append =
            "SELECT studio_append_event('draining', 'y', gen_random_uuid(), 'y', '{}') FROM generate_series(1, 3)";
        db.client.batch_execute(append).await.unwrap();
        age_events(&db.client, i64::MAX).await;
        old_session(&db.client, 9.0).await;
        ended(&db.client, "succeeded", 5, 8.0).await;
        let error = operator(&db).await.prune(&Retention::new().runs(DAY).events(DAY)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SchemaIncompatible, "{error}");
        assert!(error.to_string().contains("5 runs, 0 events and 1 sessions were deleted"), "{error}");
        let left = (count(&db.client, "studio_runs").await, count(&db.client, "studio_pod_sessions").await);
        assert_eq!(left, (0, 0));
        // The same where a table is missing its right: the pods' role may not read the sessions.
        db.client
            .batch_execute("REVOKE SELECT ON studio_pod_sessions FROM podlock_pod; TRUNCATE studio_pod_events")
            .await
            .unwrap();
        for name in ["x", "y"] {
            life(&db.client, name).await;
        }
        age_events(&db.client, i64::MAX).await;
        ended(&db.client, "succeeded", 5, 8.0).await;
        let error = operator(&db).await.prune(&Retention::new().runs(DAY).events(DAY)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
        assert!(error.to_string().contains("5 runs, 3 events and 0 sessions were deleted"), "{error}");
    })
    .await;
}

/// Pods pass over them too, at every round, and say so once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_pod_prunes_what_is_behind_and_warns_once() {
    timed(async {
        let db = Db::new().await;
        with_oldest(&db).await;
        db.client.batch_execute(KEEPERS[0].0).await.unwrap();
        let eager = |c: &mut Config| (c.keep_runs, c.prune_interval) = (7 * DAY, Duration::from_millis(20));
        let a = start(db.config("prunes-behind").with(eager)).await;
        let left = |expected: i32| {
            let client = &db.client;
            eventually(SOON, "what nothing keeps is pruned", move || async move {
                let left = count(client, "studio_runs").await;
                if left == i64::from(expected) { Ok(()) } else { Err(format!("{left}")) }
            })
        };
        left(KEPT).await;
        // In later rounds as well, whatever place the pod's walk is at.
        ended(&db.client, "succeeded", 3, 30.0).await;
        ended(&db.client, "cancelled", 3, 8.0).await;
        left(KEPT).await;
        let said: Vec<_> = trace::events("prunes-behind")
            .into_iter()
            .filter(|e| e.get("event").is_some_and(|e| e == "prune_kept"))
            .collect();
        let [said] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!((said["level"].as_str(), said["kind"].as_str()), ("WARN", "run"), "{said:?}");
        assert!(said["cause"].contains("answers_run_id_fkey"), "{said:?}");
        db.client.batch_execute("DROP TABLE answers").await.unwrap();
        left(0).await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Rows that take their time, as where a reference has no index: what does not fit into one statement goes in several,
/// and a single one that does not fit is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_batch_that_does_not_fit_into_the_time_of_a_statement_is_made_smaller() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 1, 9.0).await;
        let slow = "CREATE TABLE endless AS SELECT run_id FROM studio_runs; GRANT SELECT ON endless TO PUBLIC; \
                    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                      PERFORM pg_sleep(CASE WHEN EXISTS (SELECT FROM public.endless e \
                      WHERE e.run_id = OLD.run_id) THEN 30 ELSE 0.05 END); \
                      RETURN OLD; END $$; \
                    CREATE TRIGGER slow BEFORE DELETE ON studio_runs FOR EACH ROW EXECUTE FUNCTION slow()";
        db.client.batch_execute(slow).await.unwrap();
        ended(&db.client, "succeeded", 60, 8.0).await;
        let config = Config::new(&db.pod_url).with(|c| c.statement_timeout = Some(Duration::from_millis(1500)));
        let operator = Operator::connect(&config).await.unwrap();
        let pruned = operator.prune(&Retention::new().runs(7 * DAY)).await.unwrap();
        assert_eq!(pruned.runs, 60, "{pruned:?}");
        let [kept] = pruned.kept.as_slice() else { panic!("{pruned:?}") };
        assert!(kept.count == 1 && kept.why.contains("57014"), "{kept:?}");
        assert_eq!(count(&db.client, "studio_runs").await, 1);
    })
    .await;
}

/// A row of the service's own that somebody holds, or a table that is being altered, is waited for a moment alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_lock_of_the_services_own_keeps_a_run_for_one_round() {
    timed(async {
        let db = Db::new().await;
        with_oldest(&db).await;
        let own = "CREATE TABLE answers (run_id uuid REFERENCES studio_runs (run_id) ON DELETE CASCADE); \
                   INSERT INTO answers SELECT run_id FROM oldest LIMIT 2";
        db.client.batch_execute(own).await.unwrap();
        let mut holder = sql::connect(&db.url).await;
        let holder = holder.transaction().await.unwrap();
        holder.query("SELECT FROM answers FOR UPDATE", &[]).await.unwrap();
        let keep = Retention::new().runs(7 * DAY);
        let operator = operator(&db).await;
        let pruned = operator.prune(&keep).await.unwrap();
        assert_eq!(pruned.runs, i64::from(KEPT + FREE) - 2, "{pruned:?}");
        let [kept] = pruned.kept.as_slice() else { panic!("{pruned:?}") };
        assert!(kept.count == 2 && kept.why.contains("55P03"), "{kept:?}");
        holder.rollback().await.unwrap();
        assert_eq!(operator.prune(&keep).await.unwrap().runs, 2);
    })
    .await;
}

/// `docs/retention.md`: how a service owns a reference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_that_cascades_or_sets_null_keeps_nothing() {
    timed(async {
        let db = Db::new().await;
        ended(&db.client, "succeeded", 4, 8.0).await;
        let own = "CREATE TABLE drafts (run_id uuid REFERENCES studio_runs (run_id) ON DELETE CASCADE); \
                   CREATE TABLE letters (run_id uuid REFERENCES studio_runs (run_id) ON DELETE SET NULL); \
                   INSERT INTO drafts SELECT run_id FROM studio_runs; INSERT INTO letters SELECT run_id \
                   FROM studio_runs";
        db.client.batch_execute(own).await.unwrap();
        let pruned = operator(&db).await.prune(&Retention::new().runs(7 * DAY)).await.unwrap();
        assert_eq!((pruned.runs, pruned.kept.len()), (4, 0), "{pruned:?}");
        let letters: i64 = db.client.scalar("SELECT count(*) FROM letters WHERE run_id IS NULL", &[]).await;
        assert_eq!((count(&db.client, "drafts").await, letters), (0, 4));
    })
    .await;
}

/// Whatever rows a caller with the pods' rights names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_role_can_name_nothing_that_runs_or_is_young() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        a.start(NewRun::new("wait")).await.unwrap();
        ended(&db.client, "succeeded", 1, 0.04).await;
        ended(&db.client, "failed", 1, 2.0).await;
        let as_pod = sql::connect(&db.pod_url).await;
        let runs = "(SELECT array_agg(run_id) FROM studio_runs)";
        let gone: i32 = as_pod
            .scalar(
                &format!(
                    "SELECT gone FROM studio_prune_named_runs({runs}, '1 hour', \
                                                9)"
                ),
                &[],
            )
            .await;
        assert_eq!(gone, 1, "the failed one");
        let sessions = "SELECT gone FROM studio_prune_named_sessions((SELECT array_agg(incarnation) \
                        FROM studio_pod_sessions), '1 hour')";
        assert_eq!(as_pod.scalar::<i32>(sessions, &[]).await, 0, "it lives");
        assert_eq!(states(&db.client).await, json!({"running": 1, "succeeded": 1}));
        for age in ["interval '59 minutes'", "NULL", "interval '-1 day'"] {
            for call in [
                format!("studio_prune_named_runs({runs}, {age}, 9)"),
                format!("studio_prune_named_sessions(NULL, {age})"),
            ] {
                let refusal = as_pod.query(&format!("SELECT {call}"), &[]).await.expect_err(&call);
                assert_eq!(refusal.code().map(|c| c.code()), Some("22023"), "{call}");
            }
        }
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}
