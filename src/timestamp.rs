//! A point in time. Only this module knows which crate reads and writes dates.

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::error::{Error, ErrorKind, Result};

/// 2000-01-01, from which a `timestamptz` counts, in microseconds since 1970.
const SQL_EPOCH: i64 = 946_684_800_000_000;

/// A point in time, by the clock of whoever recorded it: mostly the server's. It is for people; podlock decides nothing
/// by it (L8).
///
/// As text and in JSON it is RFC 3339 in UTC, with as many digits of a second as it has. A precision sets their number:
/// `{:.3}` cuts at the millisecond. In SQL it is a `timestamptz`, with microseconds.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use podlock::Timestamp;
///
/// let at: Timestamp = "2026-03-01T13:30:00.25+01:00".parse()?;
/// assert_eq!(at.to_string(), "2026-03-01T12:30:00.25Z");
/// assert_eq!(format!("{at:.0}"), "2026-03-01T12:30:00Z");
/// assert_eq!(SystemTime::from(at), SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_368_200_250));
/// # Ok::<(), podlock::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// 1970-01-01, midnight UTC.
    pub const UNIX_EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// Now, by this machine's clock.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// Microseconds since [`Timestamp::UNIX_EPOCH`]; negative before it.
    #[must_use]
    pub fn as_microsecond(self) -> i64 {
        self.0.as_microsecond()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("{text:?} cannot be read as a time: {e}"))
                .help("write it by RFC 3339: 2026-03-01T12:30:00Z")
        })
    }
}

impl TryFrom<SystemTime> for Timestamp {
    type Error = Error;

    /// Fails outside of the years -9999 to 9999.
    fn try_from(time: SystemTime) -> Result<Self> {
        time.try_into().map(Self).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "a time is outside of the years -9999 to 9999")
                .help("see where it comes from")
        })
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        let (since, early) = (at.0.as_duration().unsigned_abs(), at < Timestamp::UNIX_EPOCH);
        if early { Self::UNIX_EPOCH - since } else { Self::UNIX_EPOCH + since }
    }
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        let micros = i64::from_sql(ty, raw)?.checked_add(SQL_EPOCH).ok_or("the time is infinite")?;
        Ok(Self(jiff::Timestamp::from_microsecond(micros)?))
    }

    accepts!(TIMESTAMPTZ);
}

impl ToSql for Timestamp {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        (self.as_microsecond() - SQL_EPOCH).to_sql(ty, out)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    #[test]
    fn text_and_json_are_rfc_3339_with_the_digits_that_there_are() {
        for (read, written) in [
            ("2026-03-01T12:30:00Z", "2026-03-01T12:30:00Z"),
            ("2026-03-01 13:30:00+01", "2026-03-01T12:30:00Z"),
            ("2026-03-01T12:30:00.000Z", "2026-03-01T12:30:00Z"),
            ("2026-03-01T12:30:00.100Z", "2026-03-01T12:30:00.1Z"),
            ("2026-03-01T12:30:00.123456Z", "2026-03-01T12:30:00.123456Z"),
            ("1969-12-31T23:59:59.9Z", "1969-12-31T23:59:59.9Z"),
        ] {
            assert_eq!((at(read).to_string(), format!("{:?}", at(read))), (written.to_owned(), written.to_owned()));
            let json = serde_json::to_string(&at(read)).expect("json");
            assert_eq!(json, format!("{written:?}"));
            assert_eq!(serde_json::from_str::<Timestamp>(&json).expect("json"), at(read));
        }
        for (text, seconds, millis) in [
            ("2026-03-01T12:30:00.9996Z", "2026-03-01T12:30:00Z", "2026-03-01T12:30:00.999Z"),
            ("2026-03-01T12:30:00Z", "2026-03-01T12:30:00Z", "2026-03-01T12:30:00.000Z"),
            ("0003-03-01T12:30:00.05Z", "0003-03-01T12:30:00Z", "0003-03-01T12:30:00.050Z"),
        ] {
            assert_eq!((format!("{:.0}", at(text)), format!("{:.3}", at(text))), (seconds.into(), millis.into()));
        }
    }

    #[test]
    fn what_is_no_time_is_refused_by_name() {
        for text in ["", "yesterday", "2026-03-01", "2026-03-01T12:30:00", "2026-02-30T00:00:00Z"] {
            let error = text.parse::<Timestamp>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
            assert!(serde_json::from_value::<Timestamp>(text.into()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_system_time_comes_back_and_one_that_is_too_far_is_refused() {
        let day = Duration::from_secs(24 * 60 * 60);
        for time in [
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + Duration::new(1_772_368_200, 123_456_789),
            SystemTime::UNIX_EPOCH - Duration::new(1, 1),
            SystemTime::UNIX_EPOCH + day * 365 * 8000,
        ] {
            assert_eq!(SystemTime::from(Timestamp::try_from(time).expect("in range")), time);
        }
        assert_eq!(Timestamp::try_from(SystemTime::UNIX_EPOCH).expect("in range"), Timestamp::UNIX_EPOCH);
        for far in [SystemTime::UNIX_EPOCH + day * 365 * 9000, SystemTime::UNIX_EPOCH - day * 365 * 13_000] {
            let error = Timestamp::try_from(far).expect_err("too far");
            assert!(error.to_string().contains("years -9999 to 9999"), "{error}");
        }
        assert!(Timestamp::now() > at("2026-01-01T00:00:00Z"));
        assert_eq!(at("1969-12-31T23:59:59.5Z").as_microsecond(), -500_000);
    }

    #[test]
    fn earlier_ones_come_first_and_sql_keeps_microseconds() {
        let mut times = ["2026-03-01T12:30:00.5Z", "1969-12-31T23:59:59Z", "2026-03-01T12:30:00Z"].map(at);
        times.sort();
        assert_eq!(
            times.map(|t| t.to_string()).join(" "),
            "1969-12-31T23:59:59Z 2026-03-01T12:30:00Z 2026-03-01T12:30:00.5Z"
        );
        for (written, kept, micros) in [
            ("2000-01-01T00:00:00Z", "2000-01-01T00:00:00Z", 0),
            ("2000-01-01T00:00:00.123456789Z", "2000-01-01T00:00:00.123456Z", 123_456),
            ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.5Z", -946_684_800_500_000),
            ("9999-12-30T00:00:00Z", "9999-12-30T00:00:00Z", 252_455_443_200_000_000),
        ] {
            let mut sent = BytesMut::new();
            let null = at(written).to_sql_checked(&Type::TIMESTAMPTZ, &mut sent).expect("sent");
            assert!(matches!(null, IsNull::No) && sent[..] == i64::to_be_bytes(micros), "{written}: {sent:?}");
            assert_eq!(Timestamp::from_sql(&Type::TIMESTAMPTZ, &sent).expect("read"), at(kept));
            assert!(at(written).to_sql_checked(&Type::TIMESTAMP, &mut sent).is_err());
        }
        // SQL's infinity, years that SQL has and RFC 3339 does not, and an incomplete value.
        for sent in [i64::MAX, i64::MIN, 9_223_371_331_199_999_999, 252_500_000_000_000_000, -422_000_000_000_000_000] {
            assert!(Timestamp::from_sql(&Type::TIMESTAMPTZ, &sent.to_be_bytes()).is_err(), "{sent}");
        }
        assert!(Timestamp::from_sql(&Type::TIMESTAMPTZ, &[0; 4]).is_err());
        assert!(!<Timestamp as FromSql<'_>>::accepts(&Type::TIMESTAMP));
    }
}
