//! TCP checks on real sockets.

use tokio::net::TcpListener;

use super::*;

async fn listen(address: &str) -> Option<(TcpListener, u16)> {
    let listener = TcpListener::bind(address).await.ok()?;
    let port = listener.local_addr().expect("an address").port();
    Some((listener, port))
}

#[tokio::test]
async fn a_connection_is_enough() {
    let (listener, port) = listen("127.0.0.1:0").await.expect("a listener");
    for url in
        [format!("tcp://127.0.0.1:{port}"), format!("http://localhost:{port}/x"), format!("grpc://localhost:{port}")]
    {
        probe_once(&target(1, &url, &HealthCheck::tcp())).await.unwrap_or_else(|e| panic!("{url}: {e}"));
    }
    drop(listener);
    let said = words_of_failure(&target(1, &format!("tcp://127.0.0.1:{port}"), &HealthCheck::tcp())).await;
    let expected = format!("cannot connect: Connection refused (os error 111), at 127.0.0.1:{port}");
    assert_eq!(said, expected);
}

#[tokio::test]
async fn an_ipv6_literal_works() {
    let Some((_listener, port)) = listen("[::1]:0").await else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    for scheme in ["tcp", "http"] {
        probe_once(&target(1, &format!("{scheme}://[::1]:{port}"), &HealthCheck::tcp())).await.expect("a success");
    }
}

#[tokio::test]
async fn a_host_without_address_and_a_url_without_port_are_said() {
    let check = HealthCheck::tcp().timeout(PATIENCE / 2);
    let said = words_of_failure(&target(1, "tcp://nobody.invalid:1", &check)).await;
    assert!(said.starts_with("no address for \"nobody.invalid\": "), "{said}");
    let said = words_of_failure(&target(1, "tcp://127.0.0.1", &check)).await;
    assert_eq!(said, "this pod cannot probe it: the URL has no port");
}

#[tokio::test]
async fn a_check_that_needs_what_this_pod_lacks_says_so() {
    let said = words_of_failure(&target(1, "tcp://a:1", &HealthCheck::function("f"))).await;
    assert_eq!(said, "this pod cannot probe it: the service has registered no probe function \"f\"");
    if cfg!(not(feature = "http")) {
        let said = words_of_failure(&target(1, "http://a:1", &HealthCheck::http("/"))).await;
        assert!(said.contains("feature `http`"), "{said}");
    }
}
