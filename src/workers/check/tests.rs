//! Tests of checks: their JSON form and their bounds.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::error::ErrorKind;

const MS: Duration = Duration::from_millis(1);

fn decode(json: Value) -> Result<HealthCheck, String> {
    let by_serde = serde_json::from_value::<HealthCheck>(json.clone()).map_err(|e| e.to_string());
    let check = HealthCheck::from_json(&json);
    if let Err(e) = &check {
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
    }
    let check = check.map_err(|e| e.to_string());
    assert_eq!(check, by_serde, "serde gives the same");
    check
}

#[test]
fn the_contract_is_accepted_and_written() {
    let json = json!({"path": "/healthz", "interval_ms": 2500, "timeout_ms": 300});
    let check = decode(json.clone()).unwrap();
    assert_eq!(check, HealthCheck::http("/healthz").interval(MS * 2500).timeout(MS * 300));
    assert_eq!(serde_json::to_value(&check).unwrap(), json);
}

#[test]
fn the_defaults_are_those_of_kubernetes() {
    let check = decode(json!({"path": "/"})).unwrap();
    assert_eq!(check, HealthCheck::http("/"));
    assert_eq!((check.interval_of_probes(), check.time_limit()), (MS * 10_000, MS * 1000));
    assert_eq!(check.thresholds(), Thresholds { ready_after: 1, fail_after: 3, give_up_after: 30 });
    assert_eq!(check.to_json(), json!({"path": "/", "interval_ms": 10_000, "timeout_ms": 1000}));
}

#[test]
fn every_check_survives_a_round_trip() {
    let http = || HealthCheck::http("/a?b=c");
    for (check, json) in [
        (HealthCheck::tcp(), json!({"tcp": true})),
        (HealthCheck::function("ask it"), json!({"function": "ask it"})),
        (http().expect([204]), json!({"path": "/a?b=c", "expect": 204})),
        (http().expect([503, 200, 200]), json!({"path": "/a?b=c", "expect": [200, 503]})),
        (
            http().header("X-A", "b").secret_header("Authorization", "token"),
            json!({"path": "/a?b=c", "headers": {"X-A": "b", "Authorization": {"secret": "token"}}}),
        ),
        (
            HealthCheck::tcp().fail_after(5).ready_after(2).give_up_after(7),
            json!({"tcp": true, "fail_after": 5, "ready_after": 2, "give_up_after": 7}),
        ),
        (HealthCheck::tcp().give_up_after(30), json!({"tcp": true, "give_up_after": 30})),
    ] {
        check.validate().unwrap();
        let mut full = json;
        full["interval_ms"] = json!(10_000);
        full["timeout_ms"] = json!(1000);
        assert_eq!(check.to_json(), full);
        assert_eq!(decode(full).unwrap(), check);
    }
    let one = json!({"path": "/", "tcp": false, "expect": [200]});
    assert_eq!(decode(one).unwrap(), HealthCheck::http("/").expect([200]));
}

#[test]
fn fields_of_a_newer_version_survive() {
    let json = json!({
        "path": "/", "interval_ms": 1, "timeout_ms": 1, "grace_ms": 5, "notes": {"a": [1, null]}, "Path": "/other"
    });
    let check = decode(json.clone()).unwrap();
    assert_eq!(check.clone().to_json(), json);
    let changed = check.fail_after(9).to_json();
    assert_eq!((&changed["grace_ms"], &changed["fail_after"]), (&json!(5), &json!(9)));
}

#[test]
fn a_field_that_is_wrong_is_named_with_what_is_expected_and_never_becomes_its_default() {
    let with = |field: &str, value: Value| {
        let mut json = json!({"path": "/"});
        json[field] = value;
        json
    };
    let huge = "9".repeat(300);
    for (json, words) in [
        (json!("/health"), "the whole: expected an object, got \"/health\""),
        (json!([]), "the whole: expected an object, got []"),
        (json!({}), "the whole: expected one of path, tcp (true) and function, got none of them"),
        (json!({"tcp": false}), "got none of them"),
        (json!({"path": "/", "tcp": true}), "got 2 of them"),
        (json!({"path": "/", "tcp": true, "function": "f"}), "got 3 of them"),
        (json!({"tcp": "yes"}), "tcp: expected true or false, got \"yes\""),
        (json!({"path": null}), "path: expected a path that begins with one \"/\""),
        (json!({"path": "health"}), "path: expected a path that begins"),
        (json!({"path": "//evil/x"}), "path: expected a path that begins with one \"/\""),
        (json!({"path": "/\\evil/x"}), "path: expected"),
        (json!({"path": "/a b"}), "path: expected"),
        (json!({"path": "/a\r\nHost: b"}), "path: expected"),
        (json!({"path": "/a#b"}), "path: expected"),
        (json!({"path": format!("/{}", "a".repeat(2048))}), "path: expected"),
        (json!({"function": ""}), "function: expected a name of 1 to 2,048 bytes"),
        (json!({"function": 7}), "function: expected a name of 1 to 2,048 bytes without control characters, got 7"),
        (with("interval_ms", json!("x")), "interval_ms: expected a whole number from 1 to 86400000, got \"x\""),
        (with("interval_ms", json!("1000")), "interval_ms: expected a whole number"),
        (with("interval_ms", json!(0)), "interval_ms: expected a whole number from 1 to 86400000, got 0"),
        (with("interval_ms", json!(-1)), "got -1"),
        (with("interval_ms", json!(1.5)), "got 1.5"),
        (with("interval_ms", json!(86_400_001)), "got 86400001"),
        (with("interval_ms", json!(null)), "got null"),
        (with("timeout_ms", json!(true)), "timeout_ms: expected a whole number from 1 to 600000, got true"),
        (with("timeout_ms", json!(u64::MAX)), "got 18446744073709551615"),
        (with("timeout_ms", json!(huge)), "…"),
        (with("fail_after", json!(0)), "fail_after: expected a whole number from 1 to 1000, got 0"),
        (with("ready_after", json!(1001)), "ready_after: expected a whole number from 1 to 1000, got 1001"),
        (with("give_up_after", json!(5_000_000_000_u64)), "give_up_after: expected a whole number from 1 to 1000000"),
        (with("give_up_after", json!(2)), "give_up_after: expected at least fail_after, which is 3, got 2"),
        (with("expect", json!(99)), "expect: expected a status from 200 to 599, or a list of them"),
        (with("expect", json!([])), "expect: expected"),
        (with("expect", json!([200, "x"])), "got [200,\"x\"]"),
        (with("expect", json!([200, 70_000])), "expect: expected"),
        (with("expect", json!((300..700).collect::<Vec<_>>())), "expect: expected"),
        (json!({"tcp": true, "expect": 200}), "expect: expected no such field without path"),
        (json!({"tcp": true, "headers": {"a": "b"}}), "headers: expected no such field without path"),
        (with("headers", json!("a: b")), "headers: expected an object of names and values, got \"a: b\""),
        (with("headers", json!({"a": 5})), "headers.a: expected a string, or {\"secret\": "),
        (with("headers", json!({"a": {"secret": 5}})), "headers.a: expected"),
        (with("headers", json!({"a": {"secret": "x", "prefix": "Bearer "}})), "headers.a: expected"),
        (with("headers", json!({"a": {"secret": ""}})), "headers.a: expected a name"),
        (with("headers", json!({"a b": "c"})), "headers: expected names of letters, digits and hyphens, got \"a b\""),
        (with("headers", json!({"": "c"})), "headers: expected names"),
        (with("headers", json!({"a": "b", "A": "c"})), "headers: expected each name once"),
        (with("headers", json!({"Content-Length": "5"})), "headers: expected none of connection, content-length"),
        (with("headers", json!({"a": "b\r\nc: d"})), "headers.a: expected at most 2,048 printable ASCII characters"),
        (with("headers", json!({"a": "ä"})), "headers.a: expected"),
    ] {
        let error = decode(json.clone()).expect_err(&json.to_string());
        assert!(error.starts_with("health check: ") && error.contains(words), "{json}: {error}");
        assert!(error.contains("; the health check was not accepted; "), "{error}");
    }
    let many: Map<String, Value> = (0..33).map(|n| (format!("x-{n}"), json!("y"))).collect();
    assert!(decode(with("headers", many.into())).unwrap_err().contains("headers: expected at most 32, got 33"));
}

#[test]
fn what_may_be_a_secret_is_not_repeated_in_an_error() {
    for value in
        [json!(["hunter2"]), json!({"secret": {"is": "hunter2"}}), json!("hunter2\n"), json!({"value": "hunter2"})]
    {
        let error = decode(json!({"path": "/", "headers": {"a": value}})).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_builder_has_the_same_bounds() {
    let refused = |check: HealthCheck| check.validate().unwrap_err().to_string();
    let tcp = HealthCheck::tcp;
    for (check, words) in [
        (tcp().interval(Duration::ZERO), "interval_ms: expected a whole number from 1 to 86400000, got 0"),
        (tcp().interval(Duration::MAX), "interval_ms: expected"),
        (tcp().timeout(Duration::from_secs(601)), "timeout_ms: expected a whole number from 1 to 600000, got 601000"),
        (tcp().fail_after(0), "fail_after: expected"),
        (tcp().ready_after(0), "ready_after: expected"),
        (tcp().fail_after(40).give_up_after(39), "give_up_after: expected at least fail_after, which is 40, got 39"),
        (tcp().expect([200]), "expect: expected no such field without path"),
        (HealthCheck::http("/").expect([]), "expect: expected"),
        (HealthCheck::http(""), "path: expected"),
        (HealthCheck::function("a\nb"), "function: expected"),
        (HealthCheck::http("/").secret_header("a", ""), "headers.a: expected a name"),
    ] {
        let error = refused(check);
        assert!(error.contains(words), "{error}");
    }
    // A part of a millisecond is not lost.
    tcp().interval(Duration::from_nanos(1)).timeout(Duration::from_micros(1)).validate().unwrap();
    assert_eq!(tcp().interval(Duration::from_micros(1500)), tcp().interval(MS * 2));
    // A check that tolerates many failures need not say when it gives up.
    tcp().fail_after(40).validate().unwrap();
    assert_eq!(tcp().fail_after(40).thresholds().give_up_after, 40);
}

#[test]
fn a_check_knows_the_names_of_its_secrets() {
    let check = HealthCheck::http("/").header("a", "b").secret_header("c", "d").secret_header("e", "f");
    assert_eq!(check.secret_names().collect::<Vec<_>>(), ["d", "f"]);
    assert_eq!(HealthCheck::tcp().secret_names().count(), 0);
}
