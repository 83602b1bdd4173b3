//! The admin key: who may use the routes that tell of the whole fleet.

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::error::{Error, ErrorKind, Result};
use crate::http::problem::Problem;

const KEY: &str = "PODLOCK_ADMIN_KEY";
const FILE: &str = "PODLOCK_ADMIN_KEY_FILE";
/// The fewest characters of a key. Fewer could be guessed; this many still can, if they are words. See the page on HTTP
/// for how to make a key.
const SHORTEST: usize = 8;
/// The largest file that is read, in bytes. A path to a device or to a large file must not fill the memory.
const FILE_MAX: u64 = 64 * 1024;

type Hash = [u8; 32];

/// The key for the routes of [`liveness_router`](super::liveness_router), and for any of your own that you
/// [protect](Self::protect). A request names it as `Authorization: Bearer KEY`.
///
/// Without a key, these routes are refused to everybody. There may be several keys, so that a new one can be brought in
/// before the old one goes. Only their hashes are kept, and `Debug` shows only how many there are.
///
/// ```
/// use podlock::http::AdminKey;
///
/// let key = AdminKey::new("a-long-random-text")?;
/// assert_eq!(format!("{key:?}"), "AdminKey(1)");
/// assert!(AdminKey::new("short").is_err());
/// # Ok::<(), podlock::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct AdminKey {
    /// SHA-256 of each key. A comparison of the keys themselves would have to stop early for another length, and so tell
    /// the key's length to whoever measures it. Hashes all have the same length.
    hashes: Arc<[Hash]>,
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminKey({})", self.hashes.len())
    }
}

impl AdminKey {
    /// No key: everything that is protected by it is refused.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// One key: 8 or more visible characters of ASCII. Make it long and random: `openssl rand -hex 32`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`]. The message does not repeat the key.
    pub fn new(key: &str) -> Result<Self> {
        Ok(Self { hashes: [hash_of(key, "the admin key")?].into() })
    }

    /// The keys of a file: one a line. The line break after the last one may be missing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the file cannot be read, is empty or is over 64 KiB, or a line is no key. The message
    /// names the file and the line, and repeats nothing of it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let named = format!("the file of the admin key, {}", path.display());
        let text = read(path).map_err(|e| refused(format!("{named}, cannot be read: {e}")))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        if text.is_empty() {
            return Err(refused(format!("{named}, is empty")));
        }
        let lines = text.split('\n').enumerate();
        let hashes = lines.map(|(at, line)| {
            let line = line.strip_suffix('\r').unwrap_or(line);
            hash_of(line, &format!("line {} of {named},", at + 1))
        });
        Ok(Self { hashes: hashes.collect::<Result<_>>()? })
    }

    /// The key that `PODLOCK_ADMIN_KEY` gives, or the keys of the file that `file` or else `PODLOCK_ADMIN_KEY_FILE`
    /// names. [None](Self::none) if none of them is given. A variable that is empty counts as not given.
    ///
    /// # Errors
    ///
    /// As [`AdminKey::new`] and [`AdminKey::from_file`]. [`ErrorKind::Config`] if both a key and a file are given.
    pub fn from_env(file: Option<&Path>) -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let file = file.map(|file| file.as_os_str().to_owned()).or_else(|| variable(FILE));
        match (variable(KEY), file) {
            (None, None) => Ok(Self::none()),
            (None, Some(file)) => Self::from_file(file),
            (Some(key), None) => Self::new(key.to_str().unwrap_or_default()),
            (Some(_), Some(_)) => Err(refused(format!("both {KEY} and a file of the admin key are given"))),
        }
    }

    /// Whether there is no key, so that everything that is protected by it is refused.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Puts all routes of `router` behind this key. A request without the key is answered 401 `unauthorized`. If there
    /// is no key, each is answered 403 `no_admin_key`. The router's fallback stays open.
    pub fn protect(&self, router: Router) -> Router {
        // The layer does not accept a router without routes.
        if !router.has_routes() {
            return router;
        }
        router.route_layer(from_fn_with_state(self.clone(), gate))
    }

    /// Whether the request has one of the keys.
    fn allows(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        // With two of them, a proxy in front may have checked the other one.
        let (Some(given), None) = (given.next(), given.next()) else { return false };
        let Some(space) = given.as_bytes().iter().position(|byte| *byte == b' ') else { return false };
        let (scheme, key) = given.as_bytes().split_at(space);
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            return false;
        }
        let hash: Hash = Sha256::digest(key.trim_ascii_start()).into();
        // Each key is compared, so that the time does not tell which of them it was.
        let same = self.hashes.iter().fold(Choice::from(0), |same, known| same | known.ct_eq(&hash));
        same.into()
    }
}

/// Lets only requests with the key pass.
async fn gate(State(key): State<AdminKey>, request: Request, next: Next) -> Response {
    if key.is_none() {
        let error = format!("no admin key is set, so this is refused to everybody: set {KEY} or {FILE}");
        return Problem::new(StatusCode::FORBIDDEN, "no_admin_key", error).into_response();
    }
    if key.allows(request.headers()) {
        return next.run(request).await;
    }
    let error = "this needs one header `Authorization: Bearer KEY` with the admin key";
    let mut refusal = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", error).into_response();
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refusal
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_MAX {
        return Err(std::io::Error::other(format!("it is over {FILE_MAX} bytes")));
    }
    Ok(text)
}

fn hash_of(key: &str, named: &str) -> Result<Hash> {
    // The header can carry nothing else. Spaces and control characters come from a mistake in making the file.
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused(format!("{named} has a character that is not a visible one of ASCII")));
    }
    if key.len() < SHORTEST {
        return Err(refused(format!("{named} has fewer than {SHORTEST} characters")));
    }
    Ok(Sha256::digest(key.as_bytes()).into())
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::Config, what)
        .state("nothing was started")
        .help(format!("give either {KEY} or {FILE}; `openssl rand -hex 32` makes a good key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(key: &AdminKey, headers: &[&[u8]]) -> bool {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        key.allows(&map)
    }

    #[test]
    fn one_header_with_the_very_key_passes() {
        let key = AdminKey::new("correct-horse").unwrap();
        for passes in ["Bearer correct-horse", "bearer correct-horse", "BEARER  correct-horse"] {
            assert!(allows(&key, &[passes.as_bytes()]), "{passes}");
        }
        let refused: [&[&[u8]]; 14] = [
            &[],
            &[b""],
            &[b"Bearer"],
            &[b"Bearer "],
            &[b"correct-horse"],
            &[b"Basic correct-horse"],
            &[b"Bearercorrect-horse"],
            &[b"Bearer correct-hors"],
            &[b"Bearer correct-horse2"],
            &[b"Bearer correct-horsf"],
            &[b"Bearer CORRECT-HORSE"],
            &[b"Bearer correct-horse, Bearer x"],
            &[b"Bearer correct-horse\xe9"],
            &[b"Bearer correct-horse", b"Bearer correct-horse"],
        ];
        for headers in refused {
            assert!(!allows(&key, headers), "{headers:?}");
        }
        assert!(!allows(&AdminKey::none(), &[b"Bearer "]) && !allows(&AdminKey::none(), &[b"Bearer x"]));
    }

    #[test]
    fn a_file_has_a_key_a_line_and_no_error_repeats_any() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, keys) in [
            ("correct-horse", vec!["correct-horse"]),
            ("correct-horse\n", vec!["correct-horse"]),
            ("correct-horse\r\nbattery-staple\r\n", vec!["correct-horse", "battery-staple"]),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let key = AdminKey::from_file(file.path()).unwrap();
            assert_eq!(format!("{key:?}"), format!("AdminKey({})", keys.len()), "{text:?}");
            for one in keys {
                assert!(allows(&key, &[format!("Bearer {one}").as_bytes()]), "{text:?}: {one}");
            }
        }
        let long = "x".repeat(70_000);
        for (text, words) in [
            ("", "is empty"),
            ("\n", "is empty"),
            ("correct-horse\n\n", "line 2"),
            ("\ncorrect-horse", "line 1"),
            ("correct-horse\nstaple", "line 2"),
            ("correct horse", "visible"),
            ("correct-hors\u{e9}", "visible"),
            (&long, "over 65536 bytes"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = AdminKey::from_file(file.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let error = format!("{error} {error:?}");
            assert!(
                error.contains(words) && !error.contains("horse") && !error.contains("staple"),
                "{text:?}: {error}"
            );
        }
        assert!(AdminKey::from_file("/nowhere/at/all").unwrap_err().to_string().contains("/nowhere/at/all"));
    }
}
