//! Finds and kills the descendants of a held command.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait, waitpid};

/// The pause between two checks for remaining descendants. A check reads `/proc`, so a shorter pause costs processor
/// time; a longer one delays the end of podlock.
const LOOK: Duration = Duration::from_millis(5);

/// From here on, a descendant whose parent dies becomes a child of this process.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Reaps a child that ended or stopped since the last call; `None`: no child did. [`NoChildren`]: there are no
/// children.
pub(super) fn reap(also: WaitOptions) -> io::Result<Result<Option<(Pid, WaitStatus)>, NoChildren>> {
    loop {
        match wait(WaitOptions::NOHANG | also) {
            Ok(ended) => return Ok(Ok(ended)),
            Err(Errno::CHILD) => return Ok(Err(NoChildren)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reaps the ended children that this process did not start. It adopts some as PID 1 of a container or as a subreaper.
/// Others existed before a shell became this process (`sleep 1 & exec podlock hold …`). Leaves `own` alone, because
/// another caller waits for its exit code.
pub(super) fn reap_others(own: Option<Pid>) -> io::Result<()> {
    for child in children()?.into_iter().filter(|child| Some(*child) != own) {
        match waitpid(Some(child), WaitOptions::NOHANG) {
            // If the child is gone, another caller has reaped it.
            Ok(_) | Err(Errno::CHILD | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// There are no children to wait for.
#[derive(Debug)]
pub(super) struct NoChildren;

/// Kills every descendant. Returns when none is left.
///
/// Only children are killed. Only their parent can reap them, so their process ids cannot belong to other processes. A
/// grandchild becomes a child when its parent is dead, even if it changed its process group or session. A process that
/// the kernel does not let die is waited for.
pub(super) fn kill_all(mut ended: impl FnMut(Pid, WaitStatus)) -> io::Result<()> {
    loop {
        loop {
            match reap(WaitOptions::empty())? {
                Ok(Some((pid, status))) => ended(pid, status),
                Ok(None) => break,
                Err(NoChildren) => return Ok(()),
            }
        }
        for child in children()? {
            // A child that has ended meanwhile still exists until it is reaped.
            let _ = kill_process(child, Signal::KILL);
        }
        std::thread::sleep(LOOK);
    }
}

/// The processes whose parent is this one.
pub(super) fn children() -> io::Result<Vec<Pid>> {
    let own = getpid().as_raw_nonzero().get();
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        // A process that ends between these lines is no child that is left.
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue };
        if parent(&stat) == Some(own) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The parent from the text of `/proc/PID/stat`: `PID (NAME) STATE PARENT …`. The name may contain anything.
fn parent(stat: &[u8]) -> Option<i32> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_follows_the_last_parenthesis() {
        assert_eq!(parent(b"12 (sh) S 7 12 12"), Some(7));
        assert_eq!(parent(b"12 (a) S 1 (b\xff) R 8 12"), Some(8));
        assert_eq!(parent(b"12 (sh"), None);
    }
}
