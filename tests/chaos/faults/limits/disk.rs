//! No room on the server's disk: where its tables are, or where its log is.

use std::path::Path;
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use rustix::process::Signal;

use super::{PODS, SOON};
use crate::checker::Excused;
use crate::disk::SmallDisk;
use crate::faults::server::disturbs_nobody;
use crate::pod::now_ns;
use crate::world::{Figure, World, slack};

/// The tables cannot grow: the server refuses each write (53100) and answers every read. Runs wait, nobody is buried; a
/// pod that is told to stop does, one that is started says why it cannot. With room again everything goes on.
pub(super) async fn full() -> Vec<Figure> {
    let disk = SmallDisk::of(48).await;
    let mut world = World::own(&[]).await;
    let place = disk.directory("tables").display().to_string();
    for statement in [
        format!("CREATE TABLESPACE small LOCATION '{place}'").as_str(),
        "ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE small",
        "ALTER INDEX ALL IN TABLESPACE pg_default SET TABLESPACE small",
    ] {
        world.admin.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    world.settled(&PODS).await;
    for pod in PODS {
        world.start(pod, 4, 200, 25).await;
    }
    disk.fill();
    fill_the_last_page(&world).await;
    world.logged("a", "53100", SOON).await;
    let worst = world.worst_case();
    let killed = world.kill("c").await;
    world.process("b").signal(Signal::TERM);
    assert_eq!(world.process("b").ended(SOON).await, 0, "a pod stops whose runs cannot be given back");
    tokio::time::sleep(worst.process_killed).await;
    assert_eq!(world.roster().await, PODS, "who could bury when nothing can be written?");
    world.refuses_to_start("d", "database", "53100").await;

    let freed = now_ns();
    disk.free();
    let mut buried = 0;
    for pod in ["b", "c"] {
        buried = buried.max(world.buried(pod, killed, worst.many_lost + slack()).await);
    }
    let resumed = world.resumed(freed, SOON).await;
    world.figure("the dead are buried, from when there is room", freed, buried, Some(worst.process_killed));
    world.figure("first run goes on, from when there is room", freed, resumed, Some(worst.process_killed));
    world.pod("d").await;
    world.all_runs_ended(SOON).await;
    world.whole(&["a", "d"], SOON).await;
    world.conclude(&Excused::ended(&["b", "c"])).await
}

/// What room there is in the pages that the history has, so that no transaction finds any by chance.
async fn fill_the_last_page(world: &World) {
    let full = loop {
        if let Err(e) = world.admin.execute("INSERT INTO chaos.history (relation) VALUES ('nothing')", &[]).await {
            break e;
        }
    };
    assert_eq!(full.code().map(|c| c.code()), Some("53100"), "{full}");
}

/// The log cannot grow: the server panics. Whoever is on call makes room and starts it again.
pub(super) async fn full_of_wal() -> Vec<Figure> {
    disturbs_nobody(
        async || {
            let disk = SmallDisk::of(128).await;
            let mut world = World::own(&[("max_wal_size", "48MB"), ("min_wal_size", "32MB")]).await;
            world.server.suffers(Server::stop).await;
            move_wal(&world.server.data_dir().join("pg_wal"), &disk.directory("wal"));
            world.server.suffers(Server::start_again).await;
            world.reconnect().await;
            (world, disk)
        },
        async |world, disk| {
            disk.fill();
            // Until the segments are used up that it has.
            while world
                .admin
                .batch_execute("SELECT pg_logical_emit_message(true, '', ''), pg_switch_wal()")
                .await
                .is_ok()
            {}
            disk.free();
            // The server panics. Then it comes up again by itself, or it gives up and is started again.
            let began = Instant::now();
            loop {
                let log = world.server.log_text().unwrap();
                let panicked = log.lines().any(|l| l.contains("PANIC") && l.contains("No space left on device"));
                if panicked && world.server.postmaster_pid().is_none() {
                    world.server.suffers(Server::start_again).await;
                    break;
                }
                let last = |text| log.rfind(text);
                if panicked && last("PANIC") < last("database system is ready to accept connections") {
                    break;
                }
                assert!(began.elapsed() < SOON, "the server neither panicked nor came up again; its log: {log}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        },
    )
    .await
}

fn move_wal(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("the log") {
        let entry = entry.expect("a file of the log");
        let moved = std::process::Command::new("cp").arg("-a").arg(entry.path()).arg(to).status().expect("cp");
        assert!(moved.success(), "cp {}", entry.path().display());
    }
    std::fs::remove_dir_all(from).expect("removed");
    std::os::unix::fs::symlink(to, from).expect("a link");
}
