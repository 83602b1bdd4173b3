//! `podlock hold`, with commands that are shells.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::harness::{Db, Done, Lines, SOON, TEST, clean, finish, server, signal, wait_for, within};
use crate::inherited;

/// Beside what it prints, a command leaves a file `NAME.pid` for each process that the test asks after.
struct Stage {
    db: Db,
    files: TempDir,
}

/// A `podlock hold` that runs.
struct Hold {
    child: Child,
    out: Lines,
    log: Lines,
}

impl Stage {
    async fn new() -> Self {
        Self::on(server()).await
    }

    async fn on(server: &Server) -> Self {
        let db = Db::on(server).await;
        db.ok(&["migrate", "up"]).await;
        Self { db, files: tempfile::tempdir().unwrap() }
    }

    /// The command line that holds `name` around a script.
    fn command(&self, name: &str, args: &[&str], script: &str) -> Command {
        let mut command = self.db.command(&["hold", "--name", name]);
        command.env("PODLOCK_LEASE", "3s").current_dir(self.files.path());
        command.args(args).args(["--", "sh", "-c", script]);
        command
    }

    async fn done(&self, name: &str, args: &[&str], script: &str) -> Done {
        finish(self.command(name, args, script)).await
    }

    fn start(&self, name: &str, args: &[&str], script: &str) -> Hold {
        Hold::of(self.command(name, args, script))
    }

    /// A process of the command that has said its number.
    async fn pid(&self, name: &str) -> u32 {
        let file = self.files.path().join(format!("{name}.pid"));
        wait_for(&format!("{name} has begun"), || async {
            let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
            if text.ends_with('\n') { text.trim().parse().map_err(|_| text) } else { Err(text) }
        })
        .await
    }

    fn has_begun(&self, name: &str) -> bool {
        self.files.path().join(format!("{name}.pid")).exists()
    }

    /// The state of the pod's row.
    async fn state(&self, name: &str) -> Option<String> {
        let row = self.db.client().await.query_opt("SELECT state FROM studio_pods WHERE pod_id = $1", &[&name]).await;
        row.unwrap().map(|row| row.get(0))
    }
}

impl Hold {
    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = Lines::read(child.stdout.take().unwrap());
        let log = Lines::read(child.stderr.take().unwrap());
        Self { child, out, log }
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// The process between podlock and the command.
    fn supervisor(&self) -> u32 {
        children(self.pid()).into_iter().next().expect("a supervisor")
    }

    /// The same, where podlock may have other children.
    fn supervisor_of(&self, command: u32) -> u32 {
        stat(command).expect("the command runs").1
    }

    async fn said(&self, line: &str) {
        self.out.find(&format!("the command says {line:?}"), |l| (l == line).then_some(())).await;
    }

    async fn ended(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(SOON, self.child.wait()).await;
        status.unwrap_or_else(|_| panic!("it has not ended: {:#?}", self.log.all())).unwrap().code()
    }
}

fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let text = String::from_utf8_lossy(&stat).into_owned();
    let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

fn children(of: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, parent)| parent == of)).collect()
}

/// Whether it runs, or could: a zombie does neither.
fn lives(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

async fn all_dead(pids: &[u32]) {
    wait_for("nothing of the command is left", || async {
        let left: Vec<_> = pids.iter().filter(|pid| lives(**pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} live")) }
    })
    .await;
}

/// Says its number, and hears no SIGTERM; so do a child of it, and one that left for a session and parents of its own.
const STUBBORN_FAMILY: &str = "trap '' TERM HUP; echo $$ > main.pid
    sh -c 'echo $$ > child.pid; while :; do sleep 1; done' &
    (setsid sh -c 'echo $$ > stray.pid; while :; do sleep 1; done' &)
    while :; do sleep 0.1; done";

async fn family(stage: &Stage) -> [u32; 3] {
    [stage.pid("main").await, stage.pid("child").await, stage.pid("stray").await]
}

#[test]
fn the_command_finds_name_and_incarnation_and_its_status_is_passed_on() {
    within(TEST, async {
        let stage = Stage::new().await;
        let done = stage.done("w", &[], "echo $PODLOCK_POD $PODLOCK_INCARNATION; echo also >&2; exit 7").await;
        assert_eq!((done.code, done.stderr.as_str()), (7, "also\n"), "{done:?}");
        let (name, incarnation) = done.stdout.trim().split_once(' ').unwrap();
        let client = stage.db.client().await;
        let sql = "SELECT state, incarnation::text FROM studio_pods WHERE pod_id = $1";
        let row = client.query_one(sql, &[&name]).await.unwrap();
        assert_eq!(
            (name, row.get::<_, &str>(0), row.get::<_, &str>(1)),
            ("w", "draining", incarnation),
            "a clean stop"
        );

        assert_eq!(stage.done("w", &[], "true").await.code, 0);
        assert_eq!(stage.done("w", &[], "kill -KILL $$").await.code, 128 + 9);
        assert_eq!(stage.done("w", &[], "kill -USR2 $$").await.code, 128 + 12);
    });
}

/// With SIGCHLD ignored the kernel throws exit codes away; with SIGTERM blocked nobody would hear it.
#[test]
fn what_podlock_inherits_does_not_cost_the_commands_status() {
    within(TEST, async {
        let stage = Stage::new().await;
        for setting in ["--ignore-signal=CHLD", "--block-signal=TERM,CHLD,HUP", "--ignore-signal=PIPE"] {
            let hold =
                stage.command("w", &[], "(exit 3); [ $? = 3 ] && sleep 0.1 && grep SigIgn /proc/self/status; exit 7");
            let mut command = clean(Path::new("env"));
            command.arg(setting).arg(hold.as_std().get_program()).args(hold.as_std().get_args());
            command.env("DATABASE_URL", &stage.db.url).env("PODLOCK_LEASE", "3s");
            let done = finish(command).await;
            assert_eq!(done.code, 7, "{setting}: {done:?}");
            let mask = done.stdout.trim().strip_prefix("SigIgn:").map(|mask| u64::from_str_radix(mask.trim(), 16));
            let mask = mask.expect("the command's mask").unwrap();
            assert_eq!(mask & (1 << 16 | 1 << 12), 0, "{setting}: the command ignores SIGCHLD or SIGPIPE: {mask:x}");
        }
    });
}

/// `hold` under a shell that left it children, which nobody else can reap, and with a command whose grandchildren end.
#[test]
fn no_zombie_is_left_of_what_podlock_adopts() {
    within(TEST, async {
        let stage = Stage::new().await;
        let hold = stage.command(
            "w",
            &[],
            "echo $$ > main.pid; for i in 1 2 3; do (sleep 0.2 & sleep 0.1 &); done; sleep 600",
        );
        let mut command = clean(Path::new("sh"));
        command
            .args(["-c", "sleep 0.1 & sleep 0.2 & (sleep 0.3 & ) ; \"$0\" --version >/dev/null; exec \"$0\" \"$@\""]);
        command.arg(hold.as_std().get_program()).args(hold.as_std().get_args()).current_dir(stage.files.path());
        command.env("DATABASE_URL", &stage.db.url).env("PODLOCK_LEASE", "3s");
        let mut hold = Hold::of(command);
        let main = stage.pid("main").await;
        let supervisor = hold.supervisor_of(main);
        wait_for("each has its one child, and no zombie", || async {
            let left = (children(hold.pid()), children(supervisor));
            if left == (vec![supervisor], vec![main]) { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        signal(hold.pid(), Signal::TERM);
        assert_eq!(hold.ended().await, Some(128 + 15));
    });
}

/// As PID 1 podlock is the parent of whatever loses its own: of what a shell left it that became it, and of what
/// `kubectl exec` and its like put into the container. Needs root.
#[test]
fn as_pid_1_of_a_container_it_leaves_no_zombie() {
    let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let tried = std::process::Command::new("unshare").args(unshare).arg("true").output();
    if !tried.as_ref().is_ok_and(|done| done.status.success()) {
        println!("skipped: no PID namespace can be made here (needs root and util-linux): {tried:?}");
        return;
    }
    within(TEST, async {
        let stage = Stage::new().await;
        let hold = stage.command(
            "w",
            &[],
            "echo $$ > main.pid; for i in 1 2 3; do (sleep 0.2 & sleep 0.1 &); done; sleep 600",
        );
        let mut command = clean(Path::new("unshare"));
        // The shell becomes flock, which becomes podlock once it has the lock: its children are podlock's, and have
        // ended then.
        let gate = stage.files.path().join("gate");
        let closed = std::fs::File::create(&gate).unwrap();
        closed.lock().unwrap();
        command
            .args(unshare)
            .args(["sh", "-c", "sleep 0.1 & sleep 0.2 & exec flock --no-fork \"$0\" \"$@\""])
            .arg(&gate);
        command.arg(hold.as_std().get_program()).args(hold.as_std().get_args()).current_dir(stage.files.path());
        command.env("DATABASE_URL", &stage.db.url).env("PODLOCK_LEASE", "3s");
        let mut hold = Hold::of(command);
        // By the numbers of out here.
        let podlock = wait_for("the shell has children that have ended", || async {
            let Some(shell) = children(hold.pid()).first().copied() else { return Err("no shell".to_owned()) };
            let own = children(shell);
            if own.len() == 2 && own.iter().all(|child| !lives(*child)) { Ok(shell) } else { Err(format!("{own:?}")) }
        })
        .await;
        drop(closed);
        stage.pid("main").await;
        let no_zombie = async || {
            wait_for("each has its one child, and no zombie", || async {
                let own = children(podlock);
                let left = (own.len(), own.first().map_or(0, |supervisor| children(*supervisor).len()));
                if left == (1, 1) { Ok(own[0]) } else { Err(format!("{own:?}, {left:?}")) }
            })
            .await
        };
        let supervisor = no_zombie().await;
        // What came in from outside and has lost its parent is adopted, and is reaped when it ends.
        let go = stage.files.path().join("go");
        let mut enter = clean(Path::new("nsenter"));
        enter.args(["--target", &podlock.to_string(), "--pid", "--mount", "sh", "-c"]);
        enter.args(["(until [ -e \"$0\" ]; do sleep 0.02; done) >/dev/null 2>&1 & exit 0"]).arg(&go);
        let entered = finish(enter).await;
        assert_eq!(entered.code, 0, "{entered:?}");
        wait_for("PID 1 has adopted it", || async {
            let own = children(podlock);
            if own.len() == 2 && own.contains(&supervisor) { Ok(()) } else { Err(format!("{own:?}")) }
        })
        .await;
        std::fs::write(&go, "").unwrap();
        assert_eq!(no_zombie().await, supervisor);
        signal(podlock, Signal::TERM);
        assert_eq!(hold.ended().await, Some(128 + 15), "{:#?}", hold.log.all());
    });
}

#[test]
fn a_command_without_the_dashes_is_told_what_is_missing() {
    within(TEST, async {
        let stage = Stage::new().await;
        let done = stage.db.run(&["hold", "--name", "w", "sleep", "1"]).await;
        assert!(done.code == 2 && done.stderr.contains("podlock hold [OPTIONS] -- COMMAND"), "{done:?}");
    });
}

#[test]
fn stdin_is_the_commands_and_so_is_its_end() {
    within(TEST, async {
        let stage = Stage::new().await;
        let mut command = stage.command("w", &[], "while read line; do echo got $line; done; echo end");
        command.stdin(Stdio::piped());
        let mut hold = Hold::of(command);
        let mut stdin = hold.child.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").await.unwrap();
        hold.said("got two").await;
        drop(stdin);
        hold.said("end").await;
        assert_eq!(hold.ended().await, Some(0));
    });
}

#[test]
fn a_command_that_cannot_be_started_is_told_apart_from_one_that_failed() {
    within(TEST, async {
        let stage = Stage::new().await;
        let done = stage.db.run(&["hold", "--name", "w", "--", "./no-such-program"]).await;
        assert!(done.code == 127 && done.stderr.contains("no-such-program"), "{done:?}");
        assert_eq!(stage.db.run(&["hold", "--name", "w", "--", "/etc"]).await.code, 126);
        for usage in [&["hold"][..], &["hold", "true"], &["hold", "--lease", "1s", "--", "true"]] {
            assert_eq!(stage.db.run(usage).await.code, 2, "{usage:?}");
        }
        let begun = "echo $$ > main.pid";
        let mut nowhere = stage.command("w", &[], begun);
        nowhere.env("DATABASE_URL", "postgres://x@127.0.0.1:1/x");
        let mut unnamed = stage.db.command(&["hold", "--", "sh", "-c", begun]);
        unnamed.env("PODLOCK_ENV", "production").current_dir(stage.files.path());
        for command in [nowhere, unnamed] {
            let done = finish(command).await;
            assert!(done.code == 125 && !done.stderr.is_empty(), "{done:?}");
        }
        assert!(!stage.has_begun("main"));
    });
}

#[test]
fn the_name_is_held_while_the_command_runs_and_goes_with_it() {
    within(TEST, async {
        let stage = Stage::new().await;
        let mut first = stage.start("w", &[], "echo $$ > first.pid; sleep 1000");
        let _ = stage.pid("first").await;
        let refused = stage.done("w", &["--wait", "300ms"], "echo $$ > second.pid").await;
        assert_eq!(refused.code, 125, "{refused:?}");
        assert!(refused.stderr.contains("\"w\"") || refused.stderr.contains(" w"), "{refused:?}");
        assert!(!stage.has_begun("second"));
        assert_eq!(stage.done("other", &[], "true").await.code, 0, "another name is free");

        // The next in line gets it when the first one has ended, and not before.
        let mut third = stage.start("w", &["--wait", "60s"], "echo $$ > third.pid");
        let waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database =
                     (SELECT oid FROM pg_database WHERE datname = current_database())";
        let client = stage.db.client().await;
        wait_for("it waits for the lock", || async {
            let rows = client.query(waits, &[]).await.unwrap();
            if rows.is_empty() { Err("nobody waits".to_owned()) } else { Ok(()) }
        })
        .await;
        assert!(!stage.has_begun("third"));
        signal(first.pid(), Signal::TERM);
        assert_eq!(first.ended().await, Some(128 + 15));
        assert_eq!(third.ended().await, Some(0));
        assert!(stage.has_begun("third"));
    });
}

#[test]
fn signals_are_passed_on_and_end_only_what_they_would_have_ended() {
    within(TEST, async {
        let stage = Stage::new().await;
        let script = "for s in HUP INT QUIT USR1 USR2 ALRM WINCH; do trap \"echo $s\" $s; done
            trap 'echo TERM; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        let mut hold = stage.start("w", &["--grace", "0s"], script);
        hold.said("ready").await;
        let signals = [
            ("HUP", Signal::HUP),
            ("INT", Signal::INT),
            ("QUIT", Signal::QUIT),
            ("USR1", Signal::USR1),
            ("USR2", Signal::USR2),
            ("ALRM", Signal::ALARM),
            ("WINCH", Signal::WINCH),
            ("TERM", Signal::TERM),
        ];
        for (name, number) in signals {
            signal(hold.pid(), number);
            hold.said(name).await;
        }
        assert_eq!(hold.ended().await, Some(3));
        assert_eq!(stage.state("w").await.as_deref(), Some("draining"));

        let mut hold = stage.start("w", &[], "echo ready; exec sleep 1000");
        hold.said("ready").await;
        signal(hold.pid(), Signal::INT);
        assert_eq!(hold.ended().await, Some(128 + 2));
    });
}

#[test]
fn what_podlock_was_started_to_ignore_the_command_ignores_too() {
    within(TEST, async {
        let stage = Stage::new().await;
        let mut nohup = clean(Path::new("sh"));
        let program = env!("CARGO_BIN_EXE_podlock");
        let script = format!("trap '' HUP; exec {program} hold --name w -- sh -c 'kill -HUP $$; echo lives; read x'");
        nohup.args(["-c", &script]).env("DATABASE_URL", &stage.db.url).stdin(Stdio::piped());
        let mut hold = Hold::of(nohup);
        hold.said("lives").await;
        signal(hold.pid(), Signal::HUP);
        drop(hold.child.stdin.take());
        assert_eq!(hold.ended().await, Some(1), "read found the end of its input");
    });
}

#[test]
fn a_signal_before_the_name_is_held_ends_it_and_nothing_is_started() {
    within(TEST, async {
        let stage = Stage::new().await;
        let _holder = stage.db.pod("w", &[]).await;
        let mut hold = stage.start("w", &["--wait", "60s"], "echo $$ > main.pid");
        let waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database =
                     (SELECT oid FROM pg_database WHERE datname = current_database())";
        let client = stage.db.client().await;
        wait_for("it waits for the lock", || async {
            let rows = client.query(waits, &[]).await.unwrap();
            if rows.is_empty() { Err("nobody waits".to_owned()) } else { Ok(()) }
        })
        .await;
        signal(hold.pid(), Signal::TERM);
        assert_eq!(hold.ended().await, Some(128 + 15));
        assert!(!stage.has_begun("main"));
    });
}

#[test]
fn neither_the_command_nor_what_it_started_outlives_a_killed_podlock() {
    within(TEST, async {
        let stage = Stage::new().await;
        let mut hold = stage.start("w", &[], STUBBORN_FAMILY);
        let family = family(&stage).await;
        let supervisor = hold.supervisor();
        signal(hold.pid(), Signal::KILL);
        assert_eq!(hold.ended().await, None, "killed");
        all_dead(&[&family[..], &[supervisor]].concat()).await;
        assert_eq!(stage.done("w", &[], "true").await.code, 0, "the name is free");
    });
}

#[test]
fn nor_do_they_outlive_a_killed_supervisor() {
    within(TEST, async {
        let stage = Stage::new().await;
        let mut hold = stage.start("w", &[], STUBBORN_FAMILY);
        let family = family(&stage).await;
        signal(hold.supervisor(), Signal::KILL);
        assert_eq!(hold.ended().await, Some(128 + 9));
        // Before the name is free.
        let left: Vec<_> = family.into_iter().filter(|pid| lives(*pid)).collect();
        assert_eq!(left, [0; 0]);
    });
}

#[test]
fn what_a_command_leaves_behind_is_dead_before_the_name_is_free() {
    within(TEST, async {
        let stage = Stage::new().await;
        let script = "trap '' TERM; (setsid sh -c 'echo $$ > stray.pid; while :; do sleep 1; done' &)
            until [ -s stray.pid ]; do sleep 0.01; done; exit 5";
        assert_eq!(stage.done("w", &[], script).await.code, 5);
        assert!(!lives(stage.pid("stray").await));
    });
}

#[test]
fn an_evicted_command_is_asked_first_and_killed_after_grace_if_it_does_not_listen() {
    within(TEST, async {
        let stage = Stage::new().await;
        let polite = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
        let mut hold = stage.start("polite", &["--lease", "10s"], polite);
        hold.said("ready").await;
        let said = stage.db.ok(&["evict", "polite"]).await;
        assert!(said.contains("where there is none, the next pod that starts does"), "there is no peer: {said}");
        hold.said("asked").await;
        assert_eq!(hold.ended().await, Some(124), "{:#?}", hold.log.all());

        let deaf = format!("trap 'echo asked' TERM; echo ready; {}", STUBBORN_FAMILY.split_once("; ").unwrap().1);
        let mut hold = stage.start("deaf", &["--lease", "10s", "--grace", "1s"], &deaf);
        hold.said("ready").await;
        let family = family(&stage).await;
        stage.db.ok(&["evict", "deaf"]).await;
        hold.said("asked").await;
        let asked = Instant::now();
        assert_eq!(hold.ended().await, Some(124), "{:#?}", hold.log.all());
        // The line is read a moment after it was written.
        assert!(asked.elapsed() > Duration::from_millis(500), "it was given its grace: {:?}", asked.elapsed());
        assert!(!family.into_iter().any(lives));
    });
}

/// The server, and with it every answer, stands still. The lock is still held there: nobody can have the name.
#[test]
fn l7_a_command_whose_pod_gets_no_answer_is_dead_before_the_lease_is_over() {
    within(TEST, async {
        const LEASE: Duration = Duration::from_secs(6);
        let server = inherited::postgres().start().expect("PostgreSQL starts");
        let stage = Stage::on(&server).await;
        let deaf = "trap 'echo asked' TERM; echo $$ > main.pid; while :; do sleep 0.05; done";
        let mut hold = stage.start("w", &["--lease", "6s", "--grace", "60s"], deaf);
        let command = stage.pid("main").await;
        server.pause().unwrap();
        let paused = Instant::now();
        hold.said("asked").await;
        assert!(lives(command));
        all_dead(&[command]).await;
        assert!(paused.elapsed() < LEASE, "it took {:?}", paused.elapsed());
        assert_eq!(hold.ended().await, Some(124));
        server.resume().unwrap();
    });
}

/// podlock itself stands still, so that it can say nothing; the command does not.
#[test]
fn l7_a_command_whose_podlock_is_frozen_is_dead_before_another_holds_the_name() {
    within(TEST, async {
        let stage = Stage::new().await;
        let _survivor = stage.db.pod("survivor", &[]).await;
        let mut hold =
            stage.start("w", &["--grace", "60s"], "trap '' TERM; echo $$ > main.pid; while :; do sleep 0.05; done");
        let command = stage.pid("main").await;
        signal(hold.pid(), Signal::STOP);
        let mut next =
            stage.start("w", &["--wait", "60s"], "kill -0 $(cat main.pid) 2>/dev/null && echo lives || echo dead");
        next.said("dead").await;
        assert!(!lives(command));
        assert_eq!(next.ended().await, Some(0));
        signal(hold.pid(), Signal::CONT);
        assert_eq!(hold.ended().await, Some(124));
    });
}

#[test]
fn a_connection_that_breaks_and_is_back_in_time_disturbs_no_command() {
    within(TEST, async {
        let stage = Stage::new().await;
        let script = "trap 'echo asked' TERM; echo $PODLOCK_INCARNATION; read x; echo end";
        let mut command = stage.command("w", &[], script);
        command.stdin(Stdio::piped());
        let mut hold = Hold::of(command);
        let incarnation = hold.out.find("its incarnation", |line| Some(line.to_owned())).await;
        let client = stage.db.client().await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND application_name = 'podlock/w/liveness'";
        assert_eq!(client.query(sql, &[]).await.unwrap().len(), 1);
        wait_for("it is back", || async {
            let sql = "SELECT session, incarnation::text FROM studio_pods WHERE pod_id = 'w'";
            let row = client.query_one(sql, &[]).await.unwrap();
            let (session, now): (i64, String) = (row.get(0), row.get(1));
            assert_eq!(now, incarnation);
            if session == 2 { Ok(()) } else { Err(format!("session {session}")) }
        })
        .await;
        hold.child.stdin.take().unwrap().write_all(b"x\n").await.unwrap();
        hold.said("end").await;
        assert_eq!(hold.ended().await, Some(0));
        assert!(!hold.out.all().contains(&"asked".to_owned()));
    });
}

#[test]
fn a_drain_asks_the_command_to_end_and_kills_it_after_grace() {
    within(TEST, async {
        let stage = Stage::new().await;
        let polite = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
        let mut hold = stage.start("w", &[], polite);
        hold.said("ready").await;
        stage.db.ok(&["drain", "w"]).await;
        assert_eq!(hold.ended().await, Some(9));
        assert_eq!(stage.state("w").await.as_deref(), Some("draining"));

        let mut hold = stage.start("w", &["--grace", "500ms"], STUBBORN_FAMILY);
        let family = family(&stage).await;
        stage.db.ok(&["drain", "w"]).await;
        assert_eq!(hold.ended().await, Some(128 + 9), "its own status: the name was never lost");
        assert!(!family.into_iter().any(lives));
        let survivor = stage.db.pod("survivor", &[]).await;
        wait_for("it is buried as one that stopped cleanly", || async {
            let left = stage.db.json(&["pods", "describe", "w"]).await;
            if left["sessions"][0]["reason"] == "shutdown" { Ok(()) } else { Err(left.to_string()) }
        })
        .await;
        drop(survivor);
        assert_eq!(stage.db.json(&["events", "--kind", "evicted"]).await, json!([]));
    });
}

/// Under a terminal the command is in a process group in the background, until it asks for the terminal.
#[test]
fn a_command_can_read_the_terminal_and_who_comes_after_it_can_too() {
    within(TEST, async {
        let stage = Stage::new().await;
        let program = env!("CARGO_BIN_EXE_podlock");
        let inner = format!("{program} hold --name w -- sh -c 'read x; echo got-$x'; read y; echo then-$y");
        let mut script = clean(Path::new("script"));
        script.args(["-qec", &inner, "/dev/null"]).env("DATABASE_URL", &stage.db.url).env("SHELL", "/bin/sh");
        script.stdin(Stdio::piped());
        let mut hold = Hold::of(script);
        let mut stdin = hold.child.stdin.take().unwrap();
        for (typed, due) in [("one\n", "got-one"), ("two\n", "then-two")] {
            stdin.write_all(typed.as_bytes()).await.unwrap();
            hold.out.find(due, |line| line.trim_end().ends_with(due).then_some(())).await;
        }
        drop(stdin);
        assert_eq!(hold.ended().await, Some(0));
    });
}

#[test]
fn a_stop_from_the_terminal_stops_both_and_both_go_on() {
    within(TEST, async {
        let stage = Stage::new().await;
        let state = |pid: u32| stat(pid).map(|(state, _)| state);
        let program = env!("CARGO_BIN_EXE_podlock");
        let inner = format!(
            "exec {program} hold --lease 60s --name w -- sh -c 'echo $$ >main.pid; read x; echo had-$x; read y; echo \
             got-$y'"
        );
        let mut script = clean(Path::new("script"));
        script.args(["-qec", &inner, "/dev/null"]).env("DATABASE_URL", &stage.db.url).env("SHELL", "/bin/sh");
        script.stdin(Stdio::piped()).current_dir(stage.files.path());
        let mut hold = Hold::of(script);
        let mut stdin = hold.child.stdin.take().unwrap();
        let command = stage.pid("main").await;
        let podlock = stat(stat(command).unwrap().1).unwrap().1;
        stdin.write_all(b"one\n").await.unwrap();
        // It has the terminal, else it could not have read; a Ctrl-Z drops what was typed and not read.
        hold.out.find("had-one", |line| line.trim_end().ends_with("had-one").then_some(())).await;
        stdin.write_all(b"\x1a").await.unwrap();
        // And with podlock who waits for it, as a shell would; who goes on, and has podlock go on, at the user's word.
        wait_for("all are stopped", || async {
            let seen = [command, podlock, hold.pid()].map(state);
            if seen == [Some('T'); 3] { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        signal(hold.pid(), Signal::CONT);
        wait_for("both go on", || async {
            let seen = (state(command), state(podlock));
            if seen.0 != Some('T') && seen.1 != Some('T') { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        stdin.write_all(b"two\n").await.unwrap();
        hold.out.find("got-two", |line| line.trim_end().ends_with("got-two").then_some(())).await;
        drop(stdin);
        assert_eq!(hold.ended().await, Some(0));
    });
}

/// The worker of docs/hold.md, word for word.
#[test]
fn the_pages_worker_completes_what_a_killed_one_had_taken() {
    within(TEST, async {
        let stage = Stage::new().await;
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hold.md")).unwrap();
        let block = |begins: &str| page.split_once(begins).unwrap().1.split_once("```").unwrap().0.to_owned();
        let client = stage.db.client().await;
        client.batch_execute(&block("```sql\n")).await.unwrap();
        client.batch_execute("INSERT INTO jobs (input) SELECT 'job ' || n FROM generate_series(1, 6) n").await.unwrap();
        // Who finished what: each job once.
        let log = "CREATE TABLE written (id bigint PRIMARY KEY, owner uuid);
                   CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS
                       'BEGIN INSERT INTO written VALUES (new.id, new.owner); RETURN NULL; END';
                   CREATE TRIGGER log AFTER UPDATE ON jobs FOR EACH ROW WHEN (new.done) EXECUTE FUNCTION log()";
        client.batch_execute(log).await.unwrap();
        let worker = format!("# worker.sh{}", block("```sh\n# worker.sh"));
        let survivor = stage.start("survivor", &[], &worker);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut victim = stage.start("victim", &[], &worker);
        let taken = wait_for("the victim has taken a job", || async {
            let sql = "SELECT j.id FROM jobs j JOIN studio_pods p ON p.incarnation = j.owner AND p.pod_id = 'victim' \
                       WHERE NOT done";
            client.query_opt(sql, &[]).await.unwrap().map(|row| row.get::<_, i64>(0)).ok_or_else(|| "none".to_owned())
        })
        .await;
        signal(victim.pid(), Signal::KILL);
        victim.ended().await;
        wait_for("all jobs are done", || async {
            let rows = client.query("SELECT id FROM jobs WHERE NOT done", &[]).await.unwrap();
            if rows.is_empty() { Ok(()) } else { Err(format!("{} left; {:#?}", rows.len(), survivor.log.all())) }
        })
        .await;
        let sql = "SELECT pod_id FROM written JOIN studio_pods ON incarnation = owner WHERE id = $1";
        assert_eq!(client.query_one(sql, &[&taken]).await.unwrap().get::<_, &str>(0), "survivor");
        let wrong = client.query("SELECT 1 FROM jobs WHERE output IS DISTINCT FROM upper(input)", &[]).await.unwrap();
        assert!(wrong.is_empty());
        signal(survivor.pid(), Signal::TERM);
    });
}

/// Issue: "a supervisor such as `hold` … may add what it knows (signal, exit code …)". The exit code 137 is not taken
/// for a signal, and an end that somebody asked for is no failure.
#[test]
fn the_history_says_how_the_command_ended() {
    within(TEST, async {
        let stage = Stage::new().await;
        let ended = async |name: &str| -> (Option<String>, Option<String>, Option<i32>, Option<i32>) {
            let sql = "SELECT reason, cause, exit_code, exit_signal FROM studio_pod_sessions WHERE pod_id = $1";
            let row = stage.db.client().await.query_one(sql, &[&name]).await.unwrap();
            (row.get(0), row.get(1), row.get(2), row.get(3))
        };
        let some = |word: &str| Some(word.to_owned());
        // Somebody must bury the pods.
        let other = stage.db.pod("other", &[]).await;
        let cases = [
            ("fine", "exit 0", None, Some(0), None),
            ("failed", "exit 7", some("exited"), Some(7), None),
            ("odd", "exit 137", some("exited"), Some(137), None),
            ("killed", "kill -SEGV $$", some("killed"), None, Some(11)),
        ];
        for (name, script, cause, code, by) in cases {
            stage.done(name, &[], script).await;
            wait_for(&format!("{name} has ended"), || async {
                let seen = ended(name).await;
                if seen == (some("shutdown"), cause.clone(), code, by) { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        }
        let mut asked = stage.start("asked", &[], "echo $$ > asked.pid; exec sleep 100");
        stage.pid("asked").await;
        signal(asked.pid(), Signal::TERM);
        asked.ended().await;
        wait_for("the one that was asked to stop has ended", || async {
            let seen = ended("asked").await;
            if seen == (some("shutdown"), None, None, Some(15)) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        drop(other);
    });
}

/// Issue: "OOM read from the cgroup's events". A real cgroup with a limit, and a command that wants more. It needs root and
/// a writable hierarchy.
#[test]
fn a_command_that_lacks_memory_is_recorded_as_such() {
    within(TEST, async {
        let Some(cgroup) = Limited::new() else {
            eprintln!("skipped: this system lets the test make no cgroup with a limit of memory");
            return;
        };
        let stage = Stage::new().await;
        let other = stage.db.pod("other", &[]).await;
        // The shell moves podlock into the cgroup before podlock starts. The command then doubles a string until the
        // kernel kills it.
        let podlock = stage.command("hungry", &[], "x=1234567890; while :; do x=$x$x; done");
        let mut command = clean(Path::new("sh"));
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(cgroup.tasks()).arg(podlock.as_std().get_program());
        command.args(podlock.as_std().get_args()).current_dir(stage.files.path());
        for (name, value) in podlock.as_std().get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        let done = finish(command).await;
        assert_eq!(done.code, 137, "{}", done.all());
        let sql = "SELECT cause, exit_signal FROM studio_pod_sessions WHERE pod_id = 'hungry'";
        wait_for("the history says why", || async {
            let row = stage.db.client().await.query_one(sql, &[]).await.unwrap();
            let seen: (Option<String>, Option<i32>) = (row.get(0), row.get(1));
            if seen == (Some("out_of_memory".to_owned()), Some(9)) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        drop(other);
    });
}

/// A cgroup with 128 MiB of memory and no swap. It is removed at the end.
struct Limited(std::path::PathBuf);

impl Limited {
    fn new() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("podlock-test-{}", std::process::id());
        let v1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
        let parent = match v1 {
            Some(path) => Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')),
            None => Path::new("/sys/fs/cgroup").join(own.lines().find_map(|l| l.strip_prefix("0::/"))?),
        };
        let this = Self(parent.join(name));
        std::fs::create_dir(&this.0).ok()?;
        let limit = if v1.is_some() { "memory.limit_in_bytes" } else { "memory.max" };
        std::fs::write(this.0.join(limit), "134217728").ok()?;
        Some(this)
    }

    fn tasks(&self) -> std::path::PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // The last process may be a zombie for a moment. A cgroup that is left over holds nothing.
        let _ = std::fs::remove_dir(&self.0);
    }
}
