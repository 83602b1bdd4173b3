//! Finds the system's PostgreSQL: the directory of its server programs, and the account to run them as.

use std::cmp::Reverse;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ThrowawayError;

/// The environment variable that names the directory of `initdb` and `postgres`.
const BIN_DIR_VARIABLE: &str = "PODLOCK_PG_BIN";
/// Debian and Ubuntu have one directory per major version here.
const VERSIONS_DIR: &str = "/usr/lib/postgresql";
/// The account that the server runs as when this process is root.
const ACCOUNT: &str = "postgres";

/// A directory that has both programs of a server.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The directory of `initdb` and `postgres`.
    pub(super) bin_dir: PathBuf,
}

impl Installation {
    /// Uses `given`, or else the environment's directory. If one of these is set, nothing else is accepted. Otherwise
    /// searches the system.
    pub(super) fn find(given: Option<&Path>) -> Result<Self, ThrowawayError> {
        let named = match given {
            Some(directory) => Some(directory.to_path_buf()),
            None => env::var_os(BIN_DIR_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from),
        };
        if let Some(bin_dir) = named {
            return if has_server(&bin_dir) {
                Ok(Self { bin_dir })
            } else {
                Err(ThrowawayError::NoServer { searched: bin_dir.display().to_string() })
            };
        }

        let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
        newest_first(versions_installed())
            .into_iter()
            .map(|version| Path::new(VERSIONS_DIR).join(version).join("bin"))
            .chain(pg_config_bin_dir())
            .chain(on_path)
            .find(|candidate| has_server(candidate))
            .map(|bin_dir| Self { bin_dir })
            .ok_or_else(|| ThrowawayError::NoServer {
                searched: format!("{VERSIONS_DIR}/*/bin, the output of `pg_config --bindir` and PATH"),
            })
    }
}

/// A client-only package has the directory, but not these programs.
fn has_server(bin_dir: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| bin_dir.join(program).is_file())
}

/// The names in [`VERSIONS_DIR`]. Empty if there is no such directory.
fn versions_installed() -> Vec<String> {
    let Ok(entries) = fs::read_dir(VERSIONS_DIR) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Sorts versions by number, the newest first (10 before 9.6), and leaves out names that are not a version.
fn newest_first(names: Vec<String>) -> Vec<String> {
    let number = |name: &str| name.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    let mut versions: Vec<_> = names.into_iter().filter_map(|name| Some((number(&name)?, name))).collect();
    versions.sort_by_key(|(number, _)| Reverse(number.clone()));
    versions.into_iter().map(|(_, name)| name).collect()
}

/// The answer of `pg_config --bindir`. `None` if there is no `pg_config` or it fails.
fn pg_config_bin_dir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let directory = String::from_utf8(output.stdout).ok()?;
    let directory = directory.trim();
    (output.status.success() && !directory.is_empty()).then(|| PathBuf::from(directory))
}

/// The user and group that the server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    /// The numeric user id.
    pub(super) uid: u32,
    /// The numeric id of its primary group.
    pub(super) gid: u32,
}

impl Account {
    /// The account to switch to. `None`, for the current user, unless this process is root.
    pub(super) fn for_server() -> Result<Option<Self>, ThrowawayError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::parse(&passwd, ACCOUNT).map(Some).ok_or(ThrowawayError::NoAccount)
    }

    /// Finds `name` in the text of `/etc/passwd`. An entry with user id 0 is ignored: a server cannot run as root.
    fn parse(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            (uid != 0).then_some(Self { uid, gid })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_is_by_number_and_not_by_text() {
        let names = ["9.6", "15", "10", "9.10", "common", "", "17beta", "8"].map(str::to_owned).to_vec();
        assert_eq!(newest_first(names), ["15", "10", "9.10", "9.6", "8"]);
        assert_eq!(newest_first(Vec::new()), Vec::<String>::new());
    }

    #[test]
    fn passwd_is_looked_up_by_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n\
                      postgres2:x:7:7::/:/bin/sh\n\
                      postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(Account::parse(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(Account::parse(passwd, "nobody"), None);
    }

    #[test]
    fn passwd_entries_that_cannot_run_a_server_are_skipped() {
        assert_eq!(Account::parse("postgres:x:0:0::/:/bin/sh", "postgres"), None);
        assert_eq!(Account::parse("postgres:x:abc:104::/:/bin/sh", "postgres"), None);
        assert_eq!(Account::parse("postgres:x", "postgres"), None);
        assert_eq!(Account::parse("", "postgres"), None);
    }

    #[test]
    fn a_named_directory_without_a_server_is_an_error_and_not_a_search() {
        let error = Installation::find(Some(Path::new("/nonexistent"))).map(|found| found.bin_dir);
        assert!(matches!(error, Err(ThrowawayError::NoServer { searched }) if searched == "/nonexistent"));
    }
}
