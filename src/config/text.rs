//! What each type of setting does: which text an environment variable may hold, which value a file may hold, how an
//! unset one is resolved, and how a bound is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Error, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::declare::Bound;
use super::declared::NAMES;
use super::{Config, OnDetach, OnStall};

/// A type of settings in [`Config`].
pub(super) trait Setting: Sized {
    /// The type in [`super::Settings`].
    type Resolved;

    /// The setting, or what is wrong with the text. The caller shows the text of a wrong one, so a secret accepts any.
    fn from_text(text: &str) -> Result<Self, String>;
    /// The setting from a file.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    /// The setting where nothing sets it.
    fn unset(default: impl FnOnce() -> Self::Resolved) -> Self;
    /// The setting, or the default where it is not set.
    fn resolved(&self, default: impl FnOnce() -> Self::Resolved) -> Self::Resolved;
    /// Both are the same setting.
    fn same(&self, other: &Self) -> bool;
}

/// A type whose every value is set: its default does not follow from the lease.
macro_rules! always_set {
    () => {
        type Resolved = Self;

        fn unset(default: impl FnOnce() -> Self) -> Self {
            default()
        }

        fn resolved(&self, _: impl FnOnce() -> Self) -> Self {
            self.clone()
        }
    };
}

/// A type that a file holds as serde does by itself.
macro_rules! plain {
    ($($type:ty, |$text:ident| $from_text:expr;)+) => {
        $(
            impl Setting for $type {
                always_set!();

                fn from_text($text: &str) -> Result<Self, String> {
                    $from_text
                }

                fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    Self::deserialize(deserializer)
                }

                fn same(&self, other: &Self) -> bool {
                    self == other
                }
            }
        )+
    };
}
plain! {
    String, |text| Ok(text.to_owned());
    bool, |text| text.parse().map_err(|_| "it is neither true nor false".to_owned());
    u32, |text| text.parse().map_err(|_| format!("it is not a whole number from 0 to {}", Self::MAX));
    usize, |text| text.parse().map_err(|_| format!("it is not a whole number from 0 to {}", Self::MAX));
    OnDetach, |text| word(text);
    OnStall, |text| word(text);
}

impl Setting for SecretString {
    always_set!();

    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }

    fn same(&self, other: &Self) -> bool {
        self.expose_secret() == other.expose_secret()
    }
}

impl Setting for Duration {
    always_set!();

    fn from_text(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map_err(|e| format!("it is not a duration: {e}"))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;

        impl Visitor<'_> for AsText {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
                Duration::from_text(text).map_err(|why| E::custom(format!("{text:?}: {why}")))
            }
        }

        deserializer.deserialize_str(AsText)
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl<T: Setting<Resolved = T> + Clone> Setting for Option<T> {
    type Resolved = T;

    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<Written<T>>::deserialize(deserializer).map(|some| some.map(|written| written.0))
    }

    fn unset(_: impl FnOnce() -> T) -> Self {
        None
    }

    fn resolved(&self, default: impl FnOnce() -> T) -> T {
        self.clone().unwrap_or_else(default)
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Some(one), Some(other)) => one.same(other),
            (None, None) => true,
            _ => false,
        }
    }
}

impl<T> Setting for BTreeMap<String, T>
where
    T: for<'de> Deserialize<'de> + FromStr + Clone + PartialEq,
    T::Err: fmt::Display,
{
    always_set!();

    fn from_text(text: &str) -> Result<Self, String> {
        Pairs(PhantomData).visit_str(text).map_err(|e: ValueError| e.to_string())
    }

    /// A map, or text like that in the environment.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Pairs(PhantomData))
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

/// One of the words that a type has for its values.
fn word<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    let text: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(text).map_err(|e| e.to_string())
}

/// A resolved setting that can be out of its bound.
pub(super) trait Within {
    /// What the bound is about.
    type Of;

    /// Which value is out of the bound: ` is 5s`, ` "kind" is 0`.
    fn out_of(&self, bound: &Bound<Self::Of>) -> Option<String>;
}

macro_rules! within {
    ($($type:ty),+) => {
        $(
            impl Within for $type {
                type Of = Self;

                fn out_of(&self, bound: &Bound<Self>) -> Option<String> {
                    (!bound.holds(self)).then(|| format!(" is {self:?}"))
                }
            }
        )+
    };
}
within!(Duration, u32, usize);

impl<T: Within<Of = T>> Within for BTreeMap<String, T> {
    type Of = T;

    fn out_of(&self, bound: &Bound<T>) -> Option<String> {
        self.iter().find_map(|(key, value)| Some(format!(" {key:?}{}", value.out_of(bound)?)))
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_struct("Config", NAMES, Named)
    }
}

/// The settings of a file, each by its name.
struct Named;

impl<'de> Visitor<'de> for Named {
    type Value = Config;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of podlock's settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Config, A::Error> {
        let (mut config, mut read) = (Config::default(), BTreeSet::new());
        while let Some(name) = map.next_key::<String>()? {
            config.set_next(&name, &mut map)?;
            if let Some(twice) = NAMES.iter().find(|known| **known == name)
                && !read.insert(*twice)
            {
                return Err(A::Error::duplicate_field(twice));
            }
        }
        Ok(config)
    }
}

/// The value of the setting `name`, which comes next in `map`. An error names the setting.
pub(super) fn next_value<'de, A: MapAccess<'de>, T: Setting>(name: &str, map: &mut A) -> Result<T, A::Error> {
    let value = map.next_value::<Written<T>>().map_err(|e| A::Error::custom(format_args!("setting {name}: {e}")))?;
    Ok(value.0)
}

/// A setting as a file holds it.
struct Written<T>(T);

impl<'de, T: Setting> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
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
