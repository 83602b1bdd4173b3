//! A certificate authority of a test's own, and a server that takes TLS only.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use podlock::{Phase, Pod};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use crate::patience::SOON;
use crate::support::faults::{OwnServer, account_dir, give_to_account};
use crate::support::{Db, eventually};

const SERVER_SERIAL: u64 = 4711;

/// An authority that signs certificates into a directory that the server's account may read.
pub(crate) struct Authority {
    pub(crate) dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate: what a client names as `sslrootcert`.
    pub(crate) root: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = account_dir();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        let certificate = params.self_signed(&key).unwrap();
        let root = dir.path().join("root.crt");
        std::fs::write(&root, certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), root, dir }
    }

    /// Writes a certificate revocation list (CRL) of this authority. The list revokes the server's certificate if
    /// `of_the_server`, and otherwise nothing.
    pub(crate) fn revocations(&self, of_the_server: bool, expired: bool) -> PathBuf {
        let (then, now) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(SERVER_SERIAL),
            revocation_time: then,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: then,
            next_update: if expired { now } else { rcgen::date_time_ymd(4000, 1, 1) },
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: if of_the_server { vec![revoked] } else { Vec::new() },
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = self.dir.path().join(format!("list-{of_the_server}-{expired}.crl"));
        std::fs::write(&file, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        file
    }

    /// A certificate for `names` whose common name is `common`, and its key, which the owner of the directory alone may
    /// read.
    pub(crate) fn sign(&self, file: &str, common: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if file == "server" {
            params.serial_number = Some(SerialNumber::from(SERVER_SERIAL));
        }
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |ending: &str| self.dir.path().join(format!("{file}.{ending}"));
        std::fs::write(path("crt"), certificate.pem()).unwrap();
        write_private(&path("key"), &key.serialize_pem());
        (path("crt"), path("key"))
    }
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    give_to_account(path);
}

/// A server that takes, over TCP, TLS only; but for the role `plain`, which it takes without TLS only.
pub(crate) struct TlsServer {
    pub(crate) server: OwnServer,
    pub(crate) authority: Authority,
    /// Connected over the unix socket.
    pub(crate) db: Db,
}

impl TlsServer {
    /// With a certificate for `localhost`, and not for `127.0.0.1`.
    pub(crate) async fn start() -> Self {
        let server = OwnServer::start(&[]).await;
        let authority = Authority::new();
        let (certificate, key) = authority.sign("server", "localhost", &["localhost"]);
        let db = Db::over_socket(&server).await;
        let hba: String = db.client.scalar("SHOW hba_file", &[]).await;
        let rules = "local all all trust\n\
                     hostssl all cert_app 127.0.0.1/32 cert\n\
                     hostnossl all plain 127.0.0.1/32 scram-sha-256\n\
                     hostssl all app,postgres,changing 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(&hba, rules).unwrap();
        for (name, value) in [
            ("ssl_cert_file", certificate.display().to_string()),
            ("ssl_key_file", key.display().to_string()),
            ("ssl_ca_file", authority.root.display().to_string()),
            ("ssl", "on".to_owned()),
        ] {
            db.client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await.unwrap();
        }
        for role in ["app", "plain", "cert_app", "changing"] {
            let create = format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'first'");
            db.client.batch_execute(&create).await.unwrap();
        }
        db.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let tls_only = Self { server, authority, db };
        let plain = tls_only.url("app", "sslmode=disable");
        eventually(SOON, "the server refuses connections without TLS", || async {
            match tokio_postgres::connect(&plain, tokio_postgres::NoTls).await {
                Err(e) if e.as_db_error().is_some_and(|e| e.message().contains("no pg_hba.conf entry")) => Ok(()),
                other => Err(format!("{:?}", other.map(drop))),
            }
        })
        .await;
        tls_only
    }

    /// Where `role` connects to, with further words.
    pub(crate) fn url(&self, role: &str, words: &str) -> String {
        let port = self.server.port();
        format!(
            "host=localhost hostaddr=127.0.0.1 port={port} dbname={} user={role} password=first {words}",
            self.db.name
        )
    }

    /// As [`TlsServer::url`], trusting the authority.
    pub(crate) fn trusting(&self, role: &str, words: &str) -> String {
        self.url(role, &format!("sslrootcert={} {words}", self.authority.root.display()))
    }

    /// Whether each connection of `pod` is under TLS, by the server's word.
    pub(crate) async fn under_tls(&self, pod: &str) -> Vec<(String, bool)> {
        let sql = "SELECT a.application_name, s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
                   WHERE a.application_name LIKE 'podlock/' || $1 || '/%' GROUP BY 1, 2 ORDER BY 1";
        let rows = self.db.client.query(sql, &[&pod]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Ends every connection of `pod`, and waits until the pod is back.
    pub(crate) async fn end_all_of(&self, pod: &Pod) {
        let name = pod.status().pod_id.to_string();
        // The second argument has the server wait until each is gone, so that none of them is taken for a new one.
        let sql = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity \
                   WHERE application_name LIKE 'podlock/' || $1 || '/%'";
        self.db.client.query(sql, &[&name]).await.unwrap();
        self.db.client.armed(&name, SOON).await;
        // The server knows of the new sessions a moment before the pod knows that it is back.
        eventually(SOON, "the pod is back", || async {
            let phase = pod.status().phase;
            if phase == Phase::Active { Ok(()) } else { Err(phase.to_string()) }
        })
        .await;
    }
}
