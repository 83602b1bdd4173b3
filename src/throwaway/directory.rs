//! The temporary directory of a server, the proof that its owner lives, and the watchdog that removes the directory.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::ThrowawayError;
use super::install::Account;

/// The beginning of every directory's name. The rest is random letters and digits.
const PREFIX: &str = "podlock-throwaway-";
/// The file that the owner locks for as long as it lives.
const OWNER_LOCK: &str = "owner.lock";
/// The script that ends a server and removes its directory when its standard input ends. Its first lines say more.
const WATCHDOG: &str = include_str!("watchdog.sh");

/// How much of a log an error quotes, in bytes: the last thirty lines or so. The cause is at the end.
const QUOTED: usize = 4096;

/// A server's directory. Dropping it ends all processes that still run there, and removes it.
pub(super) struct Directory {
    /// Removes the directory if the watchdog failed.
    root: TempDir,
    /// The cluster. It is empty at first, and belongs to the server's account.
    pub(super) data: PathBuf,
    /// The directory of the unix socket. It belongs to the server's account.
    pub(super) socket: PathBuf,
    /// The server's log. It does not exist before the first start.
    pub(super) log: PathBuf,
    watchdog: Child,
    /// Held, not read. The lock ends with the process.
    _owner_lock: File,
}

impl Directory {
    /// Makes the directory with its watchdog, for a server that runs as `account`, or as the current user.
    pub(super) fn create(account: Option<Account>) -> Result<Self, ThrowawayError> {
        let root = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(io_error("make a temporary directory", &std::env::temp_dir()))?;
        let path = root.path();

        let lock_path = path.join(OWNER_LOCK);
        let owner_lock = lock_owned(&lock_path).map_err(io_error("make and lock a file", &lock_path))?;
        let watchdog =
            watchdog(path, Stdio::piped()).spawn().map_err(io_error("start the watchdog", Path::new("sh")))?;
        let directory = Self {
            data: path.join("data"),
            socket: path.join("socket"),
            log: path.join("server.log"),
            watchdog,
            _owner_lock: owner_lock,
            root,
        };

        if let Some(account) = account {
            // The group may enter the directory, but not list it.
            let path = directory.root.path();
            let doing = "let the server's account enter a directory";
            chown(path, None, Some(account.gid)).map_err(io_error(doing, path))?;
            fs::set_permissions(path, Permissions::from_mode(0o710)).map_err(io_error(doing, path))?;
        }
        for path in [&directory.data, &directory.socket] {
            DirBuilder::new().mode(0o700).create(path).map_err(io_error("make a directory", path))?;
            directory.give_to(account, path)?;
        }
        Ok(directory)
    }

    /// The directory itself.
    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The directory's name, which the server's processes also have in their command lines. It is random, and plain
    /// ASCII.
    pub(super) fn name(&self) -> String {
        name_of(self.root.path())
    }

    /// Writes a file that only the server's account (and root) can read.
    pub(super) fn write_private(
        &self,
        account: Option<Account>,
        name: &str,
        text: &str,
    ) -> Result<PathBuf, ThrowawayError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.root.path().join(name);
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io_error("write a file", &path))?;
        self.give_to(account, &path)?;
        Ok(path)
    }

    fn give_to(&self, account: Option<Account>, path: &Path) -> Result<(), ThrowawayError> {
        match account {
            Some(Account { uid, gid }) => {
                chown(path, Some(uid), Some(gid)).map_err(io_error("give a file to the server's account", path))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The watchdog removes the directory when its input ends. Nothing else does, so the same code runs every time.
        drop(self.watchdog.stdin.take());
        if let Err(error) = self.watchdog.wait() {
            tracing::warn!(
                %error, directory = %self.root.path().display(),
                "could not wait for a throwaway server's watchdog"
            );
        }
    }
}

/// Removes the directories of servers whose owner and watchdog are both gone, for example after a power cut.
///
/// A directory is stale if its `owner.lock` can be locked and is not empty. The owner fills the file only when it has
/// the lock, and loses the lock only by dying. This works across process namespaces, and with reused process ids. If an
/// owner died before it filled the file, its directory is left alone. A directory that cannot be removed is left for
/// the next start.
pub(super) fn remove_stale() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if let Some(_lock) = stale(&path) {
            tracing::info!(
                directory = %path.display(),
                "removing a throwaway server's directory that nobody owns any more"
            );
            if let Err(error) = watchdog(&path, Stdio::null()).status() {
                tracing::warn!(%error, directory = %path.display(), "could not remove it");
            }
        }
    }
}

/// The lock of a directory without a living owner. `None` if the owner lives, or the directory is not ours.
fn stale(path: &Path) -> Option<File> {
    if !path.file_name()?.as_bytes().starts_with(PREFIX.as_bytes()) {
        return None;
    }
    // Temporary directories are shared. A link, or another user's directory, is left alone.
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let mut lock = File::open(path.join(OWNER_LOCK)).ok()?;
    lock.try_lock().ok()?;
    let mut owner = String::new();
    lock.read_to_string(&mut owner).ok()?;
    (!owner.is_empty()).then_some(lock)
}

/// Makes the file, locks it, and then writes this process's id into it.
fn lock_owned(path: &Path) -> io::Result<File> {
    let mut file = File::create_new(path)?;
    file.lock()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// The watchdog of `directory`. It is not in our process group, so that a Ctrl-C does not reach it.
fn watchdog(directory: &Path, input: Stdio) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", WATCHDOG, "watchdog", &name_of(directory)])
        .arg(directory)
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}

fn name_of(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The text of the log from byte `start` on, at most the last [`QUOTED`] bytes. Empty if it cannot be read.
pub(super) fn end_of_log(path: &Path, start: u64) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => end_of(&bytes),
        Err(error) => format!("(the log {} cannot be read: {error})", path.display()),
    }
}

/// The last [`QUOTED`] bytes, from the start of a line.
fn end_of(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(QUOTED)..];
    let text = String::from_utf8_lossy(tail);
    let text = if tail.len() < bytes.len() { text.split_once('\n').map_or(&*text, |(_, rest)| rest) } else { &*text };
    text.trim_end().to_owned()
}

/// For `map_err`: adds what was tried, and on which path.
pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ThrowawayError {
    move |source| ThrowawayError::Io { doing, path: path.to_path_buf(), source }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_stale_only_without_its_owner() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join(format!("{PREFIX}test"));
        fs::create_dir(&path).expect("a directory");
        assert!(stale(&path).is_none(), "no lock file yet");

        let lock_path = path.join(OWNER_LOCK);
        let owner = lock_owned(&lock_path).expect("a lock");
        assert!(stale(&path).is_none(), "its owner lives");
        drop(owner);
        // A process that another test starts has the lock as well, from its fork until its exec.
        let is_stale = || {
            stale(&path).is_some() || {
                std::thread::sleep(std::time::Duration::from_millis(10));
                false
            }
        };
        assert!((0..1000).any(|_| is_stale()), "its owner is gone");

        fs::write(&lock_path, "").expect("an empty file");
        assert!(stale(&path).is_none(), "its owner is between making and locking the file");
        fs::write(&lock_path, "1\n").expect("a file");
        let other = parent.path().join("other");
        fs::rename(&path, &other).expect("a rename");
        assert!(stale(&other).is_none(), "not a name of ours");
        std::os::unix::fs::symlink(&other, &path).expect("a link");
        assert!(stale(&path).is_none(), "a link");
    }

    #[test]
    fn a_quoted_log_ends_with_its_end_and_starts_with_a_line() {
        assert_eq!(end_of(b"one\ntwo\n"), "one\ntwo");
        let long = (0..2000).map(|n| format!("line {n}\n")).collect::<String>();
        let end = end_of(long.as_bytes());
        assert!(end.len() <= QUOTED && end.starts_with("line ") && end.ends_with("line 1999"), "{end}");
    }
}
