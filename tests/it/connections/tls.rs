//! One source of TLS settings for all four kinds of connection.

use std::path::Path;

use podlock::operator::PodFilter;
use podlock::{Config, ErrorKind, NewRun, Operator, migrate};
use serde_json::json;

use super::authority::{Authority, TlsServer};
use crate::examples::example;
use crate::inherited::clean;
use crate::patience::{CONNECT, SOON};
use crate::support::faults::refused;
use crate::support::{eventually, lease, start, timed};

fn config(url: &str) -> Config {
    Config::new(url).name("a").lease(lease()).with(|c| c.connect_timeout = Some(CONNECT))
}

/// The degrees of `sslmode` are only worth something if none of the four kinds of connection, nor the operator's and
/// the migration's, goes another way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_connection_is_under_tls_on_a_server_that_takes_nothing_else() {
    timed(async {
        let tls = TlsServer::start().await;
        let verified = tls.trusting("app", "sslmode=verify-full channel_binding=require");
        assert_eq!(
            migrate::up(&config(&verified)).await.expect("the migration's connection").len(),
            migrate_versions()
        );
        let pod = start(config(&verified)).await;
        tls.db.client.armed("a", SOON).await;
        let run = pod.start(NewRun::new("echo").input(json!(1))).await.expect("the pool's connection");
        tls.db.client.run_in_state(run.run_id, "succeeded", SOON).await;
        let all = ["control", "liveness", "pool", "watch"].map(|role| (format!("podlock/a/{role}"), true));
        assert_eq!(tls.under_tls("a").await, all);
        let operator = Operator::connect(&config(&verified)).await.expect("the operator's connection");
        assert_eq!(operator.pods(PodFilter::default()).await.expect("read").len(), 1);
        // And again, when each has been lost.
        tls.end_all_of(&pod).await;
        pod.start(NewRun::new("echo").input(json!(2))).await.expect("the pool's next connection");
        assert_eq!(tls.under_tls("a").await, all);
        pod.shutdown(SOON).await.unwrap();
        // Without TLS the server takes none of them.
        let words = ["no pg_hba.conf entry"];
        refused(config(&tls.url("app", "sslmode=disable"))).await.is(ErrorKind::AuthFailed, &words, lease());
    })
    .await;
}

/// A service's own connection is as safe as a pod's: `podlock::connect`, and the example that people copy. With
/// `tokio_postgres::NoTls` this server would take neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_connects_as_its_pod_does() {
    timed(async {
        let tls = TlsServer::start().await;
        let verified = tls.trusting("app", "sslmode=verify-full channel_binding=require");
        let db = podlock::connect(&config(&verified)).await.expect("the service's connection");
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert!(db.query_one(sql, &[]).await.unwrap().get::<_, bool>(0), "without TLS");
        drop(db);
        tls.gone("app").await;
        let stranger = Authority::new();
        for (words, kind, said) in [
            (format!("sslmode=verify-full sslrootcert={}", stranger.root.display()), ErrorKind::Tls, "sslrootcert"),
            ("sslmode=disable".to_owned(), ErrorKind::AuthFailed, "no pg_hba.conf entry"),
            ("sslmode=certainly".to_owned(), ErrorKind::Config, "sslmode"),
        ] {
            let refused = podlock::connect(&config(&tls.url("app", &words))).await;
            let error = refused.map(drop).expect_err(&words);
            assert!(error.kind() == kind && error.to_string().contains(said), "{words}: {error:?}");
        }
        migrate::up(&config(&verified)).await.unwrap();
        let mut look = tokio::process::Command::new(example("own_table").await);
        clean(look.as_std_mut()).arg("t-1").env("DATABASE_URL", &verified).env("POD_NAME", "a");
        let done = look.stdin(std::process::Stdio::null()).output().await.unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        // It has made its table, and looked into it.
        assert!(!done.status.success() && said.contains("no such thread"), "{said}");
        assert_eq!(tls.db.client.scalar::<i64>("SELECT count(*) FROM threads", &[]).await, 0);
    })
    .await;
}

fn migrate_versions() -> usize {
    std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sslmode_trusts_as_much_as_libpq_does_and_no_more() {
    timed(async {
        let tls = TlsServer::start().await;
        let stranger = Authority::new();
        let root = |authority: &Authority| format!("sslrootcert={}", authority.root.display());
        let (ours, strange) = (root(&tls.authority), root(&stranger));
        let crl =
            |of_the_server, expired| format!("sslcrl={}", tls.authority.revocations(of_the_server, expired).display());
        let by_address = "host=127.0.0.1 hostaddr=''";
        let accepted = [
            ("app", "sslmode=allow".to_owned(), true),
            ("app", "sslmode=prefer".to_owned(), true),
            ("app", String::new(), true),
            ("app", "sslmode=require".to_owned(), true),
            ("app", format!("sslmode=verify-ca {ours} {by_address}"), true),
            ("app", format!("sslmode=verify-full {ours}"), true),
            ("app", format!("sslmode=verify-full {ours} ssl_min_protocol_version=TLSv1.3 sslsni=0"), true),
            ("app", format!("sslmode=verify-full {ours} ssl_max_protocol_version=TLSv1.2"), true),
            ("app", format!("sslmode=verify-full {ours} {}", crl(false, false)), true),
            ("plain", "sslmode=prefer".to_owned(), false),
            ("plain", "sslmode=allow".to_owned(), false),
            ("plain", "sslmode=disable".to_owned(), false),
        ];
        for (role, words, under_tls) in accepted {
            let config = config(&tls.url(role, &words));
            migrate::up(&config).await.unwrap_or_else(|e| panic!("{role} {words}: {e}"));
            let operator = Operator::connect(&config).await.unwrap_or_else(|e| panic!("{role} {words}: {e}"));
            let sql =
                "SELECT bool_and(s.ssl) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.usename = $1";
            assert_eq!(tls.db.client.scalar::<Option<bool>>(sql, &[&role]).await, Some(under_tls), "{role} {words}");
            drop(operator);
            tls.gone(role).await;
        }
        for (role, words, kind, said) in [
            (
                "app",
                format!("sslmode=verify-full {ours} {by_address}"),
                ErrorKind::Tls,
                "a name that the certificate is made out to",
            ),
            ("app", format!("sslmode=verify-full {ours} {}", crl(true, false)), ErrorKind::Tls, "was not revoked"),
            ("app", format!("sslmode=verify-ca {ours} {}", crl(false, true)), ErrorKind::Tls, "renew the list"),
            ("app", format!("sslmode=verify-full {strange}"), ErrorKind::Tls, "sslrootcert"),
            ("app", format!("sslmode=verify-ca {strange}"), ErrorKind::Tls, "sslrootcert"),
            // As libpq: a root that is there is used, under require as well.
            ("app", format!("sslmode=require {strange}"), ErrorKind::Tls, "sslrootcert"),
            ("app", "sslrootcert=system".to_owned(), ErrorKind::Tls, "sslrootcert"),
            ("plain", "sslmode=require".to_owned(), ErrorKind::AuthFailed, "no pg_hba.conf entry"),
            ("app", "sslmode=require sslnegotiation=direct".to_owned(), ErrorKind::SessionLost, "17"),
            (
                "app",
                "sslmode=verify-ca sslrootcert=/nonexistent/root.crt".to_owned(),
                ErrorKind::Config,
                "/nonexistent/root.crt",
            ),
        ] {
            if words.contains("direct")
                && tls.db.client.scalar::<String>("SHOW server_version_num", &[]).await.as_str() >= "170000"
            {
                continue;
            }
            refused(config(&tls.url(role, &words))).await.is(kind, &[said], lease());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_logs_in_and_a_renewed_one_is_read_anew() {
    timed(async {
        let tls = TlsServer::start().await;
        let own = tempfile::tempdir().unwrap();
        let (certificate, key) = (own.path().join("app.crt"), own.path().join("app.key"));
        let renew = |common: &str| {
            let (new_certificate, new_key) = tls.authority.sign("client", common, &[]);
            std::fs::copy(new_certificate, &certificate).unwrap();
            std::fs::copy(new_key, &key).unwrap();
        };
        let words = format!("sslmode=verify-full sslcert={} sslkey={}", certificate.display(), key.display());
        let config = config(&tls.trusting("cert_app", &words));
        renew("cert_app");
        let pod = start(config.clone()).await;
        tls.db.client.armed("a", SOON).await;
        // A certificate of somebody else: the server lets nobody back in with it, and what stands goes on.
        renew("somebody");
        refused(config.clone().name("b")).await.is(
            ErrorKind::AuthFailed,
            &["certificate authentication failed"],
            lease(),
        );
        assert!(pod.status().attached);
        renew("cert_app");
        tls.end_all_of(&pod).await;
        pod.shutdown(SOON).await.unwrap();
        // A key that others may read is not used.
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        refused(config).await.is(ErrorKind::Config, &["sslkey", "chmod 0600"], lease());
    })
    .await;
}

impl TlsServer {
    /// Waits until `role` has no connection.
    async fn gone(&self, role: &str) {
        eventually(SOON, &format!("{role} has no connection"), || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
            let left = self.db.client.scalar::<i64>(sql, &[&role]).await;
            if left == 0 { Ok(()) } else { Err(format!("{left}")) }
        })
        .await;
    }
}
