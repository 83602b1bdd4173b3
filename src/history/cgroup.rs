//! The cgroup of this process, and how many processes of it the kernel has killed for lack of memory.
//!
//! A process that is killed so cannot say it. But if a supervisor starts the next process in the same cgroup, that one
//! finds that the count has grown. A container that is started again has another cgroup, and this shows nothing.

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
    let text = |path: &str| fs::read_to_string(root.join(path)).ok();
    let boot = text("proc/sys/kernel/random/boot_id")?;
    let (folder, file) = memory_folder(&text("proc/self/cgroup")?)?;
    // Where a container sees the path of its host, its own cgroup is the root of what is mounted.
    let below = root.join(&folder);
    let folder = if below.is_dir() { below } else { root.join(mount_of(&folder)) };
    let oom_kills = count(&fs::read_to_string(folder.join(file)).ok()?)?;
    let inode = fs::metadata(&folder).ok()?.ino();
    Some(Cgroup { id: format!("{}/{inode}", boot.trim()), oom_kills })
}

/// The folder of the cgroup that accounts for the memory, below the root of the file system, and the file with the count.
fn memory_folder(cgroups: &str) -> Option<(PathBuf, &'static str)> {
    let lines = || cgroups.lines().filter_map(|line| line.splitn(3, ':').collect::<Vec<_>>().try_into().ok());
    let below = |mount: &str, path: &str| Path::new(mount).join(path.trim_start_matches('/'));
    let first = lines().find(|[_, controllers, _]: &[&str; 3]| controllers.split(',').any(|c| c == "memory"));
    if let Some([.., path]) = first {
        return Some((below("sys/fs/cgroup/memory", path), "memory.oom_control"));
    }
    let [.., path] = lines().find(|[number, ..]| *number == "0")?;
    Some((below("sys/fs/cgroup", path), "memory.events"))
}

fn mount_of(folder: &Path) -> &'static str {
    if folder.starts_with("sys/fs/cgroup/memory") { "sys/fs/cgroup/memory" } else { "sys/fs/cgroup" }
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
