//! Finding an object by what a user types: its whole id, else its name, else a unique beginning of its id
//! (moby `daemon/cluster/helpers.go`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use control_model::spec::Labels;

use super::error::{ControlError, Kind};

/// The one object that `input` names: `by_id`, or the one of `objects` by the `name` of each.
pub(super) fn find<'a, T, I, O>(
    kind: Kind,
    input: &str,
    by_id: impl Fn(I) -> Option<&'a Arc<T>>,
    objects: impl Fn() -> O,
    name: impl Fn(&T) -> Cow<'_, str>,
) -> Result<&'a Arc<T>, ControlError>
where
    I: Display + FromStr,
    O: Iterator<Item = (I, &'a Arc<T>)>,
{
    if let Some(found) = input.parse().ok().and_then(by_id) {
        return Ok(found);
    }
    let called = objects().map(|(_, object)| object).filter(|object| name(object) == input);
    let mut matches: Vec<_> = called.collect();
    if matches.is_empty() && !input.is_empty() {
        let begins = |(id, _): &(I, _)| id.to_string().starts_with(input);
        matches = objects().filter(begins).map(|(_, object)| object).collect();
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
