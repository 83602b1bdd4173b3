use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use secrecy::ExposeSecret;

use super::*;

fn environment(vars: &[(&str, &str)]) -> Environment {
    vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn resolve(text: &str, vars: &[(&str, &str)]) -> Result<ConnInfo> {
    ConnInfo::resolve(text, &environment(vars))
}

fn read(text: &str) -> ConnInfo {
    resolve(text, &[]).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn shown(info: &ConnInfo) -> Vec<String> {
    info.targets.iter().map(ToString::to_string).collect()
}

fn password(info: &ConnInfo) -> Option<String> {
    info.written_password(&info.targets[0])
        .expect("readable")
        .map(|p| String::from_utf8(p.expose_secret().to_vec()).expect("text"))
}

fn refusal(text: &str, vars: &[(&str, &str)]) -> String {
    let Err(error) = resolve(text, vars) else { panic!("{text} was accepted") };
    assert_eq!(error.kind(), ErrorKind::Config, "{text}: {error}");
    format!("{error} {error:?}")
}

/// Makes a file for a test, and the directory that it is in.
fn file(name: &str, text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
    (directory, path)
}

#[test]
fn urls_are_read_as_libpq_reads_them() {
    let info = read("postgres://u%40x:p%2Fw%3A@a:5433,b,[::1]:5434/d%20b?application_name=app&connect_timeout=3");
    assert_eq!(shown(&info), ["a:5433", "b:5432", "::1:5434"]);
    assert_eq!((info.user.as_str(), info.dbname.as_str()), ("u@x", "d b"));
    assert_eq!(password(&info).as_deref(), Some("p/w:"));
    assert_eq!(info.application_name.as_deref(), Some("app"));
    assert_eq!(info.connect_timeout, Some(Duration::from_secs(3)));
    let unix = read("postgresql://u@%2Frun%2Fpg:6000/d");
    assert_eq!(unix.targets, [Target::Unix { directory: "/run/pg".into(), port: 6000 }]);
    assert_eq!(read("postgres://u@h").dbname, "u", "the database's default is the user's name");
    let words = read("postgres:///d?host=/x&user=u&password=p&port=1");
    assert_eq!((shown(&words), password(&words).as_deref()), (vec!["/x/.s.PGSQL.1".to_owned()], Some("p")));
    assert_eq!(read("postgres://h/d?ssl=true").tls.mode, SslMode::Require);
    assert_eq!(password(&read("postgres://u:a?b=c#d@h/d")).as_deref(), Some("a?b=c#d"), "all up to the @");
}

#[test]
fn key_value_strings_are_read_as_libpq_reads_them() {
    let info =
        read(r"host = h,i hostaddr=10.0.0.1,10.0.0.2 port=1,2 user='o\'b' password=a\ b dbname='' options='-c a=b'");
    assert_eq!(shown(&info), ["h (10.0.0.1):1", "i (10.0.0.2):2"]);
    assert_eq!((info.user.as_str(), info.dbname.as_str()), ("o'b", "o'b"));
    assert_eq!(password(&info).as_deref(), Some("a b"));
    assert_eq!(info.options.as_deref(), Some("-c a=b"));
    assert_eq!(shown(&read("host=a,b port=7")), ["a:7", "b:7"], "one port is for all hosts");
    let addresses = read("hostaddr=10.0.0.9 user=u");
    assert_eq!(
        (shown(&addresses), addresses.targets[0].host().as_str()),
        (vec!["10.0.0.9:5432".to_owned()], "10.0.0.9")
    );
}

#[test]
fn a_unix_socket_is_the_default_host() {
    let Target::Unix { directory, port: 5555 } = &read("dbname=d port=5555").targets[0] else { panic!("not a socket") };
    assert!(SOCKET_DIRECTORIES.iter().any(|d| directory == Path::new(d)), "{directory:?}");
}

#[test]
fn no_part_of_a_bad_string_is_repeated() {
    for text in [
        "postgres://u:hunter2@h:notaport/d",
        "postgres://u:hunter2%@h/d",
        "postgres://u:hunter2@[::1/d",
        "host=h password=hunter2 hunter3 user=u",
        "host=h password=hunter2 hunter3=x user=u",
        "host=h password='hunter2",
        "hunter2",
        "postgres://u:hunter2@/d?sslmode=hunter3",
        "postgres://u:a?hunter=b@h/d?c=d&hunter",
        "postgres://u:p@hunter@h/d",
        "postgres://u:a?hunter=b",
        "host=h password=a hunter=b",
        "host=h connect_timeout=hunter2",
    ] {
        let shown = refusal(text, &[]);
        assert!(!shown.contains("hunter"), "{shown}");
    }
    assert!(refusal("", &[]).contains("missing or empty"));
}

#[test]
fn a_word_that_is_none_of_libpqs_is_an_error_that_names_it() {
    for (text, word) in [
        ("host=h sslmod=require", "\"sslmod\""),
        ("postgres://h/d?pool_size=3", "\"pool_size\""),
        ("postgres://u:p@h/d?pool_size=3", "\"pool_size\""),
        ("host=h keepalives_retries=3", "libpq's word is keepalives_count"),
    ] {
        assert!(refusal(text, &[]).contains(word), "{}", refusal(text, &[]));
    }
}

#[test]
fn a_word_that_cannot_be_honoured_is_refused_and_never_ignored() {
    for (text, vars, word) in [
        ("host=h sslpassword=x", &[][..], "sslpassword"),
        ("host=h require_auth=scram-sha-256", &[], "require_auth"),
        ("host=h", &[("PGREQUIREPEER", "postgres")], "PGREQUIREPEER"),
        ("host=h gssencmode=require", &[], "gssencmode"),
        ("host=h client_encoding=LATIN1", &[], "client_encoding"),
        ("host=h target_session_attrs=standby", &[], "target_session_attrs"),
        ("host=h", &[("PGTARGETSESSIONATTRS", "read-only")], "target_session_attrs"),
        ("host=@abstract", &[], "abstract"),
        ("host=a,b port=1,2,3", &[], "3 ports"),
        ("host=a,b hostaddr=10.0.0.1", &[], "1 host addresses"),
        ("host=h port=0", &[], "port"),
        ("host=h sslmode=prefer sslrootcert=system", &[], "sslrootcert=system"),
        ("host=h sslnegotiation=direct", &[], "sslnegotiation=direct"),
        ("host=h sslmode=verify-full", &[], "nobody to trust"),
        ("host=h sslcert=/c sslmode=require", &[], "sslkey"),
        ("host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", &[], "ssl_max_protocol_version"),
        ("host=h", &[("PGSSLMODE", "yes")], "PGSSLMODE"),
    ] {
        assert!(refusal(text, vars).contains(word), "{text}: {}", refusal(text, vars));
    }
    assert_eq!(read("host=h gssencmode=prefer client_encoding=UTF8 sslmode=disable").tls.mode, SslMode::Disable);
}

#[test]
fn every_word_of_libpq_is_known() {
    // The words of PQconndefaults in libpq 18, without those of debug builds.
    let of_libpq = "service user password passfile channel_binding connect_timeout dbname host hostaddr port \
        client_encoding options application_name fallback_application_name keepalives keepalives_idle \
        keepalives_interval keepalives_count tcp_user_timeout sslmode sslnegotiation sslcompression sslcert sslkey \
        sslcertmode sslpassword sslrootcert sslcrl sslcrldir sslsni requirepeer require_auth min_protocol_version \
        max_protocol_version ssl_min_protocol_version ssl_max_protocol_version gssencmode krbsrvname gsslib \
        gssdelegation replication target_session_attrs load_balance_hosts scram_client_key scram_server_key \
        oauth_issuer oauth_client_id oauth_client_secret oauth_scope sslkeylogfile servicefile";
    for word in of_libpq.split_whitespace() {
        if let Err(e) = resolve(&format!("host=h {word}=''"), &[]) {
            assert!(!e.to_string().contains("none of libpq's words"), "{word}: {e}");
        }
    }
}

#[test]
fn what_the_string_leaves_out_comes_from_the_service_then_the_environment_then_the_defaults() {
    let (_directory, services) = file(
        "services",
        "# ours\n[other]\nhost=other\n[app]\nhost=from-service\nuser=service-user\n[last]\nport=1\n",
        0o644,
    );
    let services = services.to_str().expect("text");
    let vars = [
        ("PGSERVICEFILE", services),
        ("PGHOST", "from-env"),
        ("PGUSER", "env-user"),
        ("PGPASSWORD", "env-password"),
        ("PGPORT", "7777"),
        ("PGCONNECT_TIMEOUT", "9"),
        ("PGSSLMODE", "disable"),
        ("PGTZ", "Europe/Berlin"),
    ];
    let info = resolve("service=app dbname=d", &vars).expect("accepted");
    assert_eq!(shown(&info), ["from-service:7777"]);
    assert_eq!((info.user.as_str(), info.dbname.as_str()), ("service-user", "d"));
    assert_eq!(password(&info).as_deref(), Some("env-password"));
    assert_eq!((info.connect_timeout, info.tls.mode), (Some(Duration::from_secs(9)), SslMode::Disable));
    assert_eq!(info.options.as_deref(), Some("-c TimeZone=Europe/Berlin"));
    let info = resolve("postgres://u@h:1/d", &vars).expect("accepted");
    assert_eq!((shown(&info), info.user.as_str()), (vec!["h:1".to_owned()], "u"), "the string wins");
    let info = resolve("", &vars).expect("PGHOST is enough");
    assert_eq!(shown(&info), ["from-env:7777"]);
    assert!(refusal("service=nowhere", &vars).contains("\"nowhere\""));
    let (_directory, bad) = file("services", "[app]\nhst=x\n", 0o644);
    let vars = [("PGSERVICEFILE", bad.to_str().expect("text"))];
    assert!(refusal("service=app", &vars).contains("\"hst\""));
    assert_eq!(resolve("host=h", &[("PGREQUIRESSL", "1")]).expect("accepted").tls.mode, SslMode::Require);
}

#[test]
fn a_password_file_is_read_anew_and_only_if_nobody_else_can() {
    let (_directory, path) =
        file("pgpass", "#h:1:d:u:no\nx:*:*:*:other\nh:5432:d:o\\:u:p\\:w:no part\n*:*:*:*:any\n", 0o600);
    let passfile = path.to_str().expect("text");
    let of = |text: &str| resolve(text, &[("PGPASSFILE", passfile)]).expect("accepted");
    assert_eq!(password(&of("host=h dbname=d user=o:u")).as_deref(), Some("p:w"));
    assert_eq!(password(&of("host=h dbname=d user=u")).as_deref(), Some("any"));
    assert_eq!(password(&of("host=x dbname=d user=u")).as_deref(), Some("other"));
    assert_eq!(password(&of("host=x dbname=d user=u password=given")).as_deref(), Some("given"));
    let info = of("host=x dbname=d user=u");
    std::fs::write(&path, "x:5432:d:u:changed\n").expect("written");
    assert_eq!(password(&info).as_deref(), Some("changed"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("mode");
    let error = info.written_password(&info.targets[0]).expect_err("refused").to_string();
    assert!(error.contains("chmod 0600") && error.contains("0640") && !error.contains("changed"), "{error}");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(password(&info), None);
    // A socket in the usual place is looked up as localhost, as libpq does.
    std::fs::write(&path, "localhost:5432:d:u:local\n").expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    assert_eq!(password(&of("host=/tmp dbname=d user=u")).as_deref(), Some("local"));
}

#[test]
fn times_have_libpqs_units() {
    let words = read("host=h tcp_user_timeout=2500 keepalives_idle=7 keepalives_interval=2 keepalives_count=4").socket;
    let (idle, interval) = (Some(Duration::from_secs(7)), Some(Duration::from_secs(2)));
    let user_timeout = Some(Some(Duration::from_millis(2500)));
    assert_eq!(words, SocketWords { off: false, idle, interval, count: Some(4), user_timeout });
    let words = read("host=h tcp_user_timeout=0 keepalives=0 keepalives_idle=0").socket;
    assert_eq!(words, SocketWords { off: true, user_timeout: Some(None), ..SocketWords::default() });
    for limitless in ["0", "-1"] {
        assert_eq!(read(&format!("host=h connect_timeout={limitless}")).connect_timeout, None);
    }
}

#[test]
fn sslmodes_are_resolved_as_libpq_resolves_them() {
    let (home, root) = file("root.crt", "", 0o644);
    let root = root.to_str().expect("text");
    assert_eq!(read("host=h").tls.mode, SslMode::Prefer);
    assert_eq!(read("host=h sslrootcert=system").tls.mode, SslMode::VerifyFull);
    assert_eq!(read("host=h sslmode=require").tls.roots, None);
    let with_root = read(&format!("host=h sslmode=require sslrootcert={root}")).tls;
    assert_eq!(
        (with_root.mode, with_root.roots),
        (SslMode::VerifyCa, Some(Roots::File(root.into()))),
        "a root is used"
    );
    // The files in the home directory are the defaults.
    let usual = home.path().join(".postgresql");
    std::fs::create_dir(&usual).expect("made");
    for name in ["root.crt", "root.crl", "postgresql.crt", "postgresql.key"] {
        std::fs::write(usual.join(name), "").expect("written");
    }
    let tls =
        resolve("host=h sslmode=verify-full", &[("HOME", home.path().to_str().expect("text"))]).expect("accepted").tls;
    assert_eq!(tls.roots, Some(Roots::File(usual.join("root.crt"))));
    assert_eq!(tls.revocations, Some(usual.join("root.crl")));
    assert_eq!(tls.identity, Some((usual.join("postgresql.crt"), usual.join("postgresql.key"))));
    let none = format!("host=h sslcertmode=disable sslcert={root} sslkey={root}");
    assert_eq!(read(&none).tls.identity, None);
    assert_eq!(read("host=h ssl_min_protocol_version=TLSv1.3").tls.versions, (false, true));
    assert_eq!(read("host=h ssl_max_protocol_version=TLSv1.2 sslsni=0").tls.versions, (true, false));
}

#[test]
fn the_description_has_hosts_and_no_secrets() {
    assert_eq!(read("postgres://u:hunter2@a:5433,b:5434/d").describe(), "a:5433, b:5434 (database d)");
}

/// libpq connects in each of these cases.
#[test]
fn the_usual_files_that_nobody_named_are_passed_over_where_they_cannot_be_used() {
    let (home, path) = file(".pgpass", "*:*:*:*:secret\n", 0o644);
    let at = |home: &str| resolve("host=h", &[("HOME", home)]).expect("accepted");
    assert_eq!(password(&at(home.path().to_str().expect("text"))), None, "others may read it");
    assert_eq!(password(&at("/dev/null")), None);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    assert_eq!(password(&at(home.path().to_str().expect("text"))).as_deref(), Some("secret"));
    let service = resolve("service=x", &[("HOME", "/dev/null")]).err().expect("refused").to_string();
    assert!(service.contains("no service file has"), "{service}");
}

#[test]
fn words_about_tls_do_not_matter_where_none_is_spoken() {
    assert_eq!(read("host=/run/pg sslmode=verify-full").tls.identity, None);
    assert_eq!(read("host=h sslmode=disable sslcert=/nowhere").tls.identity, None);
    assert!(refusal("host=/run/pg,h sslmode=verify-full", &[]).contains("nobody to trust"));
}
