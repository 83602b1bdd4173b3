//! Ports of the loopback interface for servers that take a port as a number.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// A port on which nobody listens now, and that no outgoing connection is given while nobody does. It is given once.
pub(crate) fn free() -> u16 {
    /// Scenarios that are played at the same time take ports before they listen on them.
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing: u16 = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32768);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    (0..64)
        .map(|_| fastrand::u16(outgoing - 10_000..outgoing))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok() && given.insert(*port))
        .expect("a free port")
}
