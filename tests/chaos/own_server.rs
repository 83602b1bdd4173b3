//! The servers of the scenarios: one that those share which leave it alone, and others that are harmed.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use podlock::throwaway::{Builder, Server, ThrowawayError};

/// A server that is dropped away from the runtime: stopping it blocks.
#[derive(Clone)]
pub(crate) struct OwnServer(Option<Arc<Server>>);

impl OwnServer {
    /// For a world whose database is on a cluster's nodes: there is no server of its own to harm.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) async fn start(builder: Builder) -> Self {
        let server = tokio::task::spawn_blocking(|| builder.start()).await.unwrap().expect("a throwaway PostgreSQL");
        Self::from(server)
    }

    /// Puts the server through a fault, and returns when that is complete.
    pub(crate) async fn suffers(&self, fault: fn(&Server) -> Result<(), ThrowawayError>) {
        let server = self.clone();
        tokio::task::spawn_blocking(move || fault(&server)).await.unwrap().expect("the fault");
    }
}

impl From<Server> for OwnServer {
    fn from(server: Server) -> Self {
        Self(Some(Arc::new(server)))
    }
}

impl Deref for OwnServer {
    type Target = Server;
    fn deref(&self) -> &Server {
        self.0.as_deref().expect("it is there until it is dropped")
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let server = self.0.take();
        std::thread::spawn(move || drop(server));
    }
}

/// The server for scenarios that leave it alone. It ends with the process.
pub(crate) async fn shared_server() -> OwnServer {
    static SERVER: OnceLock<OwnServer> = OnceLock::new();
    let started = || OwnServer::from(crate::inherited::postgres().start().expect("a throwaway PostgreSQL"));
    tokio::task::spawn_blocking(move || SERVER.get_or_init(started).clone()).await.unwrap()
}
