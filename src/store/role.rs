//! The purposes of podlock's connections. The purpose's name is the last part of the `application_name`.

use crate::pg::session::Purpose;

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Holds the pod's liveness lock, and sends pings.
    Liveness,
    /// Holds the pod's witness lock, LISTENs, sweeps and beats.
    Control,
    /// Waits for the lock of the successor in the ring.
    Watch,
    /// Applies migrations.
    Migrate,
    /// LISTENs for an operator.
    Follow,
    /// LISTENs for the readers of streams.
    Stream,
    /// The pool of a pod.
    Pool,
    /// The pool of an operator.
    Operator,
}

impl Role {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Control => "control",
            Self::Watch => "watch",
            Self::Migrate => "migrate",
            Self::Follow => "follow",
            Self::Stream => "stream",
            Self::Pool => "pool",
            Self::Operator => "operator",
        }
    }
}

impl From<Role> for Purpose {
    fn from(role: Role) -> Self {
        Self { label: role.as_str(), has_long_transactions: role == Role::Migrate }
    }
}
