//! One persistent, ordered table of objects.

use std::sync::Arc;

use imbl::OrdMap;

/// Objects by id. Cloning shares everything; a write copies O(log n).
#[derive(Debug, Clone)]
pub struct Table<K: Ord, V>(OrdMap<K, Arc<V>>);

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    /// The object with this id.
    pub fn get(&self, id: &K) -> Option<&Arc<V>> {
        self.0.get(id)
    }

    /// All objects, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<V>> {
        self.0.iter().map(|(_, object)| object)
    }

    /// All ids and objects, by id.
    pub fn entries(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn put(&mut self, id: K, object: V) -> Option<Arc<V>> {
        self.0.insert(id, Arc::new(object))
    }

    pub(crate) fn remove(&mut self, id: &K) -> Option<Arc<V>> {
        self.0.remove(id)
    }
}
