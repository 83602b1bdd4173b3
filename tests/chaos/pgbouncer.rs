//! Debian's `pgbouncer` before a world's server, on a port that stays the same when it is killed and started again.

use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::inherited;
use crate::ports;
use crate::scenario;
use crate::world::{World, eventually};

/// A running pgbouncer. Killed when dropped, and with the thread that started it.
pub(crate) struct PgBouncer {
    port: u16,
    child: Child,
    dir: tempfile::TempDir,
    world_url: String,
    server_port: u16,
}

impl PgBouncer {
    /// `databases`: what they are called here, and their options, such as `pool_mode=session`. Each is the world's.
    pub(crate) async fn start(world: &World, databases: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("podlock-chaos-").tempdir().expect("a directory");
        give_to_account(dir.path().to_owned());
        let (port, server_port) = (ports::free(), world.server.port());
        // The secret as the server keeps it, as in production: with a password it would compute one for each
        // connection.
        let secret = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let secret: String = world.admin.query_one(secret, &[&world.role]).await.expect("the role").get(0);
        let users = dir.path().join("users");
        std::fs::write(&users, format!("\"{}\" \"{secret}\"\n", world.role)).unwrap();
        let lines: String = databases
            .iter()
            .map(|(name, options)| {
                format!("{name} = host=127.0.0.1 port={server_port} dbname={} {options}\n", world.database)
            })
            .collect();
        let ini = format!(
            "[databases]\n{lines}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\nlogfile = {}\nmax_client_conn = 500\ndefault_pool_size = 40\n",
            users.display(),
            dir.path().join("log").display()
        );
        std::fs::write(dir.path().join("ini"), ini).unwrap();
        for file in ["users", "ini"] {
            give_to_account(dir.path().join(file));
        }
        let child = spawn(&dir);
        let started = Self { port, child, dir, world_url: world.url.clone(), server_port };
        started.listens().await;
        started
    }

    /// The pods' URL, through this pooler, of one of its databases.
    pub(crate) fn url(&self, database: &str) -> String {
        let (front, _) = self.world_url.rsplit_once('/').expect("a URL");
        format!("{}/{database}", front.replace(&format!(":{}", self.server_port), &format!(":{}", self.port)))
    }

    /// Kills it; every connection through it ends. Returns once it is gone.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("it is killed");
    }

    /// Starts it on the same port.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(&self.dir);
        self.listens().await;
    }

    async fn listens(&self) {
        eventually(Duration::from_secs(10), "pgbouncer listens", || async {
            let read = |name| std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
            let said = || read("stderr") + &read("log");
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                .map(drop)
                .map_err(|e| format!("{e}; it said: {}", said()))
        })
        .await;
    }
}

fn spawn(dir: &tempfile::TempDir) -> Child {
    let program = scenario::pgbouncer().expect("it is needed");
    let mut command = Command::new("setpriv");
    inherited::clean(command.as_std_mut());
    command.args(["--pdeathsig", "KILL", "--", program, "-q"]).arg(dir.path().join("ini"));
    let stderr = std::fs::File::options().create(true).append(true).open(dir.path().join("stderr")).expect("a file");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).kill_on_drop(true);
    if let Some((uid, gid)) = account() {
        command.uid(uid).gid(gid);
    }
    command.spawn().expect("setpriv begins")
}

/// It refuses to run as root: then it runs as `postgres`.
fn account() -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then(|| {
        let id = |flag| {
            let output = std::process::Command::new("id").args([flag, "postgres"]).output().expect("id");
            String::from_utf8_lossy(&output.stdout).trim().parse().expect("an account postgres")
        };
        (id("-u"), id("-g"))
    })
}

fn give_to_account(path: PathBuf) {
    if let Some((uid, gid)) = account() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
}
