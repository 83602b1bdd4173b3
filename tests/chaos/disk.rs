//! A disk with little room: a tmpfs in a mount namespace of its own, which the kernel removes with the process that
//! keeps it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::standby::account;
use crate::world::{START, eventually};

/// What is on it beside the server's files.
const FILLER: &str = "filler";

pub(crate) struct SmallDisk {
    root: PathBuf,
    _keeper: Child,
}

impl SmallDisk {
    /// As root, and on a thread that lives as long as the disk is to.
    pub(crate) async fn of(megabytes: u32) -> Self {
        let (uid, gid) = account().expect("this needs root");
        // Its root is open to the server, whose account it runs as.
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs -o size={megabytes}m,uid={uid},gid={gid},mode=700 disk /mnt && \
             exec setpriv --reuid {uid} --regid {gid} --clear-groups --pdeathsig KILL sleep infinity"
        );
        let mut keeper = Command::new("unshare");
        keeper.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let keeper = keeper.spawn().expect("unshare");
        let of_it = format!("/proc/{}", keeper.id().expect("it runs"));
        eventually(START, "the disk is mounted", async || {
            let comm = std::fs::read_to_string(format!("{of_it}/comm")).map_err(|e| e.to_string())?;
            if comm.trim_end() == "sleep" { Ok(()) } else { Err(comm) }
        })
        .await;
        Self { root: Path::new(&of_it).join("root/mnt"), _keeper: keeper }
    }

    /// A new directory on it, for the server.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let directory = self.root.join(name);
        std::fs::create_dir(&directory).expect("a directory");
        let (uid, gid) = account().expect("this needs root");
        std::os::unix::fs::chown(&directory, Some(uid), Some(gid)).expect("chown");
        directory
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.root.join(FILLER)).expect("a file");
        let full = loop {
            if let Err(e) = filler.write_all(&[0; 4096]) {
                break e;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    /// Gives that room back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.root.join(FILLER)).expect("removed");
    }
}
