//! Compares libpq and podlock on service files and password files: both must log in alike. libpq is `psql` here. A
//! listener asks for the password in clear text, so what psql sends shows what libpq read.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::ConnInfo;
use crate::pg::credentials::Environment;

/// Long enough for psql to begin on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many generated files of each kind are compared.
const GENERATED: usize = 150;

/// The data that a client logs in with.
#[derive(Debug, PartialEq, Eq, Default)]
struct Seen {
    user: String,
    database: String,
    options: String,
    application_name: String,
    /// `None`: the client had no password to send.
    password: Option<Vec<u8>>,
}

/// A port that records what clients send, and refuses all of them.
struct Listener {
    port: u16,
    seen: mpsc::Receiver<Seen>,
}

impl Listener {
    fn start() -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let (sender, seen) = mpsc::channel();
        // The thread ends with the process.
        std::thread::spawn(move || {
            for client in socket.incoming() {
                let Ok(client) = client else { return };
                if let Some(login) = record(client)
                    && sender.send(login).is_err()
                {
                    return;
                }
            }
        });
        Self { port, seen }
    }
}

fn record(mut client: TcpStream) -> Option<Seen> {
    client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut read = |length: usize| {
        let mut bytes = vec![0; length];
        client.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let length = u32::from_be_bytes(read(4)?.try_into().expect("four bytes"));
    let startup = read(length as usize - 4)?;
    let mut words = startup[4..].split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut seen = Seen::default();
    while let Some(name) = words.next().filter(|name| !name.is_empty()) {
        let value = words.next().unwrap_or_default();
        match name.as_str() {
            "user" => seen.user = value,
            "database" => seen.database = value,
            "options" => seen.options = value,
            "application_name" => seen.application_name = value,
            _ => {}
        }
    }
    // AuthenticationCleartextPassword.
    client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).ok()?;
    let mut head = [0; 5];
    if client.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let mut password = vec![0; length];
        client.read_exact(&mut password).ok()?;
        password.pop();
        seen.password = Some(password);
    }
    Some(seen)
}

/// One login by libpq. `None` if it refuses to connect at all.
fn by_libpq(listener: &Listener, text: &str, vars: &[(&str, &str)]) -> Option<Seen> {
    let mut psql = Command::new(psql());
    let path = std::env::var_os("PATH").unwrap_or_default();
    psql.args(["-X", "-w", "-d", text]).env_clear().env("PATH", path).envs(vars.iter().copied());
    let done = psql.stdin(Stdio::null()).output().expect("psql begins");
    assert!(!done.status.success(), "nobody is let in");
    // psql has ended, so all that it sent has arrived, or is on its way through the listener's thread.
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let connected = said.contains("connection to server at");
    connected.then(|| listener.seen.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("nothing was seen ({e}): {said}")))
}

/// The same login, as podlock would make it.
fn by_podlock(text: &str, vars: &[(&str, &str)]) -> Option<Seen> {
    let environment: Environment = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let info = ConnInfo::resolve(text, &environment).ok()?;
    let password = info.written_password(&info.targets[0]).expect("the file is readable");
    Some(Seen {
        user: info.user.clone(),
        database: info.dbname.clone(),
        options: info.options.clone().unwrap_or_default(),
        application_name: info.application_name.clone().unwrap_or_else(|| "psql".to_owned()),
        password: password.map(|p| p.expose_secret().to_vec()),
    })
}

/// The program itself. Debian's `psql` in the path is a script that names its own host if none is given.
fn psql() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin/psql")).filter(|program| program.exists());
    programs.max().unwrap_or_else(|| "psql".into())
}

/// True if there is no psql to compare with. Then it says so.
fn is_skipped() -> bool {
    let found = Command::new(psql()).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        eprintln!("skipped: psql is not installed (Debian: postgresql-client)");
    }
    !found
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    std::fs::write(&path, bytes).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    path.to_str().expect("text").to_owned()
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn of<'a>(random: &mut fastrand::Rng, choices: &[&'a [u8]]) -> &'a [u8] {
    choices[random.usize(..choices.len())]
}

fn compare_service(listener: &Listener, bytes: &[u8], service: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = write(directory.path(), "services", bytes);
    let home = directory.path().to_str().expect("text");
    let vars = [("PGSERVICEFILE", file.as_str()), ("HOME", home), ("PGSYSCONFDIR", home)];
    let text = format!(
        "service={} host=h hostaddr=127.0.0.1 port={} sslmode=disable gssencmode=disable",
        quoted(service),
        listener.port
    );
    let (libpq, podlock) = (by_libpq(listener, &text, &vars), by_podlock(&text, &vars));
    assert_eq!(podlock, libpq, "service {service:?} of {:?}", String::from_utf8_lossy(bytes));
}

#[test]
fn service_files_are_read_as_libpq_reads_them() {
    if is_skipped() {
        return;
    }
    let listener = Listener::start();
    let long = |length: usize| {
        let mut file = b"[s]\nuser=u\napplication_name=".to_vec();
        file.resize(file.len() + length - "application_name=".len() - 1, b'x');
        file.extend(b"\ndbname=d\n");
        file
    };
    let table: Vec<(Vec<u8>, &str)> = vec![
        (b"# caf\xe9\n[s]\nuser=u\n".into(), "s"),
        (b"[other]\nuser=\xff\n[s]\nuser=u\n".into(), "s"),
        (b"[s]\n# \xff\nuser=u\n[after]\n\xff\n".into(), "s"),
        (b"[s]\r\nuser=u\r\ndbname=d\r\n".into(), "s"),
        (b"[s]\nuser=u\nuser=v\ndbname=\ndbname=d\n".into(), "s"),
        (b"[s]\nuser=u\n[s]\ndbname=d\n".into(), "s"),
        (b"[s]\nuser = u\n".into(), "s"),
        (b"[s]\nuser= u\n".into(), "s"),
        (b" [s] \n\t user=u \t\n  # no\n".into(), "s"),
        (b"[s] # said of s\nuser=u\n".into(), "s"),
        (b"[s]x\nuser=u".into(), "s"),
        (b"[ s ]\nuser=u\n".into(), "s"),
        (b"[my db]\nuser=u\n".into(), "my db"),
        (b"[a]b]\nuser=u\n".into(), "a]b"),
        ("[grün]\nuser=ü\n".into(), "grün"),
        (b"\xef\xbb\xbf[s]\nuser=u\n".into(), "s"),
        (b"\xef\xbb\xbf# a mark\n[s]\nuser=u\n".into(), "s"),
        (b"[s]\nuser='u'\noptions=-c a=b\napplication_name=a b\n".into(), "s"),
        (b"[s]\nuser=u\npassword=p=q\n".into(), "s"),
        (b"[s]\nuser=u\npassword=\n".into(), "s"),
        (b"[s]\nuser=u\nnonsense\n".into(), "s"),
        (b"[s]\nuser=u\nhst=x\n".into(), "s"),
        (b"[s]\nuser=u\nservice=t\n".into(), "s"),
        (b"[s]\nuser=u\n=x\n".into(), "s"),
        (b"nonsense\n[s]\nuser=u\n[t]\nnonsense\n".into(), "s"),
        (b"[s]\x0buser=u\n[s]\nuser=v\x0c\n".into(), "s"),
        (b"[s]".into(), "s"),
        (b"".into(), "s"),
        (long(1022), "s"),
        (long(1023), "s"),
        (long(1024), "s"),
    ];
    for (file, service) in &table {
        compare_service(&listener, file, service);
    }
    let random = &mut fastrand::Rng::new();
    let seed = random.get_seed();
    eprintln!("seed {seed}");
    let lines: [&[u8]; 30] = [
        b"[s]",
        b"[s]",
        b"[s]",
        b"[s]x",
        b"[ s]",
        b" [s] ",
        b"[other]",
        b"[s",
        b"# x",
        b"user=u1",
        b"user = u2",
        b" user=u3 ",
        b"user=",
        b"dbname=d1",
        b"dbname=",
        b"dbname=d2 # x",
        b"application_name=a b",
        b"options=-c a=b",
        b"",
        b"\t",
        b"#user=x",
        b"password=p1",
        b"password=",
        b"user=u4\x0b",
        b"dbname='d'",
        b"dbname=a=b",
        b"[]",
        b"nonsense",
        b"hst=x",
        b"application_name=b",
    ];
    for _ in 0..GENERATED {
        let mut file =
            of(random, &[b"", b"", b"", b"\xef\xbb\xbf", b"[s]\n", b"# \xff\n", b"[t]\nuser=\xff\n"]).to_vec();
        for _ in 0..random.usize(..8) {
            file.extend(of(random, &lines));
            file.extend(of(random, &[b"\n", b"\n", b"\n", b"\r\n", b" \n", b"\r"]));
        }
        compare_service(&listener, &file, "s");
    }
}

#[test]
fn password_files_are_read_as_libpq_reads_them() {
    if is_skipped() {
        return;
    }
    let listener = Listener::start();
    let port = listener.port;
    let compare = |bytes: &[u8], host: &str, dbname: &str, user: &str| {
        let directory = tempfile::tempdir().expect("a directory");
        let file = write(directory.path(), "passwords", bytes);
        let vars = [("PGPASSFILE", file.as_str()), ("HOME", directory.path().to_str().expect("text"))];
        let host_word = if host.is_empty() { String::new() } else { format!("host={}", quoted(host)) };
        let text = format!(
            "{host_word} hostaddr=127.0.0.1 port={port} dbname={} user={} sslmode=disable gssencmode=disable",
            quoted(dbname),
            quoted(user)
        );
        let (libpq, podlock) = (by_libpq(&listener, &text, &vars), by_podlock(&text, &vars));
        assert_eq!(podlock, libpq, "{text} of {:?}", String::from_utf8_lossy(bytes));
    };
    let table: [(&[u8], &str, &str, &str); 25] = [
        (b"# caf\xe9\n*:*:*:*:p\n", "h", "d", "u"),
        (b"*:*:*:*:p\xff\xfe\n", "h", "d", "u"),
        (b"*:*:*:*:p\r\n", "h", "d", "u"),
        (b"*:*:*:*:p\r\r\n", "h", "d", "u"),
        (b"*:*:*:*:p\rq\n", "h", "d", "u"),
        (b"*:*:*:*:p", "h", "d", "u"),
        (b"\\*:*:*:*:star\n*:*:*:*:any\n", "h", "d", "u"),
        (b"\\*:*:*:*:star\n*:*:*:*:any\n", "*", "d", "u"),
        (b"**:*:*:*:two\n*:*:*:*:any\n", "**", "d", "u"),
        (b"*:*:\\*:*:star\n*:*:*:*:any\n", "h", "*", "u"),
        (b"a\\:b:*:*:*:colon\n", "a:b", "d", "u"),
        (b"a\\\\b:*:*:*:slash\n", "a\\b", "d", "u"),
        (b"\\h:*:\\d:*:escaped\n", "h", "d", "u"),
        (b"*:*:*:*:p\\:q\\\\r\\s\n", "h", "d", "u"),
        (b"*:*:*:*:p\\\n", "h", "d", "u"),
        (b"*:*:*:*:p:more\n", "h", "d", "u"),
        (b"*:*:*:*:\n*:*:*:*:second\n", "h", "d", "u"),
        (b"*:*:*:*: p \n", "h", "d", "u"),
        (b" # no\n #*:*:*:*:no\n*:*:*:*:p\n", "h", "d", "u"),
        (b"\xef\xbb\xbf*:*:*:*:mark\n*:*:*:*:p\n", "h", "d", "u"),
        (b"h:*:*\nh:*:*:u\nh:*:*:u:p\n", "h", "d", "u"),
        (b"127.0.0.1:*:*:*:address\n*:*:*:*:any\n", "", "d", "u"),
        (b"127.0.0.1:*:*:*:address\n*:*:*:*:any\n", "h", "d", "u"),
        (b"::1:*:*:*:bare\n\\:\\:1:*:*:*:escaped\n", "::1", "d", "u"),
        (b"\n\n\r\nh:*:*:*:p\n", "h", "d", "u"),
    ];
    for (file, host, dbname, user) in table {
        compare(file, host, dbname, user);
    }
    let mut long = b"h:*:*:*:".to_vec();
    long.resize(5000, b'x');
    compare(&long, "h", "d", "u");
    let random = &mut fastrand::Rng::new();
    let seed = random.get_seed();
    eprintln!("seed {seed}");
    let (this, padded) = (port.to_string(), format!("0{port}"));
    let ports = [b"*".as_slice(), this.as_bytes(), padded.as_bytes(), b"1", b"\\*"];
    for _ in 0..GENERATED {
        let mut file = Vec::new();
        for _ in 0..random.usize(1..6) {
            file.extend(of(random, &[b"", b"", b"", b"", b"#", b" "]));
            let hosts: [&[u8]; 9] = [b"*", b"h", b"\\*", b"\\h", b"h\\", b"a\\:b", b"a:b", b"", b"h*"];
            let passwords: [&[u8]; 9] = [b"p", b"p\\:q", b"p\\\\q", b"p:q", b"", b"p\\", b"p\xff", b" p ", b"*"];
            let fields = [
                of(random, &hosts),
                of(random, &ports),
                of(random, &[b"*", b"d", b"D", b"", b"\\*", b"\\d"]),
                of(random, &[b"*", b"u", b"\\u", b"*u", b"u\\"]),
                of(random, &passwords),
            ];
            let count = if random.u8(..10) == 0 { random.usize(1..5) } else { 5 };
            file.extend(fields[..count].join(&b':'));
            file.extend(of(random, &[b"\n", b"\n", b"\n", b"\r\n", b"\r\r\n", b"\r", b""]));
        }
        let host = ["h", "*", "a:b", "h\\", "h*", ""][random.usize(..6)];
        compare(&file, host, ["d", "*", "D"][random.usize(..3)], ["u", "*u", "u\\"][random.usize(..3)]);
    }
}
