//! Rows that several services may want under one key.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_model::{ServiceKey, Table, put};

/// What each service wants under each key. The first service, by its key, has the row.
#[derive(Debug)]
pub(crate) struct Claims<K, V>(BTreeMap<(K, ServiceKey), V>);

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy, V: Clone + Eq> Claims<K, V> {
    /// Replaces what `service` wants; notes the keys that are concerned. Of two rows under one key the first counts.
    pub(crate) fn replace(
        &mut self,
        service: ServiceKey,
        old: &[(K, V)],
        new: &[(K, V)],
        touched: &mut BTreeSet<K>,
    ) {
        if old == new {
            return;
        }
        for (key, _) in old {
            self.0.remove(&(*key, service));
        }
        for (key, value) in new {
            self.0.entry((*key, service)).or_insert_with(|| value.clone());
        }
        touched.extend(old.iter().chain(new).map(|(key, _)| *key));
    }

    /// What is wanted under `key`, and by whom.
    pub(crate) fn of(&self, key: K) -> impl Iterator<Item = (ServiceKey, &V)> {
        let all = (key, ServiceKey(u128::MIN))..=(key, ServiceKey(u128::MAX));
        self.0.range(all).map(|((_, service), value)| (*service, value))
    }

    /// Writes the rows of the keys that are concerned.
    pub(crate) fn write(&self, touched: &BTreeSet<K>, table: &mut Table<K, V>) {
        for key in touched {
            put(table, *key, self.of(*key).next().map(|(_, value)| value.clone()));
        }
    }
}
