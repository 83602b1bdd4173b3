//! What an HTTP probe needs of a check: the headers of its request, and which answers say "ready".

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{HeaderText, HealthCheck};

/// The statuses that say "ready", unless the check says otherwise: 200 to 399, as in Kubernetes.
const EXPECTED: RangeInclusive<u16> = 200..=399;

impl HealthCheck {
    pub(crate) fn headers(&self) -> &BTreeMap<String, HeaderText> {
        &self.headers
    }

    /// Whether this HTTP status says "ready".
    pub(crate) fn expects(&self, status: u16) -> bool {
        self.expected.as_ref().map_or(EXPECTED.contains(&status), |expected| expected.contains(&status))
    }

    /// The statuses that say "ready", in words.
    pub(crate) fn expected_words(&self) -> String {
        let Some(expected) = &self.expected else { return range_words(&EXPECTED) };
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for &status in expected {
            match ranges.last_mut() {
                Some(last) if last.end() + 1 == status => *last = *last.start()..=status,
                _ => ranges.push(status..=status),
            }
        }
        ranges.iter().map(range_words).collect::<Vec<_>>().join(" or ")
    }
}

fn range_words(range: &RangeInclusive<u16>) -> String {
    match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first} to {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_the_statuses_that_kubernetes_expects_say_ready() {
        let check = HealthCheck::http("/");
        let expects = [199, 200, 302, 399, 400, 503].map(|status| check.expects(status));
        assert_eq!(expects, [false, true, true, true, false, false]);
        assert!(check.clone().expect([503]).expects(503) && !check.expect([503]).expects(200));
    }

    #[test]
    fn the_expected_statuses_are_said_as_ranges() {
        let words = |expected: &[u16]| HealthCheck::http("/").expect(expected.iter().copied()).expected_words();
        assert_eq!(HealthCheck::http("/").expected_words(), "200 to 399");
        assert_eq!(words(&[204]), "204");
        assert_eq!(words(&[204, 200]), "200 or 204");
        assert_eq!(words(&(200..300).chain([404, 405]).collect::<Vec<_>>()), "200 to 299 or 404 to 405");
        HealthCheck::http("/").expect(200..600).validate().unwrap();
    }
}
