//! Parameters of queries. One table says which there are and what they may be. Requests are checked by it, and the
//! OpenAPI document is made from it.

use axum::http::StatusCode;
use url::form_urlencoded;

use crate::http::problem::Problem;
use crate::timestamp::Timestamp;

/// A parameter that a route takes. None is required.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The meaning, in words.
    pub(super) text: &'static str,
}

/// What a parameter may be.
#[derive(Debug)]
pub(super) enum Kind {
    /// A number from 0 to `most`. 0, the default, does not filter.
    Bound { most: f64 },
    /// A whole number from 1 to `most`.
    Limit { usual: i64, most: i64 },
    /// A time by RFC 3339.
    Time,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Bound(f64),
    Limit(i64),
    Time(Timestamp),
}

/// The parameters of one request, by name.
#[derive(Debug)]
pub(super) struct Given {
    values: Vec<(&'static str, Value)>,
    table: &'static [Parameter],
}

impl Given {
    /// Checks a query. A parameter that is unknown or given twice is refused: to ignore it would answer another
    /// question.
    pub(super) fn read(query: Option<&str>, table: &'static [Parameter]) -> Result<Self, Problem> {
        let mut values: Vec<(&str, Value)> = Vec::new();
        for (name, text) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let Some(parameter) = table.iter().find(|parameter| parameter.name == name) else {
                let known: Vec<_> = table.iter().map(|parameter| parameter.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(bad(&name, format!("there is no parameter {name:?}; there are: {known}")));
            };
            if values.iter().any(|(given, _)| *given == parameter.name) {
                return Err(bad(&name, format!("{name} is given twice")));
            }
            let value = parameter.kind.read(&text).map_err(|what| bad(&name, format!("{name} is {text:?}: {what}")))?;
            values.push((parameter.name, value));
        }
        Ok(Self { values, table })
    }

    /// 0 if it is not given.
    pub(super) fn bound(&self, name: &str) -> f64 {
        match self.value(name) {
            Some(Value::Bound(bound)) => bound,
            _ => 0.0,
        }
    }

    /// Its usual value if it is not given.
    pub(super) fn limit(&self, name: &str) -> i64 {
        match (self.value(name), self.table.iter().find(|parameter| parameter.name == name)) {
            (Some(Value::Limit(limit)), _) => limit,
            (_, Some(Parameter { kind: Kind::Limit { usual, .. }, .. })) => *usual,
            _ => 1,
        }
    }

    pub(super) fn time(&self, name: &str) -> Option<Timestamp> {
        match self.value(name) {
            Some(Value::Time(time)) => Some(time),
            _ => None,
        }
    }

    fn value(&self, name: &str) -> Option<Value> {
        self.values.iter().find(|(given, _)| *given == name).map(|(_, value)| *value)
    }
}

impl Kind {
    fn read(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::Bound { most } => {
                let bound = text.parse().ok().filter(|bound| (0.0..=*most).contains(bound));
                // -0 is 0.
                bound.map(|bound: f64| Value::Bound(bound.abs())).ok_or(format!("it must be a number from 0 to {most}"))
            }
            Self::Limit { most, .. } => {
                let limit = text.parse().ok().filter(|limit| (1..=*most).contains(limit));
                limit.map(Value::Limit).ok_or(format!("it must be a whole number from 1 to {most}"))
            }
            Self::Time => {
                let said = "it must be a time by RFC 3339, such as 2026-03-01T12:30:00Z";
                time(text).map(Value::Time).ok_or(said.to_owned())
            }
        }
    }
}

/// A `+` that a client did not encode arrives as a space: it stood before the offset.
fn time(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let (before, offset) = text.rsplit_once(' ')?;
    format!("{before}+{offset}").parse().ok()
}

/// The refusal of a parameter, which names it.
pub(super) fn bad(field: &str, error: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", error).with("field", field)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    const TABLE: &[Parameter] = &[
        Parameter { name: "share", kind: Kind::Bound { most: 1.0 }, text: "" },
        Parameter { name: "limit", kind: Kind::Limit { usual: 100, most: 1000 }, text: "" },
        Parameter { name: "since", kind: Kind::Time, text: "" },
    ];

    #[test]
    fn what_is_not_given_has_its_usual_value() {
        for query in [None, Some(""), Some("&")] {
            let given = Given::read(query, TABLE).unwrap();
            assert_eq!((given.bound("share"), given.limit("limit"), given.time("since")), (0.0, 100, None));
        }
        let given = Given::read(Some("limit=1000&share=5e-1&since=2026-03-01T12%3A30:00Z"), TABLE).unwrap();
        assert_eq!((given.bound("share"), given.limit("limit")), (0.5, 1000));
        let at = given.time("since").unwrap();
        assert_eq!(at.to_string(), "2026-03-01T12:30:00Z");
        for text in ["2026-03-01T13:30:00+01:00", "2026-03-01T13:30:00%2B01:00", "2026-03-01+12:30:00Z"] {
            assert_eq!(Given::read(Some(&format!("since={text}")), TABLE).unwrap().time("since"), Some(at), "{text}");
        }
        for (text, bound) in [("-0", 0.0), ("0", 0.0), ("1", 1.0), ("1e-400", 0.0)] {
            let given = Given::read(Some(&format!("share={text}")), TABLE).unwrap().bound("share");
            assert!(given == bound && given.is_sign_positive(), "{text}");
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (query, field) in [
            ("share=", "share"),
            ("share=NaN", "share"),
            ("share=inf", "share"),
            ("share=-0.1", "share"),
            ("share=1.01", "share"),
            ("share=0,5", "share"),
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit=1001", "limit"),
            ("limit=1.5", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("limit=1&limit=1", "limit"),
            ("since=yesterday", "since"),
            ("since=2026-03-01", "since"),
            ("since=%00", "since"),
            ("limits=1", "limits"),
            ("=1", ""),
            ("%ff=1", "\u{fffd}"),
        ] {
            let problem = Given::read(Some(query), TABLE).unwrap_err();
            let body = format!("{problem:?}");
            assert!(body.contains(&format!("\"field\": String({field:?})")), "{query}: {body}");
            assert_eq!(problem.into_response().status(), StatusCode::BAD_REQUEST, "{query}");
        }
    }
}
