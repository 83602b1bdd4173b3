//! What the process and its machine use: processor time and memory.
//!
//! Read from `/proc` and `/sys/fs/cgroup` on Linux. Elsewhere only the processors are known. The files are of the kernel's
//! memory, so reading them waits for no disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::history::cgroup::{Place, places};
use crate::membership::clock;
use crate::protocol::Moment;

/// How the memory is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Memory {
    /// 0 to 1.
    pub(super) pressure: f32,
    /// In bytes.
    pub(super) available: u64,
}

impl Memory {
    fn of(used: u64, whole: u64) -> Option<Self> {
        let used = used.min(whole);
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share needs few digits")]
        (whole > 0).then(|| Self { pressure: (used as f64 / whole as f64) as f32, available: whole - used })
    }
}

/// Measures the processor time between two looks.
#[derive(Debug)]
pub(super) struct Processors {
    used: Duration,
    at: Moment,
}

impl Processors {
    pub(super) fn new() -> Self {
        Self { used: processor_time(), at: clock::now() }
    }

    /// The share of the processors that the process may use, which it used since the last look.
    pub(super) fn share(&mut self) -> Option<f32> {
        let before = std::mem::replace(self, Self::new());
        let elapsed = self.at.saturating_sub(before.at).as_secs_f64();
        let used = self.used.saturating_sub(before.used).as_secs_f64();
        let share = used / elapsed / allowed(&places(Path::new("/")))?;
        #[expect(clippy::cast_possible_truncation, reason = "a share needs few digits")]
        share.is_finite().then_some(share.clamp(0.0, 1.0) as f32)
    }
}

/// The processor time of all threads of this process.
fn processor_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// How many processors the process may use. Less than one is possible: half of one, by the quota of a cgroup.
fn allowed(cgroups: &[Place]) -> Option<f64> {
    let whole = f64::from(u32::try_from(std::thread::available_parallelism().ok()?.get()).ok()?);
    Some(cgroups.iter().filter_map(Place::quota).fold(whole, f64::min))
}

/// Of all cgroups around the process that have a memory limit, the one that is fullest. Without a limit: the host.
pub(super) fn memory() -> Option<Memory> {
    memory_below(Path::new("/"))
}

/// The fullest counts, because the kernel kills at the limit that is reached first.
fn memory_below(root: &Path) -> Option<Memory> {
    let host = host(&fs::read_to_string(root.join("proc/meminfo")).ok()?)?;
    let limited = places(root).into_iter().filter_map(|cgroup| cgroup.memory(host.0));
    limited.max_by(|a, b| a.pressure.total_cmp(&b.pressure)).or_else(|| Memory::of(host.0 - host.1.min(host.0), host.0))
}

/// The bytes of the host's memory, and how many of them are available, from `/proc/meminfo`.
fn host(text: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((bytes("MemTotal")?, bytes("MemAvailable")?))
}

impl Place {
    /// How its memory is used, if it has a limit below what the host has.
    fn memory(&self, host: u64) -> Option<Memory> {
        let (dir, [limit, usage, inactive]) = match self {
            Self::V2(dir) => (dir, ["memory.max", "memory.current", "inactive_file"]),
            Self::Memory(dir) => (dir, ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]),
            Self::Cpu(_) => return None,
        };
        let limit = number(&dir.join(limit))?;
        if limit >= host {
            return None;
        }
        // The kernel drops files that nobody uses before it kills.
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok()).unwrap_or(0);
        Memory::of(number(&dir.join(usage))?.saturating_sub(inactive), limit)
    }

    /// How many processors its processes may use together, if that is limited.
    fn quota(&self) -> Option<f64> {
        let (quota, period): (f64, f64) = match self {
            Self::V2(dir) => {
                let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            Self::Cpu(dir) => {
                let read = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok();
                (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
            }
            Self::Memory(_) => return None,
        };
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    }
}

/// The number in a file. `None`: there is none, as with `max`, or no such file.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal:        1000 kB\nMemFree:  1 kB\nMemAvailable:     250 kB\n");
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn seen(files: &[(&str, &str)]) -> Option<(f32, u64)> {
        memory_below(root(files).path()).map(|memory| (memory.pressure, memory.available))
    }

    #[test]
    fn the_limit_of_a_cgroup_counts_and_without_one_the_hosts_memory() {
        assert_eq!(seen(&[]), Some((0.75, 250 * 1024)), "no cgroup");
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let unlimited = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(seen(&[v2, unlimited]), Some((0.75, 250 * 1024)), "no limit");
        let limit = ("sys/fs/cgroup/a/b/memory.max", "1000\n");
        let usage = ("sys/fs/cgroup/a/b/memory.current", "900\n");
        assert_eq!(seen(&[v2, limit, usage]), Some((0.9, 100)));
        let stat = ("sys/fs/cgroup/a/b/memory.stat", "anon 1\ninactive_file 400\n");
        assert_eq!(seen(&[v2, limit, usage, stat]), Some((0.5, 500)), "files that nobody uses are available");
        let outer = [("sys/fs/cgroup/a/memory.max", "2000"), ("sys/fs/cgroup/a/memory.current", "1900")];
        assert_eq!(seen(&[v2, limit, usage, outer[0], outer[1]]), Some((0.95, 100)), "the tighter one kills");
        let beyond = ("sys/fs/cgroup/a/b/memory.max", "9223372036854771712");
        assert_eq!(seen(&[v2, beyond, usage]), Some((0.75, 250 * 1024)), "more than there is");
    }

    #[test]
    fn a_path_that_is_not_there_is_that_of_the_mount() {
        let files = [("sys/fs/cgroup/memory.max", "1000"), ("sys/fs/cgroup/memory.current", "250")];
        for path in ["0::/", "0::/not/there", "0::/../outside", "garbage\n0::/"] {
            assert_eq!(seen(&[("proc/self/cgroup", path), files[0], files[1]]), Some((0.25, 750)), "{path}");
        }
    }

    #[test]
    fn version_1_is_read_too() {
        let of = ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/x\n");
        let files = [
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "600"),
            ("sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
        ];
        assert_eq!(seen(&[of, files[0], files[1], files[2]]), Some((0.5, 500)));
        let quota =
            [("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000"), ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000")];
        assert_eq!(allowed(&places(root(&[of, quota[0], quota[1]]).path())), Some(0.5));
    }

    #[test]
    fn a_quota_below_the_processors_counts() {
        let of = ("proc/self/cgroup", "0::/x\n");
        let allowed_with = |max: &str| allowed(&places(root(&[of, ("sys/fs/cgroup/x/cpu.max", max)]).path())).unwrap();
        let all = allowed(&[]).unwrap();
        assert!(all >= 1.0);
        assert_eq!((allowed_with("25000 100000"), allowed_with("max 100000")), (0.25, all));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_memory_and_processors() {
        let memory = memory().unwrap();
        assert!((0.0..=1.0).contains(&memory.pressure) && memory.available > 0, "{memory:?}");
        let mut processors = Processors::new();
        let began = clock::now();
        while clock::now() < began + Duration::from_millis(30) {}
        assert!(processors.share().is_some_and(|share| share > 0.0 && share <= 1.0));
    }
}
