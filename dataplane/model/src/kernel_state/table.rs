//! What all tables have in common: the difference of two, and their text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::inspect::Difference;

/// One row's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K, V> {
    /// Make the row, or make it what it should be.
    Put(K, V),
    Delete(K),
}

impl<K, V> Change<K, V> {
    pub fn key(&self) -> &K {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

impl<K: Ord + Clone, V: Clone> Change<K, V> {
    pub(super) fn record(&self, table: &mut BTreeMap<K, V>) {
        match self {
            Self::Put(key, value) => table.insert(key.clone(), value.clone()),
            Self::Delete(key) => table.remove(key),
        };
    }
}

impl<K: fmt::Display, V: fmt::Display> Change<K, V> {
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, table: &str) -> fmt::Result {
        match self {
            Self::Put(key, value) => f.write_str(format!("+ {table} {key} {value}").trim_end()),
            Self::Delete(key) => write!(f, "- {table} {key}"),
        }
    }
}

/// Appends the changes that lead from `held` to `wanted`.
pub(super) fn changes<K: Ord + Clone, V: Clone + Eq, T>(
    held: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    puts: &mut Vec<T>,
    deletes: &mut Vec<T>,
    wrap: impl Fn(Change<K, V>) -> T,
) {
    for (key, value) in wanted {
        if held.get(key) != Some(value) {
            puts.push(wrap(Change::Put(key.clone(), value.clone())));
        }
    }
    for key in held.keys().filter(|key| !wanted.contains_key(key)) {
        deletes.push(wrap(Change::Delete(key.clone())));
    }
}

/// Appends the rows of `held` that are not as in `wanted`, in words.
pub(super) fn differences<K: Ord + fmt::Display, V: Eq + fmt::Display>(
    table: &str,
    held: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    found: &mut Vec<Difference>,
) {
    let keys: BTreeSet<&K> = held.keys().chain(wanted.keys()).collect();
    for key in keys {
        let (is, should) = (held.get(key), wanted.get(key));
        if is == should {
            continue;
        }
        let (is, mut should) = (is.map(words), should.map(words));
        if is == should {
            should = should.map(|should| should + ", in another order");
        }
        found.push(Difference { table: table.to_owned(), key: key.to_string(), is, should });
    }
}

/// Rows that say nothing but that they are there print as nothing.
fn words(row: &impl fmt::Display) -> String {
    let text = row.to_string();
    if text.is_empty() { "there".to_owned() } else { text }
}

/// One line per row; nothing for an empty table.
pub(super) fn write_table<K: fmt::Display, V: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    table: &BTreeMap<K, V>,
) -> fmt::Result {
    for (key, value) in table {
        writeln!(f, "{}", format!("{name} {key} {value}").trim_end())?;
    }
    Ok(())
}
