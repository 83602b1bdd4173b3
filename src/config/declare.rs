//! The macro that makes everything about a setting from its one declaration in `declared.rs`.
//!
//! A setting is declared as
//!
//! ```text
//! /// How long the server lets a silent liveness session live. …
//! lease: Duration => Duration = [10 s] in [from 2 s to 1 h] env "PODLOCK_LEASE";
//! ```
//!
//! that is: its name, its type in `Config`, its type in `Settings` (if it is there), its default, its bound (if it has
//! one) and its environment variable. The words in brackets are code and text at once: `value!` and `bound!` make the
//! value from them, `words!` the text for the documentation and for errors. So the two cannot differ.

/// One declared setting, as documentation and errors show it.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "a test makes the page"))]
pub(super) struct Declared {
    /// The heading of its group in `docs/settings.md`.
    pub(super) group: &'static str,
    /// The field of [`super::Config`], and of [`super::Settings`].
    pub(super) name: &'static str,
    pub(super) variable: &'static str,
    pub(super) default: &'static str,
    pub(super) bound: Option<&'static str>,
    /// Markdown, a line for each line of the source.
    pub(super) text: &'static str,
}

/// The values that a setting may have, both ends included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound<T> {
    /// Zero is allowed although it is less than `least`.
    pub(super) or_zero: bool,
    pub(super) least: T,
    pub(super) most: T,
}

impl<T: PartialOrd + Default> Bound<T> {
    pub(super) fn holds(&self, value: &T) -> bool {
        (self.least <= *value && *value <= self.most) || (self.or_zero && *value == T::default())
    }
}

/// The words of a default or of a bound.
macro_rules! words {
    ([$($words:tt)+]) => { stringify!($($words)+) };
}

/// A number and its unit.
macro_rules! amount {
    ($n:literal ms) => {
        std::time::Duration::from_millis($n)
    };
    ($n:literal s) => {
        std::time::Duration::from_secs($n)
    };
    ($n:literal min) => {
        std::time::Duration::from_secs($n * 60)
    };
    ($n:literal h) => {
        std::time::Duration::from_secs($n * 3600)
    };
    ($n:literal days) => {
        std::time::Duration::from_secs($n * 86400)
    };
    ($n:literal years) => {
        std::time::Duration::from_secs($n * 365 * 86400)
    };
    ($n:literal KiB) => {
        $n << 10
    };
    ($n:literal MiB) => {
        $n << 20
    };
}

/// A default. `$lease` is the lease that it may follow from; no lease, however long, makes it overflow.
macro_rules! value {
    ($lease:expr; [none]) => { Default::default() };
    ($lease:expr; [public]) => { "public".to_owned() };
    ($lease:expr; [report]) => { OnStall::Report };
    ($lease:expr; [cancel]) => { OnDetach::Cancel };
    ($lease:expr; [lease]) => { $lease };
    ($lease:expr; [lease * $times:literal]) => { $lease.saturating_mul($times) };
    ($lease:expr; [lease / $part:literal]) => { $lease / $part };
    ($lease:expr; [lease / $part:literal * $times:literal]) => { $lease / $part * $times };
    ($lease:expr; [min($n:literal $unit:ident, lease / $part:literal)]) => { ($lease / $part).min(amount!($n $unit)) };
    ($lease:expr; [max($n:literal $unit:ident, lease / $part:literal)]) => { ($lease / $part).max(amount!($n $unit)) };
    ($lease:expr; [$value:literal]) => { $value };
    ($lease:expr; [$n:literal $unit:ident]) => { amount!($n $unit) };
}

/// A [`Bound`].
macro_rules! bound {
    ([from $least:literal $unit:ident to $most:literal $unit_of_most:ident]) => {
        Bound { or_zero: false, least: amount!($least $unit), most: amount!($most $unit_of_most) }
    };
    ([0 or from $least:literal $unit:ident to $most:literal $unit_of_most:ident]) => {
        Bound { or_zero: true, least: amount!($least $unit), most: amount!($most $unit_of_most) }
    };
    ([from $least:literal to $most:literal]) => { Bound { or_zero: false, least: $least, most: $most } };
    ([at most $most:literal $unit:ident]) => {
        Bound { or_zero: true, least: Default::default(), most: amount!($most $unit) }
    };
    ([at most $most:literal]) => { Bound { or_zero: true, least: 0, most: $most } };
}

/// Makes `Config` with its defaults, `Settings`, and what reads, resolves and checks each setting.
macro_rules! settings {
    (
        $(#[$config_meta:meta])* config;
        $(#[$settings_meta:meta])* settings;
        $(
            group $group:literal {
                $(
                    $(#[doc = $line:literal])+
                    $name:ident: $type:ty $(=> $resolved:ty)? = $default:tt $(in $bound:tt)? env $variable:literal;
                )+
            }
        )+
        beside { $($(#[$other_meta:meta])* $visible:vis $other:ident: $other_type:ty,)+ }
    ) => {
        $(#[$config_meta])*
        pub struct Config {
            $($(
                $(#[doc = $line])+
                #[doc = ""]
                #[doc = concat!(
                    "Default: ", words!($default), $(". Bound: ", words!($bound),)? ". Environment: `", $variable, "`."
                )]
                pub $name: $type,
            )+)+
            $($(#[$other_meta])* $visible $other: $other_type,)+
        }

        $(#[$settings_meta])*
        pub struct Settings {
            $($($(
                #[doc = concat!("[`Config::", stringify!($name), "`]")]
                pub $name: $resolved,
            )?)+)+
        }

        /// Every setting, in the order of `docs/settings.md`.
        pub(super) const DECLARED: &[Declared] = &[$($(
            Declared {
                group: $group,
                name: stringify!($name),
                variable: $variable,
                default: words!($default),
                bound: settings!(@text $($bound)?),
                text: concat!($($line, "\n"),+),
            },
        )+)+];

        /// The fields of `Config` that a file may set.
        pub(super) const NAMES: &[&str] = &[$($(stringify!($name)),+),+];

        impl Default for Config {
            fn default() -> Self {
                Self {
                    // No lease is at hand, and none is asked for: what follows from the lease is not set.
                    $($($name: Setting::unset(|| value!(Duration::ZERO; $default)),)+)+
                    $($other: Default::default(),)+
                }
            }
        }

        impl Config {
            /// Sets the setting `name` from text.
            pub(super) fn set_text(&mut self, name: &str, text: &str) -> Result<(), String> {
                match name {
                    $($(stringify!($name) => self.$name = Setting::from_text(text)?,)+)+
                    _ => return Err("no setting has this name".to_owned()),
                }
                Ok(())
            }

            /// The setting `name` is what `text` says.
            pub(super) fn is_text(&self, name: &str, text: &str) -> bool {
                match name {
                    $($(
                        stringify!($name) => Setting::from_text(text).is_ok_and(|set: $type| set.same(&self.$name)),
                    )+)+
                    _ => false,
                }
            }

            /// Sets the setting `name` from the value that comes next in `map`.
            pub(super) fn set_next<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
                match name {
                    $($(stringify!($name) => self.$name = text::next_value(name, map)?,)+)+
                    _ => return Err(A::Error::unknown_field(name, NAMES)),
                }
                Ok(())
            }
        }

        impl Settings {
            /// The settings as given, and what was not given as it follows from the lease. Nothing is checked.
            pub(super) fn unchecked(config: &Config) -> Self {
                Self {
                    $($($(
                        $name: Setting::resolved(&config.$name, || -> $resolved { value!(config.lease; $default) }),
                    )?)+)+
                }
            }

            /// The first setting out of its bound: its name, and what is wrong.
            pub(super) fn out_of_bound(&self) -> Option<(&'static str, String)> {
                $($($(
                    if let Some(value) = self.$name.out_of(&bound!($bound)) {
                        let (name, bound) = (stringify!($name), words!($bound));
                        return Some((name, format!("{name}{value}, but must be {bound}")));
                    }
                )?)+)+
                None
            }
        }
    };
    (@text) => { None };
    (@text $bound:tt) => { Some(words!($bound)) };
}

pub(super) use {amount, bound, settings, value, words};
