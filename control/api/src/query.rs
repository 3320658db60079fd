//! Query strings: Docker's booleans, numbers and filters.

use std::collections::BTreeMap;

use axum::extract::FromRequestParts;
use control_manager::control::LabelFilter;
use control_model::Timestamp;
use http::Uri;
use http::request::Parts;
use serde_json::Value;

use crate::error::ApiError;

const NANOS: i64 = 1_000_000_000;

/// The parameters of a request, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::try_from_uri(&parts.uri)
    }
}

impl Query {
    /// The parameters of a path and query.
    pub fn try_from_uri(uri: &Uri) -> Result<Self, ApiError> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        pairs.map(|pairs| Self(pairs.0)).map_err(|error| ApiError::invalid(error.to_string()))
    }

    /// The first value of `key`; empty if there is none.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, value)| value)
    }

    /// The value of a parameter that says something.
    pub fn given(&self, key: &str) -> Option<&str> {
        Some(self.get(key)).filter(|value| !value.is_empty())
    }

    /// All values of `key`.
    pub fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, value)| value.as_str()).collect()
    }

    /// Docker's lenient boolean: anything but an empty value, `0`, `no`, `false` and `none` is true.
    pub fn flag(&self, key: &str) -> bool {
        let value = self.get(key).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// Go's strict boolean; absent is false.
    pub fn bool(&self, key: &str) -> Result<bool, ApiError> {
        match self.get(key) {
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            value => Err(ApiError::invalid(format!("invalid value for {key}: {value}"))),
        }
    }

    /// The version of an object that is being changed.
    pub fn version(&self, of: &str) -> Result<u64, ApiError> {
        let text = self.get("version");
        text.parse().map_err(|_| {
            let why = if text.is_empty() || text.bytes().any(|b| !b.is_ascii_digit()) {
                "invalid syntax"
            } else {
                "value out of range"
            };
            ApiError::invalid(format!(
                "invalid {of} version '{text}': strconv.ParseUint: parsing {text:?}: {why}"
            ))
        })
    }

    /// How many of a list are wanted; all if it is absent or not above zero, as in Docker.
    pub fn limit(&self) -> Result<Option<usize>, ApiError> {
        let text = self.get("limit");
        if text.is_empty() {
            return Ok(None);
        }
        let number: i64 = text
            .parse()
            .map_err(|_| ApiError::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))?;
        Ok(usize::try_from(number).ok().filter(|number| *number > 0))
    }

    /// The `filters` parameter, of which only `accepted` may be used.
    pub fn filters(&self, accepted: &[&str]) -> Result<Filters, ApiError> {
        let filters = Filters::parse(self.get("filters"))?;
        match filters.0.keys().find(|key| !accepted.contains(&key.as_str())) {
            Some(key) => Err(ApiError::invalid(format!("invalid filter '{key}'"))),
            None => Ok(filters),
        }
    }
}

/// Filters: values by key, each sorted. Values of one key are alternatives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// `{"key":{"value":true}}`, or the old `{"key":["value"]}`.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let invalid = || ApiError::invalid("invalid filter");
        let Ok(Value::Object(entries)) = serde_json::from_str(text) else { return Err(invalid()) };
        let values = |value: Value| match value {
            // A value that is switched off is none.
            Value::Object(values) => {
                Some(values.into_iter().filter(|(_, on)| *on == Value::Bool(true)).map(|(v, _)| v).collect())
            }
            Value::Array(values) => values.into_iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let parsed: Option<BTreeMap<_, Vec<String>>> =
            entries.into_iter().map(|(key, value)| Some((key, values(value)?))).collect();
        parsed.map(Self).ok_or_else(invalid)
    }

    /// All values of `key`.
    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// A yes or no; absent is neither.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            [] => Ok(None),
            [word] if matches!(word.as_str(), "1" | "true") => Ok(Some(true)),
            [word] if matches!(word.as_str(), "0" | "false") => Ok(Some(false)),
            words => Err(ApiError::invalid(format!("invalid filter '{key}=[{}]'", words.join(" ")))),
        }
    }

    /// Values of `key` as `name` or `name=value`.
    pub fn labels(&self, key: &str) -> LabelFilter {
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (text.clone(), String::new()),
        };
        self.get(key).iter().map(pair).collect()
    }
}

/// Seconds since the epoch, with or without a fraction; nothing, zero, and what was before are no time (moby `api/types/time`).
pub fn unix_time(text: &str) -> Result<Option<Timestamp>, String> {
    let malformed = || format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if seconds.is_empty() && fraction.is_empty() {
        return Ok(None);
    }
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let seconds: i64 = seconds.parse().map_err(|_| malformed())?;
    let nanos: i64 = format!("{fraction:0<9.9}").parse().map_err(|_| malformed())?;
    let time = seconds.saturating_mul(NANOS).saturating_add(nanos);
    Ok((time > 0).then_some(Timestamp(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_both_forms_of_filters() {
        let new = Filters::parse(r#"{"label":{"a=b":true,"c":true,"d":false}}"#).expect("new form");
        assert_eq!(new.get("label"), ["a=b", "c"]);
        assert_eq!(
            new.labels("label"),
            LabelFilter::from([("a".into(), "b".into()), ("c".into(), String::new())])
        );
        let old = Filters::parse(r#"{"name":["x","y"]}"#).expect("old form");
        assert_eq!(old.get("name"), ["x", "y"]);
        for bad in ["x", "[]", r#"{"a":1}"#, r#"{"a":[1]}"#] {
            assert_eq!(Filters::parse(bad).expect_err(bad).message, "invalid filter");
        }
    }

    #[test]
    fn versions_are_refused_in_gos_words() {
        let query = |text: &str| Query(vec![("version".into(), text.into())]);
        assert_eq!(query("7").version("node"), Ok(7));
        assert_eq!(
            query("x").version("node").expect_err("no number").message,
            "invalid node version 'x': strconv.ParseUint: parsing \"x\": invalid syntax"
        );
    }

    #[test]
    fn times_are_seconds_with_a_fraction() {
        for (text, expected) in [
            ("", None),
            ("0", None),
            ("-62135596800", None),
            ("1", Some(NANOS)),
            ("1.5", Some(1_500_000_000)),
            ("1136073845.000000001", Some(1_136_073_845_000_000_001)),
            ("1.0000000019", Some(1_000_000_001)),
        ] {
            assert_eq!(unix_time(text), Ok(expected.map(Timestamp)), "{text}");
        }
        for bad in ["x", "1.x", "1.5s", "99999999999999999999", ".5"] {
            assert!(unix_time(bad).is_err(), "{bad}");
        }
    }
}
