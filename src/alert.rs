//! An alert, as a callback of the service and a webhook get it.

use serde::{Serialize, Serializer};

use crate::id::{Incarnation, PodId, RunId};
use crate::protocol::alerts::AlertKind;
use crate::timestamp::Timestamp;

/// Something in the fleet that people want to know: an event of the log, with what the event says of it.
///
/// As JSON, it is the body of a webhook. Further fields may follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Alert {
    /// What it is about. In JSON: `type`.
    #[serde(rename = "type", serialize_with = "name")]
    pub kind: AlertKind,
    /// Names this alert, and no other alert of any fleet: the position and the incarnation. It is the same at each
    /// delivery, so that a receiver can drop repeats.
    pub id: String,
    /// The position in the event log (`studio_pod_events.idx`).
    pub idx: i64,
    /// When it happened, by the server's clock.
    pub at: Timestamp,
    /// The schema of the fleet's tables.
    pub schema: String,
    /// The pod. `lost`: the one that was lost. `quarantined`: the one that set the run aside. `inactive`: the one whose
    /// workers they are.
    pub pod: PodId,
    /// The incarnation of that pod.
    pub incarnation: Incarnation,
    /// `lost`: how the incarnation ended (`lost`, `stalled`, `replaced`). `quarantined`: `crashes` if the run crashed too
    /// many owners, `unclaimable` if no pod can claim it. `inactive`: `None`.
    pub reason: Option<String>,
    /// `lost`: what was behind it, if it is known (`studio_pod_sessions.cause`).
    pub cause: Option<String>,
    /// The pod that wrote the event.
    pub by: String,
    /// `quarantined`: the run.
    pub run_id: Option<RunId>,
    /// `quarantined`: the kind of the run.
    pub run_kind: Option<String>,
    /// `inactive`: the number of workers.
    pub workers: Option<i64>,
}

impl Alert {
    /// The id of the alert at a position of the log. Two databases, or a log that lost its end, may use a position twice.
    /// An incarnation is used once.
    pub(crate) fn id_of(idx: i64, incarnation: Incarnation) -> String {
        format!("{idx}-{incarnation}")
    }
}

// serde hands a reference over.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn name<S: Serializer>(kind: &AlertKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.as_str())
}
