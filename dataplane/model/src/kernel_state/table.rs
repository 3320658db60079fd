//! What all tables have in common: the difference of two, and their text.

use std::fmt;

use imbl::ordmap::DiffItem;

use crate::Table;
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
    pub(super) fn record(&self, table: &mut Table<K, V>) {
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

/// Appends the changes that lead from `held` to `wanted`. Costs what is not shared between them.
pub(super) fn changes<K: Ord + Clone, V: Clone + Eq, T>(
    held: &Table<K, V>,
    wanted: &Table<K, V>,
    puts: &mut Vec<T>,
    deletes: &mut Vec<T>,
    wrap: impl Fn(Change<K, V>) -> T,
) {
    for item in held.diff(wanted) {
        match item {
            DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => {
                puts.push(wrap(Change::Put(key.clone(), value.clone())));
            }
            DiffItem::Remove(key, _) => deletes.push(wrap(Change::Delete(key.clone()))),
        }
    }
}

/// Appends the rows of `held` that are not as in `wanted`, in words.
pub(super) fn differences<K: Ord + fmt::Display, V: Eq + fmt::Display>(
    table: &str,
    held: &Table<K, V>,
    wanted: &Table<K, V>,
    found: &mut Vec<Difference>,
) {
    for item in held.diff(wanted) {
        let (key, is, should) = match item {
            DiffItem::Add(key, should) => (key, None, Some(should)),
            DiffItem::Remove(key, is) => (key, Some(is), None),
            DiffItem::Update { old: (key, is), new: (_, should) } => (key, Some(is), Some(should)),
        };
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
pub(super) fn write_table<K: Ord + fmt::Display, V: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    table: &Table<K, V>,
) -> fmt::Result {
    for (key, value) in table {
        writeln!(f, "{}", format!("{name} {key} {value}").trim_end())?;
    }
    Ok(())
}
