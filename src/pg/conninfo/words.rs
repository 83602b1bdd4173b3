//! libpq's words, and what podlock does with each. podlock ignores none: it honours a word, or refuses it by name.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};

/// What podlock does with a word.
#[derive(Clone, Copy, Debug)]
pub(super) enum Support {
    /// podlock honours it, as described.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/connections.md, which a test makes"))]
    Honoured(&'static str),
    /// podlock can honour only these values, for the given reason.
    Only(&'static [&'static str], &'static str),
    /// podlock cannot honour it, for the given reason.
    Refused(&'static str),
}

pub(super) struct Word {
    pub(super) name: &'static str,
    /// The environment variable that gives the value if the string does not.
    pub(super) variable: Option<&'static str>,
    pub(super) support: Support,
}

const fn word(name: &'static str, variable: Option<&'static str>, support: Support) -> Word {
    Word { name, variable, support }
}

use Support::{Honoured, Only, Refused};

const NO_GSS: &str = "podlock does not speak GSSAPI";
const NO_OAUTH: &str = "podlock does not speak OAuth; give the token by Config::password_from";

pub(super) const WORDS: &[Word] = &[
    word(
        "host",
        Some("PGHOST"),
        Honoured("names, addresses or socket directories, in a list; without it the server's unix socket"),
    ),
    word(
        "hostaddr",
        Some("PGHOSTADDR"),
        Honoured(
            "addresses to dial instead of looking the names up; the names stay what certificates are checked against",
        ),
    ),
    word("port", Some("PGPORT"), Honoured("one for all hosts, or one for each")),
    word("dbname", Some("PGDATABASE"), Honoured("by default the user's name")),
    word("user", Some("PGUSER"), Honoured("by default the system's user")),
    word("password", Some("PGPASSWORD"), Honoured("never shown; `Config::password_from` wins over it")),
    word(
        "passfile",
        Some("PGPASSFILE"),
        Honoured(
            "by default `~/.pgpass`; read anew for each connection; one that is named is refused if others may read \
             it, the usual one passed over",
        ),
    ),
    word("service", Some("PGSERVICE"), Honoured("a section of the service file")),
    word(
        "servicefile",
        Some("PGSERVICEFILE"),
        Honoured("by default `~/.pg_service.conf`, then `pg_service.conf` in `PGSYSCONFDIR`"),
    ),
    word(
        "connect_timeout",
        Some("PGCONNECT_TIMEOUT"),
        Honoured(
            "seconds for one host, handshake included; `Config::connect_timeout` wins over it; 0 leaves podlock's \
             default",
        ),
    ),
    word(
        "options",
        Some("PGOPTIONS"),
        Honoured("sent to the server; what podlock's sessions need they set for themselves afterwards"),
    ),
    word(
        "application_name",
        Some("PGAPPNAME"),
        Honoured(
            "names the connections of the pool and of the operator; the dedicated sessions stay `podlock/<pod>/<role>`",
        ),
    ),
    word("fallback_application_name", None, Honoured("as `application_name`, where that is not given")),
    word(
        "target_session_attrs",
        Some("PGTARGETSESSIONATTRS"),
        Honoured(
            "`any`, `read-write`, `primary`: podlock takes the primary in each case, since only its locks mean \
             something; a standby is refused",
        ),
    ),
    word(
        "load_balance_hosts",
        Some("PGLOADBALANCEHOSTS"),
        Honoured("`disable` or `random`: the order in which hosts are tried, drawn once per process"),
    ),
    word("keepalives", None, Honoured("of the client's side; `0` turns them off there")),
    word("keepalives_idle", None, Honoured("seconds; by default lease / 5")),
    word("keepalives_interval", None, Honoured("seconds; by default lease / 5")),
    word("keepalives_count", None, Honoured("by default 3")),
    word(
        "tcp_user_timeout",
        None,
        Honoured("milliseconds, of the client's side; by default the lease; 0 is the system's own"),
    ),
    word("channel_binding", Some("PGCHANNELBINDING"), Honoured("`disable`, `prefer`, `require`")),
    word(
        "sslmode",
        Some("PGSSLMODE"),
        Honoured(
            "`disable`, `allow`, `prefer` (default), `require`, `verify-ca`, `verify-full`; as in libpq, `require` \
             checks the authority where a root certificate is there; a unix socket never has TLS",
        ),
    ),
    word(
        "sslnegotiation",
        Some("PGSSLNEGOTIATION"),
        Honoured("`postgres` or `direct` (PostgreSQL 17, `sslmode=require` or stronger)"),
    ),
    word(
        "sslrootcert",
        Some("PGSSLROOTCERT"),
        Honoured(
            "a file of PEM certificates, by default `~/.postgresql/root.crt`; `system` for the system's authorities, \
             which implies `verify-full`",
        ),
    ),
    word("sslcert", Some("PGSSLCERT"), Honoured("a client certificate, by default `~/.postgresql/postgresql.crt`")),
    word(
        "sslkey",
        Some("PGSSLKEY"),
        Honoured("its key, unencrypted, readable by nobody else; by default `~/.postgresql/postgresql.key`"),
    ),
    word("sslcrl", Some("PGSSLCRL"), Honoured("a file of revocation lists, by default `~/.postgresql/root.crl`")),
    word("sslsni", Some("PGSSLSNI"), Honoured("`0` or `1`")),
    word(
        "sslcertmode",
        Some("PGSSLCERTMODE"),
        Only(&["allow", "disable"], "podlock cannot tell whether the server asked for a certificate"),
    ),
    word("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), Honoured("nothing older than TLS 1.2 is spoken")),
    word(
        "ssl_max_protocol_version",
        Some("PGSSLMAXPROTOCOLVERSION"),
        Only(&["TLSv1.2", "TLSv1.3"], "older ones are not spoken"),
    ),
    word("sslpassword", None, Refused("podlock reads no encrypted keys; decrypt the key and restrict who may read it")),
    word("sslcrldir", Some("PGSSLCRLDIR"), Refused("put the lists into one file and name it by sslcrl")),
    word("sslcompression", Some("PGSSLCOMPRESSION"), Only(&["0"], "TLS compression is unsafe")),
    word("sslkeylogfile", None, Refused("podlock writes no session keys")),
    word(
        "client_encoding",
        Some("PGCLIENTENCODING"),
        Only(&["UTF8", "utf8", "UTF-8", "utf-8", "auto"], "podlock speaks UTF-8"),
    ),
    word("replication", None, Only(&["false", "off", "no", "0"], "podlock needs ordinary connections")),
    word("min_protocol_version", Some("PGMINPROTOCOLVERSION"), Only(&["3.0"], "podlock speaks version 3.0")),
    word(
        "max_protocol_version",
        Some("PGMAXPROTOCOLVERSION"),
        Only(&["3.0", "3.2", "latest"], "podlock speaks version 3.0"),
    ),
    word("requirepeer", Some("PGREQUIREPEER"), Refused("podlock does not look up the owner of a socket")),
    word(
        "require_auth",
        Some("PGREQUIREAUTH"),
        Refused(
            "podlock cannot see by which method the server asked; use channel_binding=require or sslmode=verify-full",
        ),
    ),
    word("gssencmode", Some("PGGSSENCMODE"), Only(&["disable", "prefer"], NO_GSS)),
    word("krbsrvname", Some("PGKRBSRVNAME"), Refused(NO_GSS)),
    word("gsslib", Some("PGGSSLIB"), Refused(NO_GSS)),
    word("gssdelegation", Some("PGGSSDELEGATION"), Refused(NO_GSS)),
    word("scram_client_key", None, Refused("give the password itself")),
    word("scram_server_key", None, Refused("give the password itself")),
    word("oauth_issuer", None, Refused(NO_OAUTH)),
    word("oauth_client_id", None, Refused(NO_OAUTH)),
    word("oauth_client_secret", None, Refused(NO_OAUTH)),
    word("oauth_scope", None, Refused(NO_OAUTH)),
];

/// The longest name that an error repeats, if it looks like a word at all. Every word of libpq is shorter. A longer one
/// may be a piece of a password.
const NAME_MAX: usize = 40;

/// Words and their values. Never shown: a value may be a password.
#[derive(Default)]
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Sets a word that `source` gives. The last value counts. An error repeats an unknown word only if it is
    /// `quotable`: it cannot be a piece of a password.
    pub(super) fn set(&mut self, source: &str, quotable: bool, name: &str, value: String) -> Result<()> {
        let Some(word) = WORDS.iter().find(|word| word.name == name) else {
            return Err(unknown(source, quotable, name));
        };
        check(&format!("{} in {source}", word.name), word.support, &value)?;
        self.0.insert(word.name, value);
        Ok(())
    }

    /// The same as [`Values::set`], for a source in which the first value of a repeated word counts.
    pub(super) fn set_first(&mut self, source: &str, quotable: bool, name: &str, value: &str) -> Result<()> {
        if self.0.contains_key(name) { Ok(()) } else { self.set(source, quotable, name, value.to_owned()) }
    }

    /// Copies the values from `other` for words that are not set here.
    pub(super) fn fill_from(&mut self, other: Self) {
        for (name, value) in other.0 {
            self.0.entry(name).or_insert(value);
        }
    }

    /// Copies the values from the environment for words that are not set here.
    pub(super) fn fill_from_variables<'a>(&mut self, get: impl Fn(&str) -> Option<&'a str>) -> Result<()> {
        for word in WORDS {
            let Some((variable, value)) = word.variable.and_then(|v| Some((v, get(v)?))) else { continue };
            if self.0.contains_key(word.name) {
                continue;
            }
            check(&format!("environment variable {variable}"), word.support, value)?;
            self.0.insert(word.name, value.to_owned());
        }
        // The older form of `sslmode`.
        if get("PGREQUIRESSL").is_some_and(|v| v.starts_with('1')) {
            self.0.entry("sslmode").or_insert_with(|| "require".to_owned());
        }
        Ok(())
    }
}

fn check(place: &str, support: Support, value: &str) -> Result<()> {
    let (fault, todo) = match support {
        Refused(why) => (format!("{place} cannot be honoured: {why}"), "remove it".to_owned()),
        Only(values, why) if !value.is_empty() && !values.contains(&value) => {
            (format!("{place} cannot be honoured as it stands: {why}"), format!("it may be {}", values.join(", ")))
        }
        Honoured(_) | Only(..) => return Ok(()),
    };
    Err(Error::new(ErrorKind::Config, fault).state("nothing was started").help(todo))
}

/// The error for a word that libpq does not have. The error names the word, unless it may be a piece of something else,
/// such as a password with an unquoted space.
fn unknown(source: &str, quotable: bool, name: &str) -> Error {
    let looks_like_a_word =
        quotable && name.len() <= NAME_MAX && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let shown = if looks_like_a_word { format!("{name:?}") } else { "a word (kept out of this message)".to_owned() };
    let meant = match name {
        "keepalives_retries" => "keepalives_count",
        "database" | "db" => "dbname",
        "username" => "user",
        "ssl_mode" => "sslmode",
        "ssl_root_cert" => "sslrootcert",
        _ => "",
    };
    let todo = if meant.is_empty() {
        "use the words of libpq's connection strings, and quote values that hold spaces".to_owned()
    } else {
        format!("libpq's word is {meant}")
    };
    Error::new(ErrorKind::Config, format!("{source} has {shown}, which is none of libpq's words"))
        .state("nothing was started")
        .help(todo)
}

/// The error for a value that its word does not allow. The value is not repeated: it may be a piece of a password.
pub(super) fn bad_value(name: &str, admitted: &str) -> Error {
    let variable = WORDS.iter().find(|word| word.name == name).and_then(|word| word.variable);
    let or_variable = variable.map_or_else(String::new, |v| format!(" (or {v})"));
    Error::new(
        ErrorKind::Config,
        format!("the connection string's {name}{or_variable} has a value that cannot be used"),
    )
    .state("nothing was started")
    .help(format!("{name} may be {admitted}"))
}
