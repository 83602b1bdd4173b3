//! Makes `docs/connections.md` from the table of words.

use std::fmt::Write as _;

use super::words::{Support, WORDS};
use crate::pages;

const INTRODUCTION: &str = "\
# Connections

`DATABASE_URL` (`Config::new`, `Config::database_url`) says where the server is. It is a URL or a key-value string, in libpq's
words. podlock fills in what it leaves out: from the service file if a `service` is named, then from libpq's variables, then
from libpq's defaults. With `PGHOST`, `PGHOSTADDR` or `PGSERVICE` set, `DATABASE_URL` may be missing.

These settings, TLS included, hold for every connection:

- a pod's dedicated sessions: three, and one more while readers are attached to its streams
- a pod's pool
- the connections of operators and migrations

## What holds for each connection

- podlock reads certificates, keys, revocation lists and the password file again for each connection. So you can renew them
  without a restart. It decides once which of the usual files in `~/.postgresql` exist.
- podlock tries several hosts in turn until one is a primary. As in libpq, a host that refuses the login ends the search.
- Under `prefer` and `allow`, podlock checks nothing of a certificate. A connection may go on without TLS; after a failed
  handshake it does so with a warning (`tls_downgraded`). If that must not happen, write `require`, or better `verify-full`.
  Trust roots and revocation lists have an effect from `require` on.
- For passwords that rotate, such as the tokens of a cloud's identity service, set `Config::password_from`. podlock calls it
  for every connection, and so at every reconnect.
- You do not set here the time-outs and keepalives that make a lock a lease. They follow from `lease`. Each session sets them
  on the server before anything else, so that the role's own `statement_timeout` ends none of these statements. The words about
  keepalives below are about the client's side of the socket.
- If the role or the database has `synchronous_commit` off, podlock's sessions turn it on. So everything that was confirmed
  survives a crash. (A run that you start in your own transaction is as durable as that transaction.)

## TLS is rustls

rustls accepts less than OpenSSL:

- It accepts certificates of X.509 version 3 only.
- A server's certificate must name the host as a subject alternative name. A common name does not count. The certificate must
  not be the authority's own.
- It speaks TLS 1.2 and 1.3 only.
- It reads no encrypted keys.
- It refuses a revocation list past its date, as OpenSSL does.
- If a server's certificate is signed with Ed25519, the server offers no channel binding.

## Words

podlock ignores no word: it honours a word, or it returns an error that names the word. This table is made from
`src/pg/conninfo/words.rs`: change it there, then run `make docs`.

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
        "\nBeside these words, `PGREQUIRESSL=1` means `sslmode=require`. podlock sets `PGTZ`, `PGDATESTYLE` and `PGGEQO` by \
         `options`. A URL may say `ssl=true`, which also means `sslmode=require`.\n",
    );
    text
}

#[test]
fn the_page_on_connections_says_what_the_code_does() {
    pages::renew_or_compare("docs/connections.md", &document());
}
