//! The JSON form of a check.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::bounds::{
    Bound, EXPECT_WORDS, FAILURES, GIVING_UP, HEADER_VALUE, INTERVAL, NAME_WORDS, PATH_WORDS, SUCCESSES, TIMEOUT,
    shown, wrong,
};
use super::{HeaderText, HealthCheck, Means};
use crate::error::Result;
use crate::protocol::probing::{FAIL_AFTER, READY_AFTER};

impl HealthCheck {
    /// Decodes the JSON form.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], which names the first field that is wrong, and says what it should be.
    pub(crate) fn from_json(json: &Value) -> Result<Self> {
        let Value::Object(fields) = json else {
            return Err(wrong("the whole", "an object", &shown(json)));
        };
        let mut fields = fields.clone();
        let mut check = Self::new(decode_means(&mut fields)?);
        if let Some(n) = INTERVAL.take(&mut fields)? {
            check.interval_ms = n;
        }
        if let Some(n) = TIMEOUT.take(&mut fields)? {
            check.timeout_ms = n;
        }
        if let Some(n) = FAILURES.take_count(&mut fields)? {
            check.fail_after = n;
        }
        if let Some(n) = SUCCESSES.take_count(&mut fields)? {
            check.ready_after = n;
        }
        check.give_up_after = GIVING_UP.take_count(&mut fields)?;
        check.expected = fields.remove("expect").map(|value| decode_statuses(&value)).transpose()?;
        if let Some(headers) = fields.remove("headers") {
            check.headers = decode_headers(&headers)?;
        }
        check.unknown = fields;
        check.validate()?;
        Ok(check)
    }

    /// The JSON form. Optional fields that have their default are left out.
    #[must_use]
    pub(crate) fn to_json(&self) -> Value {
        let mut fields = self.unknown.clone();
        let mut put = |field: &str, value: Value| _ = fields.insert(field.to_owned(), value);
        match &self.means {
            Means::Http(path) => put("path", json!(path)),
            Means::Tcp => put("tcp", json!(true)),
            Means::Function(name) => put("function", json!(name)),
        }
        put(INTERVAL.field, json!(self.interval_ms));
        put(TIMEOUT.field, json!(self.timeout_ms));
        if self.fail_after != FAIL_AFTER {
            put(FAILURES.field, json!(self.fail_after));
        }
        if self.ready_after != READY_AFTER {
            put(SUCCESSES.field, json!(self.ready_after));
        }
        if let Some(give_up_after) = self.give_up_after {
            put(GIVING_UP.field, json!(give_up_after));
        }
        match self.expected.as_ref().map(|expected| (expected.len(), expected)) {
            None => {}
            Some((1, one)) => put("expect", json!(one.first())),
            Some((_, list)) => put("expect", json!(list)),
        }
        if !self.headers.is_empty() {
            let value = |text: &HeaderText| match text {
                HeaderText::Plain(value) => json!(value),
                HeaderText::Secret(name) => json!({ "secret": name }),
            };
            put("headers", self.headers.iter().map(|(name, text)| (name.clone(), value(text))).collect());
        }
        Value::Object(fields)
    }
}

impl Serialize for HealthCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for HealthCheck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Bound {
    fn take(&self, fields: &mut Map<String, Value>) -> Result<Option<u64>> {
        let Some(value) = fields.remove(self.field) else { return Ok(None) };
        let n = value.as_u64().ok_or_else(|| wrong(self.field, &self.words(), &shown(&value)))?;
        self.check(n).map(Some)
    }

    fn take_count(&self, fields: &mut Map<String, Value>) -> Result<Option<u32>> {
        let count = self.take(fields)?;
        // The bound is far below the most of a u32.
        Ok(count.map(|n| u32::try_from(n).unwrap_or(u32::MAX)))
    }
}

fn decode_means(fields: &mut Map<String, Value>) -> Result<Means> {
    let mut text = |field: &'static str, expected: &str| match fields.remove(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(field, expected, &shown(&other))),
    };
    let path = text("path", PATH_WORDS)?;
    let function = text("function", NAME_WORDS)?;
    let tcp = match fields.remove("tcp") {
        None | Some(Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(Means::Tcp),
        Some(other) => return Err(wrong("tcp", "true or false", &shown(&other))),
    };
    let means: Vec<_> = [path.map(Means::Http), tcp, function.map(Means::Function)].into_iter().flatten().collect();
    let count = means.len();
    match <[Means; 1]>::try_from(means) {
        Ok([means]) => Ok(means),
        Err(_) => {
            let got = if count == 0 { "none of them".to_owned() } else { format!("{count} of them") };
            Err(wrong("the whole", "one of path, tcp (true) and function", &got))
        }
    }
}

fn decode_statuses(value: &Value) -> Result<BTreeSet<u16>> {
    let status = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok());
    let statuses = match value {
        Value::Array(list) => list.iter().map(status).collect(),
        one => status(one).map(|one| BTreeSet::from([one])),
    };
    statuses.ok_or_else(|| wrong("expect", EXPECT_WORDS, &shown(value)))
}

fn decode_headers(value: &Value) -> Result<BTreeMap<String, HeaderText>> {
    let Value::Object(headers) = value else {
        return Err(wrong("headers", "an object of names and values", &shown(value)));
    };
    let decode = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::String(text) => HeaderText::Plain(text.clone()),
            Value::Object(fields) if fields.len() == 1 && fields.get("secret").is_some_and(Value::is_string) => {
                HeaderText::Secret(fields["secret"].as_str().unwrap_or_default().to_owned())
            }
            // The value may be a secret that somebody put into the wrong place.
            _ => return Err(wrong(&format!("headers.{name}"), HEADER_VALUE, "something else")),
        };
        Ok((name.clone(), text))
    };
    headers.iter().map(decode).collect()
}
