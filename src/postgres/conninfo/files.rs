//! libpq's two files: connection services, and passwords.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::words::Values;
use crate::config::Environment;
use crate::error::{Error, ErrorKind, Result};

/// What the service `name` says, from `servicefile`, `~/.pg_service.conf` or the system's `pg_service.conf`.
pub(super) fn service(name: &str, servicefile: Option<&str>, environment: &Environment) -> Result<Values> {
    let home = environment.get("HOME").map(|home| Path::new(home).join(".pg_service.conf"));
    let user = servicefile.map(PathBuf::from).or(home);
    // What nobody named is passed over where it cannot be read, as by libpq.
    let is_named = |file: &Path| servicefile.map(Path::new) == Some(file);
    let system = environment.get("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common");
    for file in user.into_iter().chain([Path::new(system).join("pg_service.conf")]) {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(_) if !is_named(&file) => continue,
            Err(e) => return Err(unreadable("service file", &file, e)),
        };
        if let Some(values) = section(&text, name, &file)? {
            return Ok(values);
        }
    }
    Err(Error::new(ErrorKind::Config, format!("no service file has the service {name:?}"))
        .left("nothing was started")
        .todo("define it in ~/.pg_service.conf, or name the file by PGSERVICEFILE"))
}

fn section(text: &str, name: &str, file: &Path) -> Result<Option<Values>> {
    let mut values = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            if values.is_some() {
                break;
            }
            values = (header.strip_suffix(']') == Some(name)).then(Values::default);
            continue;
        }
        let Some(values) = &mut values else { continue };
        let source = format!("service {name:?} of {}", file.display());
        match line.split_once('=').map(|(word, value)| (word.trim(), value.trim())) {
            Some((word, value)) if !matches!(word, "service" | "servicefile") => {
                values.set(&source, true, word, value.to_owned())?
            }
            _ => {
                return Err(Error::new(ErrorKind::Config, format!("{source} has a line that cannot be read"))
                    .left("nothing was started")
                    .todo("each line is word=value, and no service may name another"));
            }
        }
    }
    Ok(values)
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

/// The password for `login`, read anew each time, since it may have been changed. A file that is not there has none.
pub(super) fn password(file: &Passfile, login: Login<'_>) -> Result<Option<SecretString>> {
    match read_password(&file.path, login) {
        Err(e) if !file.named => {
            tracing::debug!(target: "podlock", error = %e, "the usual password file is passed over");
            Ok(None)
        }
        found => found,
    }
}

fn read_password(file: &Path, login: Login<'_>) -> Result<Option<SecretString>> {
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
    let text = std::fs::read_to_string(file).map_err(|e| unreadable("password file", file, e))?;
    let port = login.port.to_string();
    let wanted = [login.host, &port, login.dbname, login.user];
    let found = text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = split_entry(line);
        let [host, port, dbname, user, password, ..] = fields.as_slice() else { return None };
        let matches = |(field, wanted): (&String, &str)| field == "*" || field == wanted;
        [host, port, dbname, user].into_iter().zip(wanted).all(matches).then(|| SecretString::from(password.clone()))
    });
    Ok(found)
}

/// `host:port:database:user:password`, with `\:` and `\\`. What comes after a fifth colon is of no account.
fn split_entry(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            ':' => fields.push(String::new()),
            '\\' => fields[last].extend(chars.next()),
            c => fields[last].push(c),
        }
    }
    fields
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
        .left("no connection was made")
        .todo("correct its name or who may read it")
        .caused_by(error)
}

fn too_open(what: &str, file: &Path, metadata: &Metadata) -> Error {
    let mode = metadata.permissions().mode() & 0o777;
    Error::new(ErrorKind::Config, format!("{what} {} may be read by others (mode {mode:04o})", file.display()))
        .left("no connection was made")
        .todo(format!("chmod 0600 {}", file.display()))
}
