//! A real streaming standby beside its primary.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use podlock::{Config, ErrorKind, NewRun};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::inherited::clean;
use crate::patience::SOON;
use crate::support::faults::{Daemon, OwnServer, account_dir, as_account, free_port, hosts_url, reconnected, refused};
use crate::support::{Db, lease, start, timed};

struct Standby {
    port: u16,
    _daemon: Daemon,
    _dir: tempfile::TempDir,
}

async fn standby_of(primary: &Server) -> Standby {
    let dir = account_dir();
    let data = dir.path().join("data");
    let mut backup = Command::new(primary.bin_dir().join("pg_basebackup"));
    clean(&mut backup);
    backup.arg("-D").arg(&data).args(["-R", "-X", "stream", "-c", "fast", "-d", &primary.url("postgres")]);
    let backup = tokio::task::spawn_blocking(move || as_account(&mut backup).output()).await.unwrap().unwrap();
    assert!(backup.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&backup.stderr));
    let port = free_port();
    let program = primary.bin_dir().join("postgres").display().to_string();
    let set = [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".into(),
        format!("unix_socket_directories={}", dir.path().display()),
    ];
    let mut args = vec!["-D".to_owned(), data.display().to_string()];
    args.extend(set.into_iter().flat_map(|s| ["-c".to_owned(), s]));
    let daemon = Daemon::spawn(&program, args);
    let (client, _) = reconnected(&hosts_url(primary, &[port], "postgres")).await;
    assert!(client.scalar::<bool>("SELECT pg_is_in_recovery()", &[]).await);
    Standby { port, _daemon: daemon, _dir: dir }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_and_among_several_hosts_the_primary_is_found() {
    timed(async {
        let primary = OwnServer::start(&[]).await;
        let db = Db::on(&primary).await;
        let standby = standby_of(&primary).await;
        let config = |ports: &[u16]| Config::new(hosts_url(&primary, ports, &db.name)).name("a").lease(lease());
        let limit = config(&[standby.port]).validate().unwrap().connect_timeout;
        let standby_words = [format!("127.0.0.1:{}", standby.port), "is a standby".into(), "the primary".into()];
        let words: Vec<&str> = standby_words.iter().map(String::as_str).collect();
        refused(config(&[standby.port])).await.is(ErrorKind::Standby, &words, limit);
        // It says more than a host that is down.
        refused(config(&[free_port(), standby.port])).await.is(ErrorKind::Standby, &words, limit * 2);

        let pod = start(config(&[standby.port, free_port(), primary.port()])).await;
        assert!(pod.status().attached);
        assert_eq!(db.client.roster().await, ["a"]);
        // Not its sessions alone: its pool writes to the primary, too.
        let run = pod.start(NewRun::new("echo").input(json!(1))).await.expect("a run starts on the primary");
        db.client.run_in_state(run.run_id, "succeeded", SOON).await;
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}

/// A host that vanished answers nothing. The host after it must not wait for half a lease at each try.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_host_holds_up_the_next_for_a_tenth_of_the_lease_at_most() {
    timed(async {
        let primary = OwnServer::start(&[]).await;
        // Its queue is full with one connection: the kernel answers no further one.
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let address = silent.local_addr().unwrap().as_socket().unwrap();
        let _fills_it = TcpStream::connect(address).unwrap();
        let patient = Duration::from_secs(60);
        let config = Config::new(hosts_url(&primary, &[address.port(), primary.port()], "postgres")).lease(lease());
        let began = Instant::now();
        let connected = podlock::connect(&config.with(|c| c.connect_timeout = Some(patient))).await;
        assert!(connected.is_ok(), "{:?}", connected.err());
        let took = began.elapsed();
        assert!(took < patient / 2, "it took {took:?}");
    })
    .await;
}
