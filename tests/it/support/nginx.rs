//! Debian's `nginx` on a port of its own, with its default settings, before a service.

use std::net::TcpStream;
use std::time::Duration;

use super::eventually;
use super::faults::{Daemon, account_dir, free_port, give_to_account};

/// A running nginx. It ends when this is dropped.
pub(crate) struct Nginx {
    /// The service's URL through an nginx with its default settings.
    pub(crate) url: String,
    /// The service's URL through an nginx that ignores the header `X-Accel-Buffering`, with which the service turns
    /// buffering off.
    pub(crate) heedless_url: String,
    _daemon: Daemon,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts one before the service at `upstream`, as `http://127.0.0.1:port`.
    pub(crate) async fn before(upstream: &str) -> Self {
        let binary = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .expect(
                "no nginx on this system: sh scripts/ensure-daemon.sh nginx nginx-light, or apt-get install \
                 nginx-light",
            );
        let dir = account_dir();
        let (port, heedless) = (free_port(), free_port());
        let at = |name: &str| dir.path().join(name).display().to_string();
        // nginx runs without root rights, so this config names where its files go. It leaves proxying and buffering at
        // their defaults.
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {};\n", at(what)))
            .collect();
        let server = |port: u16, more: &str| {
            format!("server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; {more} }} }}\n")
        };
        let config = format!(
            "daemon off; master_process off; pid {}; error_log {};\nevents {{}}\nhttp {{\naccess_log off;\ngzip \
             on;\n{temporary}{}{}}}\n",
            at("pid"),
            at("log"),
            server(port, ""),
            server(heedless, "proxy_ignore_headers X-Accel-Buffering;"),
        );
        let path = dir.path().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        give_to_account(&path);
        let args = ["-p", &at(""), "-e", &at("log"), "-c", &at("nginx.conf")].map(str::to_owned);
        let daemon = Daemon::spawn(binary, args.to_vec());
        for port in [port, heedless] {
            eventually(Duration::from_secs(10), "nginx listens", || async {
                let said = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
                TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|e| format!("{e}; its log: {}", said()))
            })
            .await;
        }
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        Self { url: url(port), heedless_url: url(heedless), _daemon: daemon, _dir: dir }
    }
}
