//! The names of things: pods, incarnations, runs, fences, lock keys.
//!
//! Each has a type of its own, so that a pod's name cannot be passed as its identity.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

/// The longest pod name, in characters. Host names and names of Kubernetes pods are mostly far shorter. A name is in
/// every log line, event and row of a run, so that longer ones would make these large.
pub const POD_ID_MAX_CHARS: usize = 128;

/// A pod's name (`POD_NAME`): 1 to 128 characters, none of them a control character.
///
/// The name is a label that may be used again after a restart. The identity is the [`Incarnation`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodId(String);

impl PodId {
    /// Checks `name` and makes a pod's name of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is empty, longer than 128 characters, or has a control character.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let chars = name.chars().count();
        let fault = if chars == 0 {
            "it is empty".to_owned()
        } else if chars > POD_ID_MAX_CHARS {
            format!("it has {chars} characters")
        } else if let Some(c) = name.chars().find(|c| c.is_control()) {
            format!("it has the control character {}", c.escape_default())
        } else {
            return Ok(Self(name));
        };
        Err(Error::new(ErrorKind::Config, format!("this cannot be a pod's name: {fault}"))
            .state("nothing was started")
            .help(format!("use 1 to {POD_ID_MAX_CHARS} characters, none of them a control character")))
    }

    /// A pod's name from a row that may have an invalid one. Invalid characters are replaced, and a long name is cut.
    pub(crate) fn lossy(name: &str) -> Self {
        let replaced = name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
        let name: String = replaced.take(POD_ID_MAX_CHARS).collect();
        Self(if name.is_empty() { '\u{fffd}'.to_string() } else { name })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PodId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}

impl TryFrom<String> for PodId {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        Self::new(s)
    }
}

impl From<PodId> for String {
    fn from(id: PodId) -> Self {
        id.0
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The UUID itself.
            #[must_use]
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                Uuid::parse_str(s).map(Self).map_err(|e| {
                    Error::new(ErrorKind::InvalidInput, format!(concat!("{:?} is not ", $what), s))
                        .help("give a UUID, as the lists of `podlock` print them")
                        .caused_by(e)
                })
            }
        }
    };
}

uuid_id!(
    /// One registration of a pod. Identity is the incarnation, never the name.
    Incarnation,
    "an incarnation"
);
uuid_id!(
    /// One run.
    RunId,
    "a run's id"
);
uuid_id!(
    /// One worker of the registry.
    WorkerId,
    "a worker's id"
);

impl Incarnation {
    /// Makes a new one: a UUID of version 7, so that later ones sort after earlier ones.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl RunId {
    /// Makes a new one: a UUID of version 7, so that later ones sort after earlier ones.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

/// The namespace of the workers' ids, drawn at random once. Another one would give each worker of a running fleet a new id.
const WORKERS: Uuid = Uuid::from_u128(0x6f0f_31a2_53c7_4c0e_9f4d_2b7a_90d1_5e38);

impl WorkerId {
    /// The id of the worker that the pod of this name registers under this URL: a UUID of version 5, so a restart of the
    /// pod keeps it.
    #[must_use]
    pub fn of(pod: &PodId, url: &str) -> Self {
        // A pod's name has no control character, so no two pairs make the same text.
        Self(Uuid::new_v5(&WORKERS, format!("{pod}\n{}", place_of(url)).as_bytes()))
    }
}

/// The place that a URL names: URLs that differ only in the case of scheme and host, in a default port that is written or
/// not, or in a `/` as the whole path, name the same place. A text that is no URL names itself.
pub(crate) fn place_of(url: &str) -> String {
    let Ok(parsed) = url::Url::parse(url) else { return url.to_owned() };
    let text = parsed.as_str();
    let is_bare = parsed.path() == "/" && parsed.query().is_none() && parsed.fragment().is_none();
    if is_bare { text.trim_end_matches('/').to_owned() } else { text.to_owned() }
}

/// A number from one global sequence. Each claim of a run gets a new one. A larger number is newer (on one timeline of
/// the database). Pass it to other systems as a fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(i64);

impl Fence {
    /// The number itself.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for Fence {
    fn from(n: i64) -> Self {
        Self(n)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The 64-bit key of an advisory lock. The server's `studio_lock_key` and `studio_witness_key` make it from the schema
/// and the pod's name. The ring of pods is ordered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LockKey(i64);

impl LockKey {
    /// The key itself.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for LockKey {
    fn from(key: i64) -> Self {
        Self(key)
    }
}

impl Error {
    pub(crate) fn about_run(mut self, run: RunId) -> Self {
        self.set_run(run.as_uuid());
        self
    }

    /// The run that this error is about. For [`ErrorKind::KeyBusy`] it is the run that has the key.
    #[must_use]
    pub fn run_id(&self) -> Option<RunId> {
        self.run().map(RunId::from)
    }
}

/// The header `traceparent` of W3C Trace Context, version 00: `00-{trace id}-{parent id}-{flags}`, in lower-case hex.
pub(crate) mod traceparent {
    /// Begins a trace: the ids are random, and the trace is marked as sampled, so that samplers that follow the parent export
    /// it. The ids are no secret, and need no secure randomness.
    pub(crate) fn generate() -> String {
        format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..))
    }

    /// Says what is wrong with a text.
    pub(crate) fn check(text: &str) -> Result<(), String> {
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, parent, flags] = parts[..] else {
            return Err("must have four parts, version-trace-parent-flags".to_owned());
        };
        let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if version != "00" {
            return Err("must be of version 00".to_owned());
        }
        for (name, part, digits) in [("trace id", trace, 32), ("parent id", parent, 16), ("flags", flags, 2)] {
            if part.len() != digits || !is_hex(part) {
                return Err(format!("must have {digits} digits of lower-case hex as its {name}"));
            }
        }
        for (name, part) in [("trace id", trace), ("parent id", parent)] {
            if part.bytes().all(|b| b == b'0') {
                return Err(format!("must not have only zeros as its {name}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_one_id_however_its_url_is_written() {
        let pod = PodId::new("a").unwrap();
        let id = WorkerId::of(&pod, "http://example.com");
        for same in ["http://example.com/", "HTTP://Example.com:80", "http://example.com:80/"] {
            assert_eq!(WorkerId::of(&pod, same), id, "{same}");
        }
        for other in ["http://example.com:8080", "https://example.com", "http://example.com/a", "http://example.com/?q"]
        {
            assert_ne!(WorkerId::of(&pod, other), id, "{other}");
        }
        assert_ne!(WorkerId::of(&PodId::new("b").unwrap(), "http://example.com"), id);
        assert_eq!(place_of("no url"), "no url");
    }

    #[test]
    fn pod_names_of_1_to_128_characters_without_control_characters_are_accepted() {
        let longest = "é".repeat(POD_ID_MAX_CHARS);
        for name in ["a", "web-0", "o'brien\"; DROP TABLE studio_pods; --", "名前", " ", longest.as_str()] {
            assert_eq!(PodId::new(name).map(|p| p.to_string()).ok().as_deref(), Some(name), "{name:?}");
        }
        let too_long = "x".repeat(POD_ID_MAX_CHARS + 1);
        for name in ["", "a\nb", "a\0", "\u{7f}", "\u{85}", too_long.as_str()] {
            let error = PodId::new(name).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Config, "{name:?}");
            let lossy = PodId::lossy(name);
            assert!(PodId::new(lossy.as_str()).is_ok(), "{lossy:?} of {name:?}");
        }
    }

    #[test]
    fn ids_survive_text_and_json() {
        let run = RunId::generate();
        assert_eq!(run.to_string().parse::<RunId>().expect("parses"), run);
        let json = serde_json::to_string(&run).expect("serialises");
        assert_eq!(serde_json::from_str::<RunId>(&json).expect("parses"), run);
        assert!("nonsense".parse::<RunId>().expect_err("refused").to_string().contains("nonsense"));
    }

    #[test]
    fn a_traceparent_is_as_w3c_trace_context_writes_it() {
        let made = traceparent::generate();
        assert_eq!((made.len(), traceparent::check(&made)), (55, Ok(())), "{made}");
        assert_ne!(made, traceparent::generate());
        assert_eq!(traceparent::check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), Ok(()));
        for (text, why) in [
            ("", "four parts"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "four parts"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", "four parts"),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "version 00"),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "version 00"),
            ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "trace id"),
            ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", "trace id"),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", "zeros as its trace id"),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "zeros as its parent id"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01", "parent id"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", "flags"),
        ] {
            assert!(traceparent::check(text).is_err_and(|e| e.contains(why)), "{text}: {why}");
        }
    }
}
