//! Makes a new cluster: its superuser, its settings, and `initdb`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::Path;

use super::ThrowawayError;
use super::directory::{Directory, end_of_log, io_error};
use super::install::Account;
use super::process::server_program;
use super::supervisor::Facts;

/// The superuser of every throwaway server.
pub(super) const SUPERUSER: &str = "podlock";

/// Settings that the launcher itself passes to the server. A caller may not set them.
const OWNED_SETTINGS: &[&str] = &[
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "port",
    "unix_socket_directories",
];

/// The settings of every server, unless the builder sets others.
const DEFAULT_SETTINGS: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "on"),
    ("max_connections", "300"),
    ("shared_buffers", "64MB"),
    ("autovacuum", "on"),
    ("log_lock_waits", "on"),
    ("deadlock_timeout", "1s"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("dynamic_shared_memory_type", "mmap"),
];

/// Refuses settings that would break the file's syntax, or on which the launcher depends. Nothing has been created yet
/// then.
pub(super) fn check_settings(settings: &[(String, String)]) -> Result<(), ThrowawayError> {
    for (name, value) in settings {
        let valid_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        let reason = if !valid_name {
            "it is not the name of a setting (letters, digits, `_`, `.`)"
        } else if OWNED_SETTINGS.iter().any(|owned| name.eq_ignore_ascii_case(owned)) {
            "the launcher sets it itself"
        } else if value.contains('\0') {
            "its value contains a NUL byte"
        } else {
            continue;
        };
        return Err(ThrowawayError::SettingRefused { name: name.clone(), reason });
    }
    Ok(())
}

/// Makes the cluster, and writes its settings.
pub(super) fn create(
    directory: &Directory,
    facts: &Facts,
    account: Option<Account>,
    settings: &[(String, String)],
) -> Result<(), ThrowawayError> {
    let password_file = directory.write_private(account, "password", &facts.password)?;
    let log_path = directory.root().join("initdb.log");
    let log = File::create_new(&log_path).map_err(io_error("make a file", &log_path))?;
    let errors = log.try_clone().map_err(io_error("make a file", &log_path))?;
    let program = facts.bin_dir.join("initdb");
    // `initdb` always runs to its end, whatever happens to us, and the watchdog waits for it: if killed half-way, it
    // leaves shared memory behind. So its output goes to a file, and not to a pipe that would break with us.
    let status = server_program(&program, account)
        .args(["--no-sync", "--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256"])
        .arg(format!("--username={SUPERUSER}"))
        .arg(path_option("--pwfile=", &password_file))
        .arg(path_option("--pgdata=", &facts.data_dir))
        .current_dir(directory.root())
        .stdout(log)
        .stderr(errors)
        .status()
        .map_err(io_error("run", &program))?;
    fs::remove_file(&password_file).map_err(io_error("remove a file", &password_file))?;
    if !status.success() {
        return Err(ThrowawayError::InitDb {
            data_dir: facts.data_dir.clone(),
            status: status.to_string(),
            output: end_of_log(&log_path, 0),
        });
    }

    let path = facts.data_dir.join("postgresql.conf");
    let defaults = DEFAULT_SETTINGS.iter().map(|&(name, value)| setting_line(name, value));
    let given = settings.iter().map(|(name, value)| setting_line(name, value));
    let lines: String = defaults.chain(given).collect();
    File::options()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .map_err(io_error("write the server's settings", &path))
}

/// Lets clients log in from everywhere, with the password, if the server listens on other addresses than 127.0.0.1.
pub(super) fn admit(facts: &Facts, addresses: &[IpAddr]) -> Result<(), ThrowawayError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let path = facts.data_dir.join("pg_hba.conf");
    File::options()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(b"host all all all scram-sha-256\n"))
        .map_err(io_error("write who may connect to the server", &path))
}

/// A line of `postgresql.conf`.
fn setting_line(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r");
    format!("{name} = '{value}'\n")
}

/// 128 random bits in hexadecimal, from the kernel.
pub(super) fn random_password() -> Result<String, ThrowawayError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(io_error("read", path))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// An option whose value is a path. The path need not be UTF-8.
pub(super) fn path_option(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_the_launcher_owns_are_refused_in_any_case() {
        let refused = |name: &str, value: &str| check_settings(&[(name.to_owned(), value.to_owned())]).is_err();
        assert!(refused("port", "5432"));
        assert!(refused("Port", "5432"));
        assert!(refused("listen_addresses", "*"));
        assert!(refused("", "on"));
        assert!(refused("fsync = on\nport", "1"));
        assert!(refused("1abc", "1"));
        assert!(refused("fsync", "a\0b"));
        assert!(!refused("fsync", "on"));
        assert!(!refused("my.setting_1", "any ' value \\ \n"));
    }

    #[test]
    fn a_setting_keeps_its_value_through_the_quoting() {
        assert_eq!(setting_line("fsync", "off"), "fsync = 'off'\n");
        assert_eq!(setting_line("a.b", "it's\\\n"), "a.b = 'it''s\\\\\\n'\n");
    }
}
