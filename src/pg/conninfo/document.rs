//! `docs/connections.md`, made from the table of words.

use std::fmt::Write as _;

use super::words::{Support, WORDS};
use crate::pages;

const INTRODUCTION: &str = "\
# Connections

Where the server is comes from `DATABASE_URL` (`Config::new`, `Config::database_url`), a URL or a key-value string in
libpq's words. What it leaves out comes from the service file if a `service` is named, then from libpq's variables, then
from libpq's defaults. With `PGHOST`, `PGHOSTADDR` or `PGSERVICE` set, `DATABASE_URL` may be missing.

Every connection goes this way and under the same TLS settings: the dedicated sessions of a pod (three, and one more while
its streams are read), its pool, and the connections of operators and migrations. Certificates, keys, revocation lists and the password file are read anew for each
connection, so that renewing them needs no restart; which of the usual files in `~/.postgresql` are there is decided once.
Several hosts are tried in turn until one is a primary; as in libpq, a host that refuses the login ends the search.

Under `prefer` and `allow` nothing of a certificate is checked, and a connection may go on without TLS (after a failed
handshake with a warning, `tls_downgraded`): write `require`, or better `verify-full`, where that must not happen. Trust
roots and revocation lists have their effect from `require` on.

Passwords that rotate (tokens of a cloud's identity service) are asked for by `Config::password_from`, at every
connection and so at every reconnect.

The time-outs and keepalives that make a lock a lease are not set here: they follow from `lease`, and each session sets
them on the server, first of all, so that a `statement_timeout` of the role's own ends none of them. Where the role or the
database has `synchronous_commit` off, these sessions turn it on: what was confirmed is there after a crash. (A run that is
started in your own transaction is as durable as that transaction.) The words about keepalives below are about the client's side
of the socket.

## TLS is rustls

It differs from OpenSSL in what it takes: certificates of X.509 version 3 only; a server's certificate must name the
host as a subject alternative name (a common name does not count) and must not be the authority's own; TLS 1.2 and 1.3
only; no encrypted keys; a revocation list past its date is refused, as by OpenSSL. A server whose certificate is signed with Ed25519 offers no channel binding.

## Words

No word is ignored: it is honoured, or it is an error that names it. This table is made from
`src/pg/conninfo/words.rs`: change it there, then `make docs`.

";

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("| word | variable | what podlock makes of it |\n| --- | --- | --- |\n");
    for word in WORDS {
        let variable = word.variable.map_or_else(String::new, |v| format!("`{v}`"));
        let made = match word.support {
            Support::Honoured(how) => how.to_owned(),
            Support::Only(values, why) => {
                format!("{} only: {why}", values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", "))
            }
            Support::Refused(why) => format!("refused: {why}"),
        };
        writeln!(text, "| `{}` | {variable} | {made} |", word.name).unwrap();
    }
    text.push_str(
        "\nBeside these, `PGREQUIRESSL=1` is `sslmode=require`; `PGTZ`, `PGDATESTYLE` and `PGGEQO` are set by `options`; and \
         a URL may say `ssl=true`.\n",
    );
    text
}

#[test]
fn the_page_on_connections_says_what_the_code_does() {
    pages::renew_or_compare("docs/connections.md", &document());
}
