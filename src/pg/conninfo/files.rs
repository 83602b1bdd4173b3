//! libpq's two files: the service file and the password file.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::SecretSlice;

use super::words::Values;
use crate::error::{Error, ErrorKind, Result};
use crate::pg::credentials::Environment;

/// libpq refuses a line of a service file that has this many bytes or more, with its line end.
const SERVICE_LINE_MAX: usize = 1023;

/// The values of the service `name`, from `servicefile`, `~/.pg_service.conf` or the system's `pg_service.conf`.
pub(super) fn service(name: &str, servicefile: Option<&str>, environment: &Environment) -> Result<Values> {
    let home = environment.get("HOME").map(|home| Path::new(home).join(".pg_service.conf"));
    let user = servicefile.map(PathBuf::from).or(home);
    // Like libpq, ignores a file that nobody named if it cannot be read.
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

/// Reads the section `name` as libpq does. Bytes outside the section are ignored. No space may stand before or after
/// `=`. If a word is repeated, its first value counts.
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
            // Like libpq, ignores text after the bracket.
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

/// Removes the white space of C's `isspace` at both ends.
fn trim(line: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let start = line.iter().position(|byte| !is_space(byte)).unwrap_or(line.len());
    let end = line.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &line[start..end]
}

/// The login for which a password is looked up in a password file.
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
    /// Somebody named the file. Like libpq, podlock ignores a file that nobody named if it cannot be used.
    pub(super) named: bool,
}

/// The password for `login`, in bytes: a password file need not be text. The file is read each time, since it may have
/// changed. A file that does not exist has no password.
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
    // Like libpq, ignores something that is not a plain file, such as /dev/null.
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(too_open("password file", file, &metadata));
    }
    let text = std::fs::read(file).map_err(|e| unreadable("password file", file, e))?;
    Ok(entry(&text, login).map(SecretSlice::from))
}

/// The password of the first entry that matches, `host:port:database:user:password`. An empty password counts as none,
/// as for libpq.
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

/// The rest of `line` after its first field, if that field is `wanted` or a bare `*`. An escaped `\*` is an asterisk.
fn after_field<'a>(line: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let mut wanted = wanted.iter();
    let mut bytes = line.iter().enumerate();
    loop {
        let byte = match bytes.next()? {
            // As in libpq, a colon ends the field only if the field is complete: `::1` matches without escapes.
            (at, b':') if wanted.as_slice().is_empty() => return Some(&line[at + 1..]),
            (_, b'\\') => bytes.next()?.1,
            (_, byte) => byte,
        };
        if wanted.next() != Some(byte) {
            return None;
        }
    }
}

/// The field up to the next colon, without its escapes. Text after that colon is ignored.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b':' => break,
            // A backslash at the very end is a backslash.
            b'\\' => plain.push(bytes.next().copied().unwrap_or(b'\\')),
            byte => plain.push(byte),
        }
    }
    plain
}

/// Refuses a private key that others may read: if the file is our own, anybody else; if it is root's, anybody outside
/// its group.
pub(crate) fn check_private(file: &Path) -> Result<()> {
    let metadata = std::fs::metadata(file).map_err(|e| unreadable("sslkey", file, e))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.is_file() && metadata.permissions().mode() & forbidden != 0 {
        return Err(too_open("sslkey", file, &metadata));
    }
    Ok(())
}

/// Reads a file that a word names.
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
