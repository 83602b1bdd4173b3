//! The secrets of a webhook, and its signatures, as <https://www.standardwebhooks.com> says it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};

/// The bounds of a secret in bytes, as the convention has them. A shorter one can be guessed. A receiver may refuse a
/// longer one.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// What secrets begin with, so that people and scanners recognise them.
const PREFIX: &str = "whsec_";

/// A secret with which messages are signed. Nothing shows it.
#[derive(Clone)]
pub(super) struct Key(SecretSlice<u8>);

impl Key {
    /// Reads a secret: base64, with or without the prefix. The error does not contain the text.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).unwrap_or(text);
        // The error of the decoder would show a character of the secret.
        let bytes = STANDARD.decode(encoded).map_err(|_| refused("is not base64"))?;
        if !BYTES.contains(&bytes.len()) {
            let (least, most) = (BYTES.start(), BYTES.end());
            return Err(refused(&format!("has {} bytes, and must have {least} to {most}", bytes.len())));
        }
        Ok(Self(SecretSlice::from(bytes)))
    }

    /// The signature of a message: `v1,` and the HMAC-SHA256 of `id.timestamp.body`, in base64.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> Result<String> {
        let keyed = Hmac::<Sha256>::new_from_slice(self.0.expose_secret());
        // HMAC takes a key of any length.
        let mut mac = keyed.map_err(|_| refused("cannot be used as a key"))?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        Ok(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Config, format!("the secret of the webhook {why}"))
        .state("no webhook was started")
        .help("make one by: echo whsec_$(openssl rand -base64 32)")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the convention's own page.
    const KNOWN: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_signature_is_that_of_the_convention() {
        let signature =
            Key::parse(KNOWN).unwrap().sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signature.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_base64_of_24_to_64_bytes_and_nothing_shows_it() {
        let of = |bytes: usize| STANDARD.encode(vec![7; bytes]);
        for good in [of(24), format!("whsec_{}", of(24)), of(64), format!(" {KNOWN}\n")] {
            let key = Key::parse(&good).unwrap();
            assert_eq!(format!("{key:?}"), "Key(hidden)");
        }
        for (bad, why) in [
            (String::new(), "has 0 bytes"),
            ("whsec_".to_owned(), "has 0 bytes"),
            (of(23), "has 23 bytes"),
            (of(65), "has 65 bytes"),
            ("hunter2 is no base64!".to_owned(), "is not base64"),
        ] {
            let error = Key::parse(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = format!("{error} {error:?}");
            assert!(text.contains(why) && !text.contains("hunter2"), "{text}");
        }
    }
}
