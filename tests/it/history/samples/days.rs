//! The partitions of the samples: one for each day, made ahead, dropped whole.

use std::time::Duration;

use futures_util::future::join_all;

use super::{all_are_stored_once, often, pod, stores};
use crate::patience::SOON;
use crate::support::{Db, eventually, sql, start, timed, trace};

/// The names of the partitions, by day.
async fn days(client: &sql::Client) -> Vec<String> {
    let sql = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
               WHERE i.inhparent = 'studio_pod_heartbeats'::regclass ORDER BY 1";
    client.query(sql, &[]).await.expect("the partitions").iter().map(|row| row.get(0)).collect()
}

/// Makes a partition, with a sample in it or empty, for each of these days before today.
async fn add_old(db: &Db, back: impl IntoIterator<Item = i32>, filled: bool) {
    let mut script = String::from("SET ROLE podlock_owner; SET TimeZone = 'UTC'; DO $$ DECLARE day date; BEGIN ");
    for back in back {
        script.push_str(&format!(
            "day := (now() AT TIME ZONE 'UTC')::date - ({back}); \
             EXECUTE format('CREATE TABLE IF NOT EXISTS podlock_heartbeats_%s PARTITION OF studio_pod_heartbeats \
             FOR VALUES FROM (%L) TO (%L)', to_char(day, 'YYYYMMDD'), day, day + 1); "
        ));
        if filled {
            script.push_str(
                "INSERT INTO studio_pod_heartbeats (pod_id, incarnation, number, sampled_at, status, health, running_runs) \
                 VALUES ('old', gen_random_uuid(), 1, day + interval '1 hour', 'active', 'nominal', 0); ",
            );
        }
    }
    script.push_str("END $$; RESET TimeZone; RESET ROLE");
    db.client.batch_execute(&script).await.expect("old days");
}

/// Drops what may be dropped, as the pods' role does it. Returns how many.
async fn drop_all(client: &sql::Client, keep: &str) -> usize {
    let mut count = 0;
    let sql = format!("SELECT dropped FROM studio_drop_sample_day('{keep}')");
    while client.scalar::<Option<String>>(&sql, &[]).await.is_some() {
        count += 1;
    }
    count
}

async fn add(client: &sql::Client, back: i32) -> Option<i32> {
    client.scalar("SELECT studio_add_sample_days($1)", &[&back]).await
}

/// Under the least rights: pods may neither create tables nor drop them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_makes_the_next_days_and_drops_what_is_older_than_it_keeps() {
    timed(async {
        let db = Db::new().await;
        add_old(&db, 0..=40, true).await;
        let pod = pod(&db, "a").await;
        // 41 days with samples, of which 29 stay: 28 days and a begun one. A round drops at most eight.
        eventually(SOON, "today and two more are there, and the first round has dropped eight", || async {
            let days = days(&db.client).await;
            if days.len() == 43 - 8 { Ok(()) } else { Err(format!("{}: {days:?}", days.len())) }
        })
        .await;
        all_are_stored_once(&db, pod).await;
        let as_pod = sql::connect(&db.pod_url).await;
        assert_eq!(drop_all(&as_pod, "28 days").await, 4);
        let left: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_heartbeats WHERE pod_id = 'old'", &[]).await;
        assert_eq!(left, 29);
        let sql = "SELECT bool_and(pg_get_userbyid(relowner) = 'podlock_owner') FROM pg_class \
                   WHERE relname LIKE 'podlock\\_heartbeats%'";
        assert!(db.client.scalar::<bool>(sql, &[]).await, "they belong to the owner of the table");
        for refused in
            ["CREATE TABLE mine (n int)", "DELETE FROM studio_pod_heartbeats", "DROP TABLE studio_pod_heartbeats"]
        {
            let code = as_pod.batch_execute(refused).await.unwrap_err().code().map(|code| code.code().to_owned());
            assert_eq!(code.as_deref(), Some("42501"), "{refused}");
        }
        let young = as_pod.query_one("SELECT studio_drop_sample_day('59 minutes')", &[]).await;
        assert!(young.is_err(), "nothing younger than an hour");
    })
    .await;
}

/// "Concurrent creators must not fail each other; none waits."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_make_or_drop_days_at_once_neither_fail_nor_wait_and_one_does_it() {
    timed(async {
        let db = Db::new().await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(sql::connect(&db.pod_url).await);
        }
        let made: i32 = join_all(clients.iter().map(|client| add(client, 1))).await.into_iter().flatten().sum();
        assert_eq!((made, days(&db.client).await.len()), (4, 4));
        assert_eq!(add(&clients[0], 1).await, Some(0), "nothing is missing");
        // The order is forced: the first has made a day and not committed.
        let mut first = sql::connect(&db.pod_url).await;
        let txn = first.transaction().await.unwrap();
        let made: Option<i32> = txn.query_one("SELECT studio_add_sample_days(2)", &[]).await.unwrap().get(0);
        assert_eq!((made, add(&clients[0], 2).await), (Some(1), None), "the second finds the first at it");
        txn.commit().await.unwrap();
        assert_eq!(add(&clients[0], 2).await, Some(0));
        add_old(&db, 3..=12, false).await;
        let dropped = join_all(clients.iter().map(|client| drop_all(client, "1 day"))).await.into_iter().sum::<usize>();
        let rest = drop_all(&clients[0], "1 day").await;
        assert_eq!((dropped + rest, days(&db.client).await.len()), (11, 4), "yesterday, today, two more");
    })
    .await;
}

/// "A missing partition must never lose a sample."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_misses_the_partition_makes_it_and_loses_nothing() {
    timed(async {
        let db = Db::new().await;
        let pod = pod(&db, "a").await;
        stores(&db.client, "a", 1).await;
        let today = days(&db.client).await.remove(0);
        // Set aside, with the rows, so that all can be counted in the end.
        let detach =
            format!("ALTER TABLE studio_pod_heartbeats DETACH PARTITION {today}; ALTER TABLE {today} RENAME TO aside");
        db.client.batch_execute(&detach).await.unwrap();
        stores(&db.client, "a", 5).await;
        assert!(days(&db.client).await.contains(&today), "made again");
        let back = "WITH a AS (DELETE FROM aside RETURNING *) INSERT INTO studio_pod_heartbeats SELECT * FROM a";
        db.client.batch_execute(back).await.unwrap();
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

/// "Creating and dropping never block readers or writers for long."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_made_beside_open_readers_and_writers_and_a_drop_gives_up_behind_them() {
    timed(async {
        let db = Db::new().await;
        let as_pod = sql::connect(&db.pod_url).await;
        assert_eq!(add(&as_pod, 0).await, Some(3));
        add_old(&db, [40], false).await;
        let user = sql::connect(&db.url).await;
        let write = "BEGIN; INSERT INTO studio_pod_heartbeats (pod_id, incarnation, number, sampled_at, status, health, \
                     running_runs) VALUES ('x', gen_random_uuid(), 1, now(), 'active', 'nominal', 0); \
                     SELECT count(*) FROM studio_pod_heartbeats";
        user.batch_execute(write).await.unwrap();
        assert_eq!(add(&as_pod, 1).await, Some(1), "beside a transaction that reads and writes");
        assert_eq!(drop_all(&as_pod, "28 days").await, 0, "it does not wait for the transaction, and is no error");
        user.batch_execute("COMMIT").await.unwrap();
        assert_eq!(drop_all(&as_pod, "28 days").await, 1);
        // The table is being altered: the maker gives up as well, and is no error.
        user.batch_execute("BEGIN; LOCK TABLE studio_pod_heartbeats IN ACCESS EXCLUSIVE MODE").await.unwrap();
        assert_eq!(add(&as_pod, 2).await, None);
        user.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(add(&as_pod, 2).await, Some(1));
    })
    .await;
}

/// A clock of the server that was a year ahead, or is: as many days with samples stay as are to be kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_drops_no_more_than_what_is_beyond_the_days_to_keep() {
    timed(async {
        let db = Db::new().await;
        let as_pod = sql::connect(&db.pod_url).await;
        // The clock jumped forward by a year: all that is young by any other measure is a year old now. Today has a sample.
        add_old(&db, 365..365 + 29, true).await;
        add_old(&db, [0], true).await;
        assert_eq!(drop_all(&as_pod, "28 days").await, 1, "29 stay");
        assert_eq!(drop_all(&as_pod, "28 days").await, 0, "whatever the number of rounds");
        // It jumped back by a year: there are samples of days to come, and they stay.
        let db = Db::new().await;
        let as_pod = sql::connect(&db.pod_url).await;
        add_old(&db, (-400..-365).chain([0]), true).await;
        assert_eq!((drop_all(&as_pod, "1 hour").await, days(&db.client).await.len()), (0, 36));
        // Partitions without samples protect nothing, and go.
        add_old(&db, 60..70, false).await;
        assert_eq!(drop_all(&as_pod, "28 days").await, 10);
    })
    .await;
}

/// "One bad thing delays, and stops nothing." (L12)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_on_which_an_object_of_the_service_depends_stays_and_the_next_is_dropped() {
    timed(async {
        let db = Db::new().await;
        add_old(&db, [61, 60], false).await;
        let oldest = days(&db.client).await.remove(0);
        db.client.batch_execute(&format!("CREATE VIEW of_service AS SELECT * FROM {oldest}")).await.unwrap();
        let as_pod = sql::connect(&db.pod_url).await;
        let row = as_pod.query_one("SELECT dropped, kept FROM studio_drop_sample_day('28 days')", &[]).await.unwrap();
        let (dropped, kept): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        assert!(dropped.is_some_and(|name| !name.contains(&oldest)) && kept.is_some_and(|name| name.contains(&oldest)));
        assert_eq!(days(&db.client).await, [oldest]);
    })
    .await;
}

/// The owner of the tables may not create tables. Samples wait, and are dropped once the queue is full. The log says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_may_not_create_tables_is_told_what_to_grant_and_samples_wait() {
    timed(async {
        let db = Db::new().await;
        db.client.batch_execute(&format!("ALTER DATABASE {} OWNER TO CURRENT_USER", db.name)).await.unwrap();
        let pod = pod(&db, "no-create").await;
        let said = |event: &trace::Event| {
            event.get("event").is_some_and(|name| name == "sample_days_failed")
                && event.get("error").is_some_and(|e| e.contains("GRANT CREATE ON SCHEMA public TO podlock_owner"))
        };
        eventually(SOON, "the log says what to grant", || async {
            let events = trace::events("no-create");
            if events.iter().any(said) { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
        db.client.batch_execute("GRANT CREATE ON SCHEMA public TO podlock_owner").await.unwrap();
        stores(&db.client, "no-create", 10).await;
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

/// `keep_samples = 0` keeps for ever; and a pod that takes none still drops old ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_takes_no_samples_still_drops_old_ones() {
    timed(async {
        let db = Db::new().await;
        add_old(&db, [61, 60], false).await;
        let config = db.config("a").with(|c| c.sample_interval = Duration::ZERO);
        let pod = start(config).await;
        eventually(SOON, "the old days are dropped, and none is made", || async {
            let days = days(&db.client).await;
            if days.is_empty() { Ok(()) } else { Err(format!("{days:?}")) }
        })
        .await;
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
        add_old(&db, [61, 60], false).await;
        let _keeper = start(often(db.config("b")).with(|c| c.keep_samples = Duration::ZERO)).await;
        stores(&db.client, "b", 5).await;
        assert_eq!(days(&db.client).await.len(), 5, "two old ones, today, two more");
    })
    .await;
}
