//! Samples that come so late that their hours have been rolled up.

use podlock::{Config, Operator};
use serde_json::json;
use uuid::Uuid;

use crate::history::plans::rendered;
use crate::support::{Db, timed};

/// "A database away": a pod keeps samples for hours, and the hourly rows count them all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_that_come_late_reach_the_hourly_rows() {
    timed(async {
        let db = Db::new().await;
        let operator = Operator::connect(&Config::new(&db.pod_url)).await.unwrap();
        operator.roll_up().await.unwrap();
        db.client.batch_execute("SELECT studio_add_sample_days(2)").await.unwrap();
        let sql = rendered("write_samples");
        let (own, mut number) = (Uuid::from_u128(7), 0);
        let mut write = async |age: f64, owed: Option<f64>| -> bool {
            number += 1;
            let samples =
                json!([{"number": number, "age": age, "status": "active", "health": "nominal", "running_runs": 0}]);
            let row = db.client.query_one(&sql, &[&own, &"late", &i64::from(number), &samples, &owed]).await.unwrap();
            row.get("owes")
        };
        let hours = async || -> Vec<i64> {
            let sql = "SELECT extract(epoch FROM date_trunc('hour', now()) - hour)::int8 / 3600 FROM \
                       studio_pod_heartbeats_hourly ORDER BY hour";
            db.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
        };
        let hour = 3600.0;
        assert!(!write(5.0 * hour, None).await);
        operator.roll_up().await.unwrap();
        assert_eq!(hours().await.len(), 1, "the hour of five hours ago");
        // While a roll-up is at work, it would write over it: the hour is owed, and a later write gives it back.
        let upto = "SELECT upto::text FROM studio_roll_ups WHERE what = 'hourly'";
        let before: String = db.client.scalar(upto, &[]).await;
        db.client.batch_execute("UPDATE studio_roll_ups SET token = gen_random_uuid()").await.unwrap();
        assert!(write(30.0 * hour, None).await);
        assert_eq!(db.client.scalar::<String>(upto, &[]).await, before);
        db.client.batch_execute("UPDATE studio_roll_ups SET token = NULL").await.unwrap();
        assert!(!write(0.0, None).await, "a sample of now owes nothing");
        assert_eq!(db.client.scalar::<String>(upto, &[]).await, before);
        assert!(!write(0.0, Some(30.0 * hour)).await);
        operator.roll_up().await.unwrap();
        assert_eq!(hours().await.len(), 2, "{:?}", hours().await);
    })
    .await;
}
