//! The table that turns an SQLSTATE, or an error of the driver, into a kind. `docs/errors.md` is made from this file.

use tokio_postgres::error::SqlState;

use super::ErrorKind;

const AGAIN: &str = "nothing by hand: the connection is made again";
const MIGRATE: &str = "run `podlock migrate up`, or correct PODLOCK_SCHEMA";

/// The kind and the advice for one SQLSTATE, or one class of them.
pub(crate) struct Rule {
    code: Code,
    /// PostgreSQL's name for the condition.
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/errors.md, which a test makes"))]
    pub(crate) condition: &'static str,
    pub(crate) kind: ErrorKind,
    pub(crate) help: &'static str,
}

enum Code {
    One(SqlState),
    /// Every code that begins with these two characters and has no rule of its own. An empty text matches every other
    /// code.
    Class(&'static str),
}

macro_rules! rules {
    ($(($code:ident $(= $class:literal)?, $kind:ident, $help:expr)),+ $(,)?) => {
        &[$(rules!(@ $code $(= $class)?, $kind, $help)),+]
    };
    (@ $condition:ident = $class:literal, $kind:ident, $help:expr) => {
        Rule { code: Code::Class($class), condition: stringify!($condition), kind: ErrorKind::$kind, help: $help }
    };
    (@ $code:ident, $kind:ident, $help:expr) => {
        Rule { code: Code::One(SqlState::$code), condition: stringify!($code), kind: ErrorKind::$kind, help: $help }
    };
}

/// Every rule, the exact ones before the general ones. `docs/errors.md` is made from this table.
pub(crate) const RULES: &[Rule] = rules![
    (INVALID_PASSWORD, AuthFailed, "correct the user or the password in DATABASE_URL"),
    (INVALID_AUTHORIZATION_SPECIFICATION, AuthFailed, "correct the user in DATABASE_URL, or the server's pg_hba.conf"),
    (INVALID_CATALOG_NAME, Config, "correct the database in DATABASE_URL, or create it"),
    (
        TOO_MANY_CONNECTIONS,
        TooManyConnections,
        "raise max_connections, or lower pool_size: a pod needs three connections, one more while its streams are \
         read, and its pool"
    ),
    (
        INSUFFICIENT_PRIVILEGE,
        Forbidden,
        "grant the role its rights (`podlock migrate grants ROLE`, with `--read-only` for one that only reads), or run \
         `podlock migrate up` as the owner of the schema"
    ),
    (UNDEFINED_TABLE, SchemaMissing, MIGRATE),
    (UNDEFINED_FUNCTION, SchemaMissing, MIGRATE),
    (UNDEFINED_COLUMN, SchemaMissing, MIGRATE),
    (INVALID_SCHEMA_NAME, SchemaMissing, MIGRATE),
    (READ_ONLY_SQL_TRANSACTION, Standby, "point DATABASE_URL at the primary"),
    (QUERY_CANCELED, Timeout, "see whether the server is overloaded"),
    (LOCK_NOT_AVAILABLE, Timeout, "see pg_locks for who holds the lock"),
    (NO_DATA_FOUND, NotFound, "correct the name"),
    (CANNOT_CONNECT_NOW, Unreachable, "wait until the server is up"),
    (ADMIN_SHUTDOWN, SessionLost, AGAIN),
    (CRASH_SHUTDOWN, SessionLost, AGAIN),
    (IDLE_IN_TRANSACTION_SESSION_TIMEOUT, SessionLost, AGAIN),
    (IDLE_SESSION_TIMEOUT, SessionLost, AGAIN),
    (connection_exception = "08", SessionLost, AGAIN),
    (data_exception = "22", InvalidInput, "correct the value"),
    (transaction_rollback = "40", Database, "call again: the server undid the statement for the sake of another"),
    (insufficient_resources = "53", Database, "give the server memory or disk; then the same call succeeds"),
    (studio_fence_check = "PL", Fenced, "stop working on the run"),
    (any_other = "", Database, "read the server's message and its log"),
];

impl Rule {
    fn covers(&self, code: &SqlState) -> bool {
        match &self.code {
            Code::One(one) => one == code,
            Code::Class(class) => code.code().starts_with(class),
        }
    }

    /// The code, or the class followed by `xxx`.
    #[cfg(test)]
    pub(crate) fn pattern(&self) -> String {
        match &self.code {
            Code::One(one) => one.code().to_owned(),
            Code::Class("") => "others".to_owned(),
            Code::Class(class) => format!("{class:x<5}"),
        }
    }
}

/// The kind and the advice for `code`.
pub(crate) fn classify(code: &SqlState) -> (ErrorKind, &'static str) {
    RULES.iter().find(|rule| rule.covers(code)).map_or((ErrorKind::Database, ""), |rule| (rule.kind, rule.help))
}

/// Errors of the driver itself, before the server has answered. They have no code, only a text: its beginning, the
/// kind, the advice.
pub(crate) const REFUSED_BY_DRIVER: &[(&str, ErrorKind, &str)] = &[
    (
        "invalid configuration: password missing",
        ErrorKind::AuthFailed,
        "put the password into DATABASE_URL, or let the server's pg_hba.conf do without one",
    ),
    (
        "authentication error",
        ErrorKind::AuthFailed,
        "put the password into DATABASE_URL, or let the server's pg_hba.conf do without one",
    ),
    ("invalid configuration", ErrorKind::Config, "correct DATABASE_URL"),
    (
        "error performing TLS handshake",
        ErrorKind::Tls,
        "set ssl = on on the server, or write sslmode=prefer if the network is private",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sqlstate_with_a_rule_of_its_own_follows_it_and_any_other_its_class() {
        for rule in RULES {
            if let Code::One(code) = &rule.code {
                assert_eq!(classify(code), (rule.kind, rule.help), "a rule before it hides {}", rule.pattern());
            }
        }
        let kind = |code| classify(&SqlState::from_code(code)).0;
        assert_eq!(kind("08006"), ErrorKind::SessionLost);
        assert_eq!(kind("22P05"), ErrorKind::InvalidInput);
        assert_eq!(kind("53300"), ErrorKind::TooManyConnections);
        for other in ["40001", "53200", "XX000", "23505"] {
            assert_eq!(kind(other), ErrorKind::Database, "{other}");
        }
        assert_eq!(RULES.last().map(Rule::pattern).as_deref(), Some("others"), "the rule for the rest must be last");
    }
}
