//! A webhook: alerts as signed POSTs to a URL of the service.

mod key;
mod post;

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use url::{Host, Url};

use crate::Pod;
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::{Dialer, Tls};
use crate::history::alerts::Endpoint;
use crate::protocol::alerts::Retries;
use key::Key;
use post::Post;

/// The name of a webhook that is given none.
const NAME: &str = "default";
/// How long a name may be, in bytes.
const NAME_MOST: usize = 100;
/// How many attempts are made: 12. With the delays below, an alert is given up after six minutes and twelve time-outs at
/// most. Fewer lose alerts while a receiver restarts. More make one alert that nobody can take delay the others.
const ATTEMPTS: u32 = 12;
const ATTEMPTS_MOST: u32 = 50;
const DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const DELAY_MOST: Duration = Duration::from_secs(600);
/// How long an attempt may take. A deliverer that stands still for longer than two of these is taken over.
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(30);
/// How many secrets may sign: the old and the new one during a rotation, and some more. Each makes the header longer.
const KEYS_MOST: usize = 8;

/// Where alerts are sent, and how: [`webhook`] starts it. All pods of a fleet should have the same one.
#[derive(Clone)]
#[must_use]
pub struct Webhook {
    url: Url,
    keys: Vec<Key>,
    name: String,
    timeout: Duration,
    retries: Retries,
    allow_plain_http: bool,
}

impl Webhook {
    /// A webhook at this `https` URL. The secret signs each message: base64 of 24 to 64 bytes, with or without the prefix
    /// `whsec_`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL is no HTTP URL, or has a user, a password or a fragment; or if the secret cannot be
    /// used. The error contains neither the path of the URL nor the secret.
    pub fn new(url: &str, secret: &str) -> Result<Self> {
        let (url, keys) = (parse(url)?, vec![Key::parse(secret)?]);
        let retries = Retries { attempts: ATTEMPTS, first: DELAYS.0, most: DELAYS.1 };
        Ok(Self { url, keys, name: NAME.to_owned(), timeout: TIMEOUT, retries, allow_plain_http: false })
    }

    /// A further secret, for a rotation. All secrets sign, and a receiver accepts a message if one signature is right.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the secret cannot be used.
    pub fn secret(mut self, secret: &str) -> Result<Self> {
        self.keys.push(Key::parse(secret)?);
        Ok(self)
    }

    /// The name under which the database keeps how far the alerts are delivered. The default is `default`. Give each of
    /// several webhooks a name of its own. A webhook that gets another URL and keeps its name goes on where it was.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long one attempt may take: 10 ms to 30 s. The default is 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many attempts are made before an alert is given up: 1 to 50. The default is 12.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.retries.attempts = attempts;
        self
    }

    /// The delay after the first failed attempt, and the longest delay, up to 10 minutes each. Each delay is twice as long
    /// as the one before, and up to half of it is taken away at random. The defaults are 1 s and 60 s.
    pub fn delays(mut self, first: Duration, most: Duration) -> Self {
        (self.retries.first, self.retries.most) = (first, most);
        self
    }

    /// Allows a URL with `http` whose host is not this machine. Whoever can read the network then reads the alerts. The
    /// signature still protects them from changes.
    pub fn allow_plain_http(mut self) -> Self {
        self.allow_plain_http = true;
        self
    }

    /// How long one alert delays the later ones at most, if each of its attempts takes the whole time-out.
    #[must_use]
    pub fn longest_delay(&self) -> Duration {
        self.retries.longest(self.timeout)
    }

    /// Checks all of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming what is out of its bound.
    pub fn validate(&self) -> Result<()> {
        let Self { url, keys, name, timeout, retries, allow_plain_http } = self;
        if url.scheme() == "http" && !allow_plain_http && !is_loopback(url) {
            return Err(refused("its URL is plain http, and its host is not this machine")
                .help("use https, or allow plain http where nobody else reads the network"));
        }
        if name.is_empty() || name.len() > NAME_MOST || name.contains(|c: char| c.is_control()) {
            return Err(refused(&format!("its name must have 1 to {NAME_MOST} bytes, and no control characters")));
        }
        if !TIMEOUTS.contains(timeout) {
            return Err(refused(&format!("its time-out {timeout:?} is not within {TIMEOUTS:?}")));
        }
        if !(1..=ATTEMPTS_MOST).contains(&retries.attempts) {
            return Err(refused(&format!("{} attempts are not within 1 to {ATTEMPTS_MOST}", retries.attempts)));
        }
        if retries.first > retries.most || retries.most > DELAY_MOST {
            return Err(refused(&format!(
                "its delays {:?} and {:?} must rise, up to {DELAY_MOST:?}",
                retries.first, retries.most
            )));
        }
        if keys.len() > KEYS_MOST {
            return Err(refused(&format!("it has {} secrets, and may have {KEYS_MOST}", keys.len())));
        }
        Ok(())
    }
}

/// Shows where it goes, and neither the path, which may be a secret, nor the secrets.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("name", &self.name)
            .field("origin", &self.url.origin().ascii_serialization())
            .field("secrets", &self.keys.len())
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// Delivers the alerts of the fleet to a webhook, until the pod ends: lost pods, quarantined runs, inactive workers.
///
/// Call it on every pod. One of them delivers at a time, in the order of the event log, and another takes over when it
/// ends. Each alert is delivered at least once, unless it is given up: `docs/alerts.md` has the bounds. A repeat has the
/// same `webhook-id`. The first pod of a fleet that uses the name begins at the end of the log.
///
/// # Errors
///
/// [`ErrorKind::Config`] as [`Webhook::validate`], or [`ErrorKind::InvalidInput`] if this pod has a webhook of the same
/// name. No webhook was started then.
pub fn webhook(pod: &Pod, webhook: Webhook) -> Result<()> {
    webhook.validate()?;
    let Webhook { url, keys, name, timeout, retries, .. } = webhook;
    let post = Post { url, keys, timeout, dialer: Dialer::new(), tls: Tls::default() };
    pod.deliver_alerts(Endpoint { name, timeout, retries }, post)
}

fn parse(text: &str) -> Result<Url> {
    // The error does not contain the text: a path or a password may be secret.
    let url = Url::parse(text).map_err(|e| refused(&format!("its URL cannot be read: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("its URL is neither https nor http"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("its URL has a user or a password").help("leave it out: the signature proves who sends"));
    }
    if url.fragment().is_some() {
        return Err(refused("its URL has a fragment, which no server would get"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Config, format!("the webhook cannot be used: {why}"))
        .state("no webhook was started")
        .help("correct it: docs/alerts.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn a_url_is_https_or_http_of_this_machine_and_has_no_user_and_no_fragment() {
        for good in ["https://a.example/x?token=1", "http://localhost:1/", "http://127.0.0.9/", "http://[::1]:8/"] {
            Webhook::new(good, SECRET).unwrap().validate().unwrap();
        }
        for bad in ["", "a", "ftp://a", "https://", "https://hunter2@a/", "https://u:hunter2@a/", "https://a/hunter2#x"]
        {
            let error = Webhook::new(bad, SECRET).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        let plain = Webhook::new("http://a.example/", SECRET).unwrap();
        assert!(plain.validate().unwrap_err().to_string().contains("plain http"));
        plain.allow_plain_http().validate().unwrap();
    }

    #[test]
    fn each_bound_is_checked() {
        let new = || Webhook::new("https://a/hunter2", SECRET).unwrap();
        let s = Duration::from_secs;
        new().timeout(s(30)).attempts(50).delays(s(1), s(600)).name("x").validate().unwrap();
        let mut many = new();
        for _ in 0..KEYS_MOST {
            many = many.secret(SECRET).unwrap();
        }
        for bad in [
            new().timeout(s(31)),
            new().timeout(Duration::ZERO),
            new().attempts(0),
            new().attempts(51),
            new().delays(s(2), s(1)),
            new().delays(s(1), s(601)),
            new().name(""),
            new().name("a\nb"),
            new().name("x".repeat(101)),
            many,
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.kind() == ErrorKind::Config && !error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn one_alert_delays_the_others_for_eight_minutes_and_a_half_at_most() {
        let webhook = Webhook::new("https://a/", SECRET).unwrap();
        assert_eq!(webhook.longest_delay(), Duration::from_secs(363 + 120));
    }

    #[test]
    fn it_shows_neither_its_path_nor_its_secrets() {
        let shown = format!("{:?}", Webhook::new("https://a.example/hunter2?hunter2", SECRET).unwrap());
        assert!(
            shown.contains("https://a.example") && !shown.contains("hunter2") && !shown.contains("MfKQ"),
            "{shown}"
        );
    }
}
