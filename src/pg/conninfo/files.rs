//! libpq's two files: connection services, and passwords.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::SecretSlice;

use super::words::Values;
use crate::error::{Error, ErrorKind, Result};
use crate::pg::credentials::Environment;

/// From this length on, its end included, libpq refuses a line of a service file.
const SERVICE_LINE_MAX: usize = 1023;

/// What the service `name` says, from `servicefile`, `~/.pg_service.conf` or the system's `pg_service.conf`.
pub(super) fn service(name: &str, servicefile: Option<&str>, environment: &Environment) -> Result<Values> {
    let home = environment.get("HOME").map(|home| Path::new(home).join(".pg_service.conf"));
    let user = servicefile.map(PathBuf::from).or(home);
    // What nobody named is passed over where it cannot be read, as by libpq.
    let is_named = |file: &Path| servicefile.map(Path::new) == Some(file);
    let system = environment.get("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common");
    for file in user.into_iter().chain([Path::new(system).join("pg_service.conf")]) {
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(_) if !is_named(&file) => continue,
            Err(e) => return Err(unreadable("service file", &file, e)),
        };
        if let Some(values) = section(&text, name, &file)? {
            return Ok(values);
        }
    }
    Err(Error::new(ErrorKind::Config, format!("no service file has the service {name:?}"))
        .state("nothing was started")
        .help("define it in ~/.pg_service.conf, or name the file by PGSERVICEFILE"))
}

/// The section `name`, read as libpq reads it. Bytes outside the section are never looked at. No space may stand
/// before or after `=`. If a word is repeated, its first value counts.
fn section(text: &[u8], name: &str, file: &Path) -> Result<Option<Values>> {
    let mut values = None;
    for (index, raw) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let fault = |what: &str| {
            let place = format!("line {} of service file {}", index + 1, file.display());
            Error::new(ErrorKind::Config, format!("{place} (service {name:?}) {what}")).state("nothing was started")
        };
        if raw.len() >= SERVICE_LINE_MAX {
            return Err(fault("is too long").help(format!("libpq reads at most {SERVICE_LINE_MAX} bytes a line")));
        }
        let line = trim(raw);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some(header) = line.strip_prefix(b"[") {
            if values.is_some() {
                break;
            }
            // As libpq: what stands behind the bracket is of no account.
            let is_it = header.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"]"));
            values = is_it.then(Values::default);
            continue;
        }
        let Some(values) = &mut values else { continue };
        let line = std::str::from_utf8(line)
            .map_err(|e| fault("is not UTF-8").help("podlock sends what it says as UTF-8").caused_by(e))?;
        match line.split_once('=') {
            Some((word, value)) if !matches!(word, "service" | "servicefile") => {
                let source = format!("service {name:?} of {}", file.display());
                values.set_first(&source, true, word, value)?;
            }
            _ => return Err(fault("cannot be read").help("each line is word=value, and no service may name another")),
        }
    }
    Ok(values)
}

/// Without the white space of C's `isspace` at both ends.
fn trim(line: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let start = line.iter().position(|byte| !is_space(byte)).unwrap_or(line.len());
    let end = line.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &line[start..end]
}

/// What is looked up in a password file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Login<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) dbname: &'a str,
    pub(super) user: &'a str,
}

/// A password file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passfile {
    pub(super) path: PathBuf,
    /// Somebody named it. What nobody named is passed over where it cannot be used, as by libpq.
    pub(super) named: bool,
}

/// The password for `login`, in bytes: a password file is no text. Read again each time, since it may have been
/// changed. A file that is not there has none.
pub(super) fn password(file: &Passfile, login: Login<'_>) -> Result<Option<SecretSlice<u8>>> {
    match read_password(&file.path, login) {
        Err(e) if !file.named => {
            tracing::debug!(target: "podlock", error = %e, "the usual password file is passed over");
            Ok(None)
        }
        found => found,
    }
}

fn read_password(file: &Path, login: Login<'_>) -> Result<Option<SecretSlice<u8>>> {
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable("password file", file, e)),
    };
    // As libpq: what is no plain file is passed over, as somebody's /dev/null.
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(too_open("password file", file, &metadata));
    }
    let text = std::fs::read(file).map_err(|e| unreadable("password file", file, e))?;
    Ok(entry(&text, login).map(SecretSlice::from))
}

/// The password of the first entry that fits, `host:port:database:user:password`. An empty one is none, as for libpq.
fn entry(text: &[u8], login: Login<'_>) -> Option<Vec<u8>> {
    let port = login.port.to_string();
    let wanted = [login.host, &port, login.dbname, login.user];
    let fits = |line| wanted.into_iter().try_fold(line, |rest, wanted| after_field(rest, wanted.as_bytes()));
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"#"));
    let found = lines.map(without_returns).find_map(fits)?;
    Some(unescape(found)).filter(|password| !password.is_empty())
}

fn without_returns(mut line: &[u8]) -> &[u8] {
    while let Some(shorter) = line.strip_suffix(b"\r") {
        line = shorter;
    }
    line
}

/// What comes after the first field of `line`, if that is `wanted` or a bare `*`. An escaped `\*` is an asterisk.
fn after_field<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let mut wanted = wanted.iter();
    let mut bytes = line.iter().enumerate();
    loop {
        let byte = match bytes.next()? {
            // As in libpq, a colon ends the field only where it may: `::1` fits without escapes.
            (at, b':') if wanted.as_slice().is_empty() => return Some(&line[at + 1..]),
            (_, b'\\') => bytes.next()?.1,
            (_, byte) => byte,
        };
        if wanted.next() != Some(byte) {
            return None;
        }
    }
}

/// The field up to the next colon, without its escapes. What comes after that colon is of no account.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b':' => break,
            // One at the very end stands for itself.
            b'\\' => plain.push(bytes.next().copied().unwrap_or(b'\\')),
            byte => plain.push(byte),
        }
    }
    plain
}

/// Refuses a private key that others may read: of our own, anybody else; of root's, more than its group.
pub(crate) fn check_private(file: &Path) -> Result<()> {
    let metadata = std::fs::metadata(file).map_err(|e| unreadable("sslkey", file, e))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.is_file() && metadata.permissions().mode() & forbidden != 0 {
        return Err(too_open("sslkey", file, &metadata));
    }
    Ok(())
}

/// The contents of a file that a word names.
pub(crate) fn read(word: &str, file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|e| unreadable(word, file, e))
}

fn unreadable(what: &str, file: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("{what} {} cannot be read: {error}", file.display()))
        .state("no connection was made")
        .help("correct its name or who may read it")
        .caused_by(error)
}

fn too_open(what: &str, file: &Path, metadata: &Metadata) -> Error {
    let mode = metadata.permissions().mode() & 0o777;
    Error::new(ErrorKind::Config, format!("{what} {} may be read by others (mode {mode:04o})", file.display()))
        .state("no connection was made")
        .help(format!("chmod 0600 {}", file.display()))
}
