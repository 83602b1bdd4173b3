//! Settings from text: what an environment variable, or a text of any other source, may hold.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Error, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{OnDetach, OnStall};

/// A setting that an environment variable can hold.
pub(super) trait Setting: Sized {
    /// The setting, or what is wrong with the text. The caller shows the text of a wrong one, so a secret accepts any.
    fn from_text(text: &str) -> Result<Self, String>;
}

impl Setting for SecretString {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }
}

impl Setting for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Setting for bool {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "it is neither true nor false".to_owned())
    }
}

impl Setting for u32 {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("it is not a whole number from 0 to {}", Self::MAX))
    }
}

impl Setting for usize {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("it is not a whole number from 0 to {}", Self::MAX))
    }
}

impl Setting for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|e| format!("it is not a duration: {e}"))
    }
}

impl<T: Setting> Setting for Option<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }
}

impl Setting for OnDetach {
    fn from_text(text: &str) -> Result<Self, String> {
        word(text)
    }
}

impl Setting for OnStall {
    fn from_text(text: &str) -> Result<Self, String> {
        word(text)
    }
}

impl<T> Setting for BTreeMap<String, T>
where
    T: for<'de> Deserialize<'de> + FromStr,
    T::Err: fmt::Display,
{
    fn from_text(text: &str) -> Result<Self, String> {
        Pairs(PhantomData).visit_str(text).map_err(|e: ValueError| e.to_string())
    }
}

/// One of the words that a type has for its values.
fn word<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    let text: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(text).map_err(|e| e.to_string())
}

/// A duration that is written as in the environment.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Written::deserialize(deserializer).map(|written| written.0)
}

/// [`duration`], or nothing.
pub(super) fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Option::<Written>::deserialize(deserializer).map(|some| some.map(|written| written.0))
}

/// A map, or text like that in the environment.
pub(super) fn pairs<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromStr,
    T::Err: fmt::Display,
{
    deserializer.deserialize_any(Pairs(PhantomData))
}

/// A duration that was read from text.
struct Written(Duration);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;

        impl Visitor<'_> for AsText {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Written, E> {
                Duration::from_text(text).map(Written).map_err(|why| E::custom(format!("{text:?}: {why}")))
            }
        }

        deserializer.deserialize_str(AsText)
    }
}

/// Pairs of text and a value: a map, or text.
struct Pairs<T>(PhantomData<T>);

impl<'de, T> Visitor<'de> for Pairs<T>
where
    T: Deserialize<'de> + FromStr,
    T::Err: fmt::Display,
{
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map, or text like a=b,c=d")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        text.split(',')
            .filter(|pair| !pair.trim().is_empty())
            .map(|pair| match pair.split_once('=') {
                Some((key, value)) if !key.trim().is_empty() => {
                    let value = value.trim().parse().map_err(|e| E::custom(format!("{pair:?}: {e}")))?;
                    Ok((key.trim().to_owned(), value))
                }
                _ => Err(E::custom(format!("{pair:?} is not key=value"))),
            })
            .collect()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            pairs.insert(key, value);
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const MS: u64 = 1;
    const SECOND: u64 = 1000 * MS;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;

    /// A form that was accepted is accepted for ever (docs/compatibility.md): in the environment, and in a file.
    #[test]
    fn each_form_of_a_duration_is_accepted_wherever_settings_come_from() {
        let forms = [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500 * MS),
            ("2500ms", 2500 * MS),
            ("7msec", 7 * MS),
            ("7millis", 7 * MS),
            ("7000us", 7 * MS),
            ("7000usec", 7 * MS),
            ("7000µs", 7 * MS),
            ("7000000ns", 7 * MS),
            ("7000000nanos", 7 * MS),
            ("7000000nsec", 7 * MS),
            ("10s", 10 * SECOND),
            ("10sec", 10 * SECOND),
            ("10secs", 10 * SECOND),
            ("10second", 10 * SECOND),
            ("10 seconds", 10 * SECOND),
            (" 10 s ", 10 * SECOND),
            ("010s", 10 * SECOND),
            ("1.5s", 1500 * MS),
            ("1 0s", 10 * SECOND),
            ("1m", MINUTE),
            ("1min", MINUTE),
            ("2mins", 2 * MINUTE),
            ("1minute", MINUTE),
            ("2minutes", 2 * MINUTE),
            ("1m 30s", 90 * SECOND),
            ("1m30s", 90 * SECOND),
            ("1min 30sec 500ms", 90 * SECOND + 500 * MS),
            ("30s 1m", 90 * SECOND),
            ("1s 1s", 2 * SECOND),
            ("2h", 2 * HOUR),
            ("1hr", HOUR),
            ("2hrs", 2 * HOUR),
            ("1hour", HOUR),
            ("2hours", 2 * HOUR),
            ("2h 37min", 2 * HOUR + 37 * MINUTE),
            ("1d", DAY),
            ("1day", DAY),
            ("30days", 30 * DAY),
            ("1w", 7 * DAY),
            ("1wk", 7 * DAY),
            ("2wks", 14 * DAY),
            ("1week", 7 * DAY),
            ("2weeks", 14 * DAY),
            ("1M", 2_630_016 * SECOND),
            ("1month", 2_630_016 * SECOND),
            ("2months", 2 * 2_630_016 * SECOND),
            ("1y", 31_557_600 * SECOND),
            ("1yr", 31_557_600 * SECOND),
            ("2yrs", 2 * 31_557_600 * SECOND),
            ("1year", 31_557_600 * SECOND),
            ("2years", 2 * 31_557_600 * SECOND),
        ];
        for (form, ms) in forms {
            let expected = Duration::from_millis(ms);
            let of_variables = Config::from_vars(["PODLOCK_LEASE", "PODLOCK_SETTLE"].map(|n| (n.into(), form.into())));
            let of_file = serde_json::from_value(serde_json::json!({ "lease": form, "settle": form }));
            for config in [of_variables.expect(form), of_file.expect(form)] {
                assert_eq!((config.lease, config.settle), (expected, Some(expected)), "{form:?}");
            }
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_and_the_error_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("  ", "empty"),
            ("10", "time unit needed"),
            ("ten seconds", "expected number"),
            ("-5s", "expected number"),
            ("5 parsecs", "unknown time unit \"parsecs\""),
            ("1s;", "invalid character"),
            ("0.1ns", "too large or cannot be represented"),
            ("99999999999999999999s", "too large"),
            ("PT10S", "expected number"),
            ("00:00:10", "invalid character"),
        ] {
            for field in ["lease", "settle"] {
                let name = format!("PODLOCK_{}", field.to_uppercase());
                let of_variables = Config::from_vars([(name.clone(), text.into())]).expect_err(text).to_string();
                for word in [name.as_str(), &format!("{text:?}"), why] {
                    assert!(of_variables.contains(word), "{text:?}: {of_variables} has no {word:?}");
                }
                let of_file: Result<Config, _> = serde_json::from_value(serde_json::json!({ field: text }));
                let of_file = of_file.expect_err(text).to_string();
                assert!(of_file.contains(why) && of_file.contains(&format!("{text:?}")), "{text:?}: {of_file}");
            }
        }
    }

    #[test]
    fn a_duration_of_a_file_is_text_and_an_optional_one_may_be_null() {
        let config: Config = serde_json::from_str(r#"{"settle":null,"ping_interval":"1s"}"#).expect("accepted");
        assert_eq!((config.settle, config.ping_interval), (None, Some(Duration::from_secs(1))));
        for refused in [r#"{"lease":10}"#, r#"{"lease":null}"#, r#"{"settle":10}"#, r#"{"lease":{"secs":1,"nanos":0}}"#]
        {
            let error = serde_json::from_str::<Config>(refused).expect_err(refused).to_string();
            assert!(error.contains("expected a duration such as \"10s\""), "{refused}: {error}");
        }
    }

    /// The forms that a variable takes, for each type of a setting.
    #[test]
    fn each_form_of_the_other_settings_is_accepted() {
        let of = |name: &str, text: &str| Config::from_vars([(format!("PODLOCK_{name}"), text.to_owned())]);
        let accepted = |name: &str, text: &str| of(name, text).expect(text);
        assert!(accepted("PUSH", "true").push && !accepted("PUSH", "false").push);
        assert_eq!([accepted("CAPACITY", "7").capacity, accepted("CAPACITY", "+007").capacity], [7, 7]);
        assert_eq!(accepted("CAPACITY", &u64::MAX.to_string()).capacity as u64, u64::MAX);
        assert_eq!(accepted("STALL_CYCLES", "4294967295").stall_cycles, u32::MAX);
        assert_eq!(accepted("ON_DETACH", "cancel").on_detach, OnDetach::Cancel);
        assert_eq!(accepted("ON_DETACH", "continue").on_detach, OnDetach::Continue);
        assert_eq!(accepted("ON_STALL", "report").on_stall, OnStall::Report);
        assert_eq!(accepted("ON_STALL", "evict").on_stall, OnStall::Evict);
        assert_eq!(accepted("ENV", "").env.as_deref(), Some(""));
        assert_eq!((accepted("SCHEMA", " s ").schema, accepted("VERSION", "").version), (" s ".into(), String::new()));
        let pairs = |pairs: &[(&str, &str)]| BTreeMap::from_iter(pairs.iter().map(|&(k, v)| (k.into(), v.into())));
        for (text, expected) in [
            ("", pairs(&[])),
            (" , ,", pairs(&[])),
            ("a=b", pairs(&[("a", "b")])),
            (" a = b , c=d,", pairs(&[("a", "b"), ("c", "d")])),
            ("a=", pairs(&[("a", "")])),
            ("a=b=c,a=d", pairs(&[("a", "d")])),
        ] {
            assert_eq!(accepted("LABELS", text).labels, expected, "{text:?}");
        }
        assert_eq!(accepted("CAPACITY_OF", "big=1, small = 5").capacity_of["small"], 5);
    }

    #[test]
    fn what_is_no_setting_is_refused_and_the_error_says_why() {
        for (name, text, why) in [
            ("PODLOCK_PUSH", "", "neither true nor false"),
            ("PODLOCK_PUSH", "True", "neither true nor false"),
            ("PODLOCK_PUSH", "1", "neither true nor false"),
            ("PODLOCK_CAPACITY", "", "whole number from 0 to"),
            ("PODLOCK_CAPACITY", " 7", "whole number from 0 to"),
            ("PODLOCK_CAPACITY", "1e3", "whole number from 0 to"),
            ("PODLOCK_MAX_CRASHES", "4294967296", "whole number from 0 to 4294967295"),
            ("PODLOCK_ON_DETACH", "Cancel", "expected `cancel` or `continue`"),
            ("PODLOCK_ON_STALL", "kill", "expected `report` or `evict`"),
            ("PODLOCK_LABELS", "a", "is not key=value"),
            ("PODLOCK_LABELS", "=b", "is not key=value"),
            ("PODLOCK_CAPACITY_OF", "big=many", "invalid digit"),
        ] {
            let error = Config::from_vars([(name.to_owned(), text.to_owned())]).expect_err(name).to_string();
            for word in [name, &format!("{text:?}"), why] {
                assert!(error.contains(word), "{error} has no {word:?}");
            }
        }
    }
}
