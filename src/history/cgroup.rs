//! The cgroup of this process, and how many processes of it the kernel has killed for lack of memory.
//!
//! A process that is killed so cannot say it. But if a supervisor starts the next process in the same cgroup, that one
//! finds that the count has grown. A container that is started again has another cgroup, and this shows nothing.
//!
//! [`places`] finds the directories. The samples read memory and processors from them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What a session keeps of the cgroup of its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cgroup {
    /// Names the cgroup: the host's boot and the cgroup's inode. The path would not do, because each container may see
    /// its own cgroup as `/`.
    id: String,
    /// How many processes of the cgroup were killed for lack of memory, so far.
    oom_kills: i64,
}

/// Reads it. `None`: the system does not show it.
pub(crate) fn read() -> Option<Cgroup> {
    read_at(Path::new("/"))
}

fn read_at(root: &Path) -> Option<Cgroup> {
    let boot = fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).ok()?;
    let (folder, oom_kills) = places(root).iter().find_map(|place| {
        let (folder, file) = match place {
            Place::V2(folder) => (folder, "memory.events"),
            Place::Memory(folder) => (folder, "memory.oom_control"),
            Place::Cpu(_) => return None,
        };
        Some((folder.clone(), count(&fs::read_to_string(folder.join(file)).ok()?)?))
    })?;
    let inode = fs::metadata(&folder).ok()?.ino();
    Some(Cgroup { id: format!("{}/{inode}", boot.trim()), oom_kills })
}

/// The directory of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    V2(PathBuf),
    /// Of version 1: the memory controller's.
    Memory(PathBuf),
    /// Of version 1: the processor controller's.
    Cpu(PathBuf),
}

/// The cgroups of this process, and those around them, the inner ones first. Inside a container the outer ones cannot be seen, and the path
/// may name a directory that is not there: then the root of the mount is the container's own.
pub(super) fn places(root: &Path) -> Vec<Place> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mount = root.join("sys/fs/cgroup");
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, kind): (PathBuf, fn(PathBuf) -> Place) = match controllers {
            "" => (mount.clone(), Place::V2),
            _ if controllers.split(',').any(|c| c == "memory") => (mount.join("memory"), Place::Memory),
            _ if controllers.split(',').any(|c| c == "cpu") => (mount.join("cpu"), Place::Cpu),
            _ => continue,
        };
        let inner = Path::new(path.trim_start_matches('/'));
        // `..` is how a path outside of the namespace shows.
        let inner = if inner.components().any(|c| c.as_os_str() == "..") { Path::new("") } else { inner };
        found.extend(inner.ancestors().map(|path| kind(mount.join(path))));
    }
    found
}

/// The line `oom_kill N`.
fn count(events: &str) -> Option<i64> {
    let words = events.lines().filter_map(|line| line.split_once(' '));
    words.into_iter().find(|(word, _)| *word == "oom_kill").and_then(|(_, count)| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(cgroup: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let boot = ("proc/sys/kernel/random/boot_id", "b007\n");
        for (path, text) in files.iter().chain([&boot, &("proc/self/cgroup", cgroup)]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn inode(root: &tempfile::TempDir, path: &str) -> u64 {
        fs::metadata(root.path().join(path)).unwrap().ino()
    }

    #[test]
    fn the_cgroup_is_found_in_both_versions_and_in_a_container() {
        let events = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n";
        let cases = [
            ("0::/a.slice/b.service\n", "sys/fs/cgroup/a.slice/b.service", "memory.events", events),
            ("0::/\n", "sys/fs/cgroup", "memory.events", events),
            ("0::/host/only/path\n", "sys/fs/cgroup", "memory.events", events),
            (
                "9:cpu:/x\n4:memory:/m/n\n0::/u\n",
                "sys/fs/cgroup/memory/m/n",
                "memory.oom_control",
                "under_oom 0\noom_kill 2\n",
            ),
        ];
        for (cgroup, folder, file, text) in cases {
            let root = root(cgroup, &[(&format!("{folder}/{file}"), text)]);
            let found = read_at(root.path()).unwrap();
            assert_eq!(found, Cgroup { id: format!("b007/{}", inode(&root, folder)), oom_kills: 2 }, "{cgroup}");
        }
    }

    #[test]
    fn a_system_that_does_not_show_it_is_none_and_no_error() {
        for (cgroup, files) in [
            ("", vec![]),
            ("0::/a\n", vec![]),
            ("0::/a\n", vec![("sys/fs/cgroup/a/memory.events", "oom 1\n")]),
            ("0::/a\n", vec![("sys/fs/cgroup/a/memory.events", "oom_kill x\n")]),
            ("no colons", vec![("sys/fs/cgroup/memory.events", "oom_kill 1\n")]),
        ] {
            assert_eq!(read_at(root(cgroup, &files).path()), None, "{cgroup} {files:?}");
        }
    }
}
