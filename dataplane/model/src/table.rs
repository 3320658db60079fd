//! [`Table`]: what views and states are made of.

use imbl::ordmap::DiffItem;

/// An ordered table whose clones share their rows: a clone costs nothing, and two tables that share most of their rows are
/// compared by the others. So a pass over a large view costs what has changed in it.
pub type Table<K, V> = imbl::OrdMap<K, V>;

/// The keys of the rows that differ.
pub fn changed<K: Ord + Clone, V: PartialEq>(
    before: &Table<K, V>,
    after: &Table<K, V>,
) -> impl Iterator<Item = K> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => {
            key.clone()
        }
    })
}

/// Makes the row what it should be. One that is so already stays shared with other tables.
pub fn put<K: Ord + Clone, V: Clone + PartialEq>(table: &mut Table<K, V>, key: K, row: Option<V>) {
    if table.get(&key) == row.as_ref() {
        return;
    }
    match row {
        Some(row) => drop(table.insert(key, row)),
        None => drop(table.remove(&key)),
    }
}

/// Removes the rows that `is_meant`.
pub fn remove_rows<K: Ord + Clone, V: Clone>(table: &mut Table<K, V>, is_meant: impl Fn(&K, &V) -> bool) {
    let meant: Vec<K> =
        table.iter().filter(|(key, row)| is_meant(key, row)).map(|(key, _)| key.clone()).collect();
    for key in &meant {
        table.remove(key);
    }
}

/// Changes all rows.
pub fn change_rows<K: Ord + Clone, V: Clone>(table: &mut Table<K, V>, mut change: impl FnMut(&mut V)) {
    let keys: Vec<K> = table.keys().cloned().collect();
    keys.iter().filter_map(|key| table.get_mut(key).map(&mut change)).for_each(drop);
}
