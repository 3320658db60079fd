//! Pieces that several shapes share.

use std::collections::BTreeMap;

use control_model::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Keys of a request that no field took: a field of the name [`crate::names::REST`].
pub type Rest = BTreeMap<String, Value>;

/// `Version.Index`; 0 is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Version {
    #[serde(skip_serializing_if = "is_zero")]
    pub index: u64,
}

/// Version and times of an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Meta {
    pub version: Version,
    pub created_at: Time,
    pub updated_at: Time,
}

impl From<&control_model::Meta> for Meta {
    fn from(meta: &control_model::Meta) -> Self {
        Self {
            version: Version { index: meta.spec_version },
            created_at: Time(Some(meta.created_at)),
            updated_at: Time(Some(meta.updated_at)),
        }
    }
}

/// A time as Go prints it (RFC 3339, as many digits as needed); none is Go's zero time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time(pub Option<Timestamp>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

/// See [`Time`].
pub fn rfc3339(time: Option<Timestamp>) -> String {
    const ZERO: &str = "0001-01-01T00:00:00Z";
    let Some(time) = time else { return ZERO.into() };
    jiff::Timestamp::from_nanosecond(i128::from(time.0)).map_or_else(|_| ZERO.into(), |time| time.to_string())
}

/// Serde's test for numbers that Docker leaves out when zero.
pub fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// Serde's test for flags that Docker leaves out when false.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub fn is_false(flag: &bool) -> bool {
    !flag
}

/// Whether a JSON value says nothing: null, false, 0, a list without an element, or an object all of whose entries say nothing.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.values().all(is_empty),
    }
}

/// Takes `null` entries out of all objects: Go reads them as if they were absent.
pub fn strip_nulls(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        Value::Object(entries) => {
            entries.retain(|_, entry| !entry.is_null());
            entries.values_mut().for_each(strip_nulls);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_times_as_go_does() {
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(Some(Timestamp(0))), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(Some(Timestamp(1_500_000_000))), "1970-01-01T00:00:01.5Z");
        assert_eq!(rfc3339(Some(Timestamp(1_000_000_001))), "1970-01-01T00:00:01.000000001Z");
    }

    #[test]
    fn a_list_with_an_element_says_something() {
        let empty: Value = serde_json::json!({"A": null, "B": [], "C": {"D": "", "E": 0, "F": false}});
        assert!(is_empty(&empty));
        assert!(!is_empty(&serde_json::json!({"A": {"B": [{}]}})));
    }
}
