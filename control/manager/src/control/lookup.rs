//! Finding an object by what a user types: its whole id, else its name, else a unique beginning of its id
//! (moby `daemon/cluster/helpers.go`).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use control_model::spec::Labels;

use super::error::{ControlError, Kind};

/// The one object that `input` names.
pub(super) fn find<'a, T, I: Display>(
    kind: Kind,
    input: &str,
    objects: impl Iterator<Item = &'a Arc<T>> + Clone,
    id: impl Fn(&T) -> I,
    name: impl Fn(&T) -> String,
) -> Result<&'a Arc<T>, ControlError> {
    if let Some(found) = objects.clone().find(|object| id(object).to_string() == input) {
        return Ok(found);
    }
    let mut matches: Vec<_> = objects.clone().filter(|object| name(object) == input).collect();
    if matches.is_empty() && !input.is_empty() {
        matches = objects.filter(|object| id(object).to_string().starts_with(input)).collect();
    }
    match matches.as_slice() {
        [found] => Ok(found),
        [] => Err(ControlError::NotFound { kind, name: input.to_owned() }),
        several => Err(ControlError::Ambiguous { kind, name: input.to_owned(), matches: several.len() }),
    }
}

/// Labels that must be there; an empty value matches any.
pub type LabelFilter = BTreeMap<String, String>;

/// Whether `labels` has all that `wanted` asks for.
pub fn labels_match(labels: &Labels, wanted: &LabelFilter) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|have| value.is_empty() || have == value))
}

/// Whether `text` begins with any of `prefixes`; with no prefixes, everything does.
pub fn starts_with_any(text: &str, prefixes: &[String]) -> bool {
    prefixes.is_empty() || prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()))
}
