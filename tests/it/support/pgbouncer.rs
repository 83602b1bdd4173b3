//! Debian's `pgbouncer` on a port of its own, and a relay that cuts connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use podlock::throwaway::Server;

use super::eventually;
use super::faults::{Daemon, account_dir, free_port, give_to_account};
use super::proxy::SSL_REQUEST;

/// A running pgbouncer. It ends when this is dropped.
pub(crate) struct PgBouncer {
    pub(crate) port: u16,
    url: String,
    _daemon: Daemon,
    _dir: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one in front of `server`. `databases`: name here, and options such as `dbname=x pool_mode=session`.
    /// Where the system has no pgbouncer, the test fails: it would show nothing.
    pub(crate) async fn start(server: &Server, databases: &[(&str, &str)]) -> Self {
        let binary = ["/usr/sbin/pgbouncer", "/usr/local/bin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .expect(
                "no pgbouncer on this system: sh scripts/ensure-daemon.sh pgbouncer pgbouncer, or apt-get install \
                 pgbouncer",
            );
        let dir = account_dir();
        let port = free_port();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            give_to_account(&path);
            path.display().to_string()
        };
        let users = write("users", format!("\"{}\" \"{}\"\n", server.user(), server.password()));
        let lines: String = databases
            .iter()
            .map(|(name, options)| format!("{name} = host=127.0.0.1 port={} {options}\n", server.port()))
            .collect();
        let log = dir.path().join("log");
        let ini = write(
            "ini",
            format!(
                "[databases]\n{lines}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = scram-sha-256\nauth_file = {users}\nlogfile = {}\nmax_client_conn = 500\n\
                 default_pool_size = 40\n",
                log.display()
            ),
        );
        let daemon = Daemon::spawn(binary, vec!["-q".to_owned(), ini]);
        eventually(crate::patience::SOON, "pgbouncer listens", || async {
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|e| format!("{e}; its log: {}", said()))
        })
        .await;
        let url = format!("postgresql://{}:{}@127.0.0.1:{port}", server.user(), server.password());
        Self { port, url, _daemon: daemon, _dir: dir }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("{}/{database}", self.url)
    }
}

/// Each live connection's first bytes, and its client's side.
type Live = Arc<Mutex<Vec<(Vec<u8>, TcpStream)>>>;

/// Forwards connections to a port of 127.0.0.1, and can cut those whose first bytes hold a given text.
pub(crate) struct Relay {
    pub(crate) port: u16,
    live: Live,
}

/// What becomes of the connections of a [`Relay`].
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    Forward,
    /// The handshake passes; nothing that the client says after it does.
    StallAfterHandshake,
}

impl Relay {
    /// Its threads end with the sockets, the one that accepts with the process.
    pub(crate) fn start(to: u16, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let live = Live::default();
        let known = Arc::clone(&live);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let known = Arc::clone(&known);
                std::thread::spawn(move || forward(client, to, manner, &known));
            }
        });
        Self { port, live }
    }

    /// Cuts the connections that named themselves so; returns how many.
    pub(crate) fn cut(&self, name: &str) -> usize {
        let mut live = self.live.lock().unwrap();
        let before = live.len();
        live.retain(|(hello, socket)| {
            let named = hello.windows(name.len()).any(|w| w == name.as_bytes());
            if named {
                let _ = socket.shutdown(Shutdown::Both);
            }
            !named
        });
        before - live.len()
    }
}

fn forward(mut client: TcpStream, to: u16, manner: Manner, known: &Live) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)) else { return };
    let mut hello = vec![0; 4096];
    let n = loop {
        match client.read(&mut hello) {
            // No TLS here, as on the server behind.
            Ok(8) if hello[4..8] == SSL_REQUEST => {
                if client.write_all(b"N").is_err() {
                    return;
                }
            }
            Ok(n) => break n,
            Err(_) => return,
        }
    };
    hello.truncate(n);
    if server.write_all(&hello).is_err() {
        return;
    }
    known.lock().unwrap().push((hello, client.try_clone().unwrap()));
    let (mut from_server, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    let back = std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = from_server.read(&mut buffer) {
            // ReadyForQuery ends the handshake.
            if buffer[..n].ends_with(b"Z\0\0\0\x05I") {
                is_ready.store(true, std::sync::atomic::Ordering::Release);
            }
            if to_client.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let mut buffer = [0; 8192];
    while let Ok(n @ 1..) = client.read(&mut buffer) {
        let stalls = manner == Manner::StallAfterHandshake && ready.load(std::sync::atomic::Ordering::Acquire);
        if !stalls && server.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = back.join();
}
