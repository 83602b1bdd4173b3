//! What a pod says of a worker: its kind, its model, its labels, and what the service adds.
//!
//! A spec travels as JSON. Decoding is by hand, so that its error names the field, and so that a field that is present and
//! wrong never becomes a default. Fields that this version does not know are kept as they are.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A secret of a worker, such as the key that its API wants. It is never serialized, stored or shown.
#[derive(Clone)]
pub struct Secret(pub(super) SecretString);

impl Secret {
    /// Makes a secret of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

/// What a pod says of a worker.
///
/// As JSON it is an object: `{"kind": "llm", "model": "m", "labels": {"zone": "a"}, "weight": 2, "capacity": 8}`, and any
/// further fields. A field that is not set is absent. `secrets` (an object of strings) and `api_key` (a string) are read
/// from JSON and never written to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerSpec {
    /// What the worker does, for [`Filter`](super::Filter).
    pub kind: Option<String>,
    /// The model that it serves, for [`Filter`](super::Filter).
    pub model: Option<String>,
    /// Free labels, for [`Filter`](super::Filter).
    pub labels: BTreeMap<String, String>,
    /// How often a weighted choice takes it, beside others. `None`: 1. With 0, a weighted choice never takes it.
    pub weight: Option<u32>,
    /// The most leases that each pod has on it at a time. `None`: no limit.
    pub capacity: Option<u32>,
    /// Its secrets, by their names. They stay in this process.
    pub secrets: BTreeMap<String, Secret>,
    /// The fields that this version does not know.
    pub other: Map<String, Value>,
}

/// Why a spec does not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFault {
    /// The field.
    pub field: String,
    /// What was expected there.
    pub why: String,
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// The name of the secret that the field `api_key` sets.
const API_KEY: &str = "api_key";

impl WorkerSpec {
    /// A spec that says nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the kind.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Sets the model.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Sets the weight.
    #[must_use]
    pub const fn weight(mut self, weight: u32) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Sets the capacity.
    #[must_use]
    pub const fn capacity(mut self, capacity: u32) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Adds a secret.
    #[must_use]
    pub fn secret(mut self, name: impl Into<String>, secret: Secret) -> Self {
        self.secrets.insert(name.into(), secret);
        self
    }

    /// Reads a spec from JSON.
    ///
    /// # Errors
    ///
    /// The field that does not decode, and what was expected there.
    pub fn decode(value: Value) -> Result<Self, SpecFault> {
        let fields = match value {
            Value::Object(fields) => fields,
            other => return Err(fault("spec", "an object", &other)),
        };
        let mut spec = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "kind" => spec.kind = optional(&name, value, string)?,
                "model" => spec.model = optional(&name, value, string)?,
                "labels" => spec.labels = optional(&name, value, strings)?.unwrap_or_default(),
                "weight" => spec.weight = optional(&name, value, number)?,
                "capacity" => {
                    spec.capacity = optional(&name, value, number)?;
                    if spec.capacity == Some(0) {
                        return Err(SpecFault { field: name, why: "expected a whole number from 1 on, got 0".into() });
                    }
                }
                "secrets" => {
                    let given = optional(&name, value, hidden_strings)?.unwrap_or_default();
                    spec.secrets.extend(given.into_iter().map(|(name, text)| (name, Secret::new(text))));
                }
                API_KEY => {
                    let key = optional(&name, value, hidden_string)?;
                    spec.secrets.extend(key.map(|text| (name, Secret::new(text))));
                }
                _ => _ = spec.other.insert(name, value),
            }
        }
        Ok(spec)
    }

    /// The spec as JSON, without its secrets.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut fields = self.other.clone();
        let mut set = |name: &str, value: Value| _ = fields.insert(name.to_owned(), value);
        if let Some(kind) = &self.kind {
            set("kind", kind.as_str().into());
        }
        if let Some(model) = &self.model {
            set("model", model.as_str().into());
        }
        if !self.labels.is_empty() {
            set("labels", self.labels.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect());
        }
        if let Some(weight) = self.weight {
            set("weight", weight.into());
        }
        if let Some(capacity) = self.capacity {
            set("capacity", capacity.into());
        }
        // Whoever put a secret there by hand: it is not written.
        fields.remove("secrets");
        fields.remove(API_KEY);
        Value::Object(fields)
    }
}

impl Serialize for WorkerSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encode().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WorkerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::decode(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn fault(field: &str, expected: &str, got: &Value) -> SpecFault {
    let got = match got {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    SpecFault { field: field.to_owned(), why: format!("expected {expected}, got {got}") }
}

/// A field that may be null, which means that it is not set.
fn optional<T>(
    field: &str,
    value: Value,
    read: impl FnOnce(&str, Value) -> Result<T, SpecFault>,
) -> Result<Option<T>, SpecFault> {
    if value.is_null() { Ok(None) } else { read(field, value).map(Some) }
}

fn string(field: &str, value: Value) -> Result<String, SpecFault> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(fault(field, "a string", &other)),
    }
}

/// A number may be most of a secret that was given without quotes, so the fault does not show it.
fn hidden_string(field: &str, value: Value) -> Result<String, SpecFault> {
    string(field, value).map_err(|_| SpecFault { field: field.to_owned(), why: "expected a string".to_owned() })
}

fn number(field: &str, value: Value) -> Result<u32, SpecFault> {
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| fault(field, "a whole number from 0 to 4294967295", &value))
}

fn strings(field: &str, value: Value) -> Result<BTreeMap<String, String>, SpecFault> {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| string(&format!("{field}.{name}"), value).map(|text| (name, text)))
            .collect(),
        other => Err(fault(field, "an object of strings", &other)),
    }
}

fn hidden_strings(field: &str, value: Value) -> Result<BTreeMap<String, String>, SpecFault> {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| hidden_string(&format!("{field}.{name}"), value).map(|text| (name, text)))
            .collect(),
        _ => Err(SpecFault { field: field.to_owned(), why: "expected an object of strings".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full() -> Value {
        json!({
            "kind": "llm", "model": "m", "labels": {"zone": "a"}, "weight": 2, "capacity": 8,
            "of_a_newer_pod": {"deep": [1, 2.5, null, "x"]}, "nothing": null
        })
    }

    #[test]
    fn each_optional_field_comes_back_set_and_unset_and_so_do_unknown_ones() {
        let full = full();
        assert_eq!(WorkerSpec::decode(full.clone()).unwrap().encode(), full);
        let names: Vec<String> = full.as_object().unwrap().keys().cloned().collect();
        for set in 0_u32..1 << names.len() {
            let mut some = full.clone();
            for (nth, name) in names.iter().enumerate() {
                if set & (1 << nth) == 0 {
                    some.as_object_mut().unwrap().remove(name);
                }
            }
            let spec = WorkerSpec::decode(some.clone()).unwrap();
            assert_eq!(spec.encode(), some);
            assert_eq!(WorkerSpec::decode(spec.encode()).unwrap(), spec);
        }
    }

    #[test]
    fn a_field_that_is_wrong_is_named_and_never_becomes_a_default() {
        for (spec, field) in [
            (json!([]), "spec"),
            (json!({"kind": 1}), "kind"),
            (json!({"model": ["m"]}), "model"),
            (json!({"labels": {"zone": 1}}), "labels.zone"),
            (json!({"labels": "a"}), "labels"),
            (json!({"weight": -1}), "weight"),
            (json!({"weight": 1.5}), "weight"),
            (json!({"weight": 4_294_967_296_u64}), "weight"),
            (json!({"capacity": 0}), "capacity"),
            (json!({"capacity": "8"}), "capacity"),
            (json!({"secrets": {"key": 1}}), "secrets.key"),
            (json!({"api_key": 12345}), "api_key"),
        ] {
            let fault = WorkerSpec::decode(spec.clone()).unwrap_err();
            assert_eq!(fault.field, field, "{spec}");
            assert!(fault.why.starts_with("expected ") && !fault.why.contains("12345"), "{fault}");
        }
    }

    #[test]
    fn secrets_are_read_and_never_written_or_shown() {
        let given = json!({"model": "m", "api_key": "hunter2", "secrets": {"token": "hunter3"}});
        let mut spec = WorkerSpec::decode(given).unwrap();
        assert_eq!((spec.secrets["api_key"].expose(), spec.secrets["token"].expose()), ("hunter2", "hunter3"));
        spec.other.insert("secrets".to_owned(), json!({"by_hand": "hunter4"}));
        let shown = format!("{spec:?} {}", serde_json::to_string(&spec).unwrap());
        assert_eq!(spec.encode(), json!({"model": "m"}));
        assert!(!shown.contains("hunter2") && !shown.contains("hunter3"), "{shown}");
    }
}
