//! The two forms of a connection string. An error does not quote the text around the fault, because that may hold a
//! password.

use percent_encoding::percent_decode_str;

use super::words::Values;
use crate::error::{Error, ErrorKind, Result};

const SOURCE: &str = "DATABASE_URL";

/// Reads a URL or a key-value string.
pub(super) fn parse(text: &str) -> Result<Values> {
    let text = text.trim();
    match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
        Some(rest) => url(rest),
        None => pairs(text),
    }
}

/// `user:password@host:port,host:port/dbname?word=value&…`, each part optional and percent-encoded.
fn url(rest: &str) -> Result<Values> {
    let mut values = Values::default();
    // As in libpq, the user's part comes first: it ends at the first @ before any slash, whatever it holds.
    let end = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@'));
    let (login, rest) = end.map_or((None, rest), |at| (Some(&rest[..at]), &rest[at + 1..]));
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, q)| (r, Some(q)));
    let (hosts, path) = rest.split_once('/').map_or((rest, None), |(h, p)| (h, Some(p)));
    if hosts.contains('@') {
        return Err(fault("there is an @ too many; one in a password is written %40"));
    }
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
        for (name, value) in [("user", Some(user)), ("password", password)] {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                set(&mut values, name, value)?;
            }
        }
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = host_and_port(host)?;
        names.push(decode(name)?);
        ports.push(decode(port)?);
    }
    let plain_ports = ports.iter().all(|port: &String| port.bytes().all(|b| b.is_ascii_digit()));
    if names.iter().any(|name| !name.is_empty()) {
        values.set(SOURCE, false, "host", names.join(","))?;
    }
    if ports.iter().any(|port| !port.is_empty()) {
        values.set(SOURCE, false, "port", ports.join(","))?;
    }
    if let Some(dbname) = path.filter(|path| !path.is_empty()) {
        set(&mut values, "dbname", dbname)?;
    }
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| fault("a word after ? has no value"))?;
        match (decode(name)?.as_str(), value) {
            // JDBC's form. libpq accepts only this one value.
            ("ssl", "true") => values.set(SOURCE, true, "sslmode", "require".to_owned())?,
            // Without an @, all of it may be a login that was cut short.
            (name, value) => values.set(SOURCE, login.is_some() || plain_ports, name, decode(value)?)?,
        }
    }
    Ok(values)
}

fn host_and_port(host: &str) -> Result<(&str, &str)> {
    let Some(bracketed) = host.strip_prefix('[') else {
        return Ok(host.split_once(':').unwrap_or((host, "")));
    };
    let (name, after) = bracketed.split_once(']').ok_or_else(|| fault("an address in [ ] is not closed"))?;
    match after.strip_prefix(':') {
        Some(port) => Ok((name, port)),
        None if after.is_empty() => Ok((name, "")),
        None => Err(fault("something stands between an address in [ ] and its port")),
    }
}

fn set(values: &mut Values, name: &str, encoded: &str) -> Result<()> {
    values.set(SOURCE, false, name, decode(encoded)?)
}

fn decode(encoded: &str) -> Result<String> {
    let bytes = encoded.as_bytes();
    let is_hex = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_hexdigit);
    let whole = bytes.iter().enumerate().all(|(i, b)| *b != b'%' || (is_hex(i + 1) && is_hex(i + 2)));
    let text = percent_decode_str(encoded).decode_utf8().ok().filter(|text| whole && !text.contains('\0'));
    text.map(Into::into).ok_or_else(|| fault("a % is not followed by two hexadecimal digits, or they make no text"))
}

/// `word = value word = 'value with \' and spaces'`.
fn pairs(text: &str) -> Result<Values> {
    let mut values = Values::default();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let after = after.trim_start().strip_prefix('=').ok_or_else(|| fault("a word is not followed by ="))?;
        let (value, after) = value(after.trim_start())?;
        // The text after a password may be the rest of it.
        values.set(SOURCE, values.get("password").is_none(), name, value)?;
        rest = after.trim_start();
    }
    Ok(values)
}

/// A value, quoted or not, and what follows it.
fn value(text: &str) -> Result<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(fault("a quoted value is not closed")) } else { Ok((value, "")) }
}

fn fault(what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("DATABASE_URL cannot be read: {what} (its text is kept out of this message)"))
        .state("nothing was started")
        .help(
            "write postgres://user:password@host:5432/database, with special characters percent-encoded, or host=… \
             user=…",
        )
}
