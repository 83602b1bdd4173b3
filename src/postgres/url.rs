//! `DATABASE_URL` and key-value strings.

use tokio_postgres::config::{Host, SslMode};

use crate::error::{Error, ErrorKind, Result};

const WORDS: &[&str] = &[
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslmode",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];

/// Parses a connection string. Its text never enters an error: it may hold a password in a place where no parser
/// would look for one.
pub(crate) fn parse(text: &str) -> Result<tokio_postgres::Config> {
    if text.trim().is_empty() {
        return Err(Error::new(ErrorKind::Config, "DATABASE_URL is missing or empty")
            .left("nothing was started")
            .todo("set it to postgres://user:password@host:5432/database"));
    }
    let config: tokio_postgres::Config = text.parse().map_err(|e: tokio_postgres::Error| {
        // The parser's message can quote the string, so only a word that we know ourselves is repeated.
        let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        let word = WORDS.iter().find(|w| cause.contains(&format!("`{w}`")));
        let at = word.map_or_else(String::new, |w| format!(" at {w}"));
        Error::new(ErrorKind::Config, format!("DATABASE_URL cannot be read{at} (its text is kept out of this message)"))
            .left("nothing was started")
            .todo("write postgres://user:password@host:5432/database, with special characters percent-encoded, or host=… user=…")
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(Error::new(ErrorKind::Config, "DATABASE_URL names no host")
            .left("nothing was started")
            .todo("add a host, or the directory of the server's unix socket as host=/var/run/postgresql"));
    }
    if config.get_ssl_mode() == SslMode::Require {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "DATABASE_URL asks for sslmode=require, and this version has no TLS",
        )
        .left("nothing was started")
        .todo(
            "reach the server over a unix socket, a private network or a TLS tunnel, with sslmode=prefer or disable",
        ));
    }
    Ok(config)
}

/// Where `config` points, for messages: hosts and database, no user, no password.
pub(crate) fn describe(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let port = |i: usize| ports.get(i).or_else(|| ports.first()).copied().unwrap_or(5432);
    let name = |(i, host): (usize, &Host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(i)),
        Host::Unix(path) => format!("{}/.s.PGSQL.{}", path.display(), port(i)),
    };
    let mut hosts: Vec<_> = config.get_hosts().iter().enumerate().map(name).collect();
    if hosts.is_empty() {
        hosts = config.get_hostaddrs().iter().enumerate().map(|(i, a)| format!("{a}:{}", port(i))).collect();
    }
    format!("{} (database {})", hosts.join(", "), config.get_dbname().unwrap_or("of the user's name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_bad_string_is_repeated() {
        for text in [
            "postgres://u:hunter2@h:notaport/d",
            "host=h password=hunter2 hunter3 user=u",
            "host=h password='hunter2",
            "hunter2",
            "postgres://u:hunter2@/d?sslmode=hunter3",
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter"), "{shown}");
        }
        assert!(parse("host=h port=x").expect_err("refused").to_string().contains("at port"));
        assert!(parse("").expect_err("refused").to_string().contains("missing or empty"));
    }

    #[test]
    fn the_description_has_hosts_and_no_secrets() {
        let config = parse("postgres://u:hunter2@a:5433,b:5434/d").expect("parses");
        assert_eq!(describe(&config), "a:5433, b:5434 (database d)");
    }
}
