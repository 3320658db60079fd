//! Who has a name, among objects whose names are unique.

use std::sync::Arc;

use imbl::OrdMap;

/// Ids by name. Names are shared: of a map that others have, a write copies as many as lie beside its own.
#[derive(Debug, Clone)]
pub struct Names<K>(OrdMap<Arc<str>, K>);

impl<K> Default for Names<K> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Clone + PartialEq> Names<K> {
    pub fn get(&self, name: &str) -> Option<&K> {
        self.0.get(name)
    }

    /// Another object than `id` has it.
    pub fn is_taken(&self, name: &str, id: &K) -> bool {
        self.get(name).is_some_and(|owner| owner != id)
    }

    /// `id` has `name` from now on, and not the `former` one.
    pub fn put(&mut self, former: Option<&str>, name: &str, id: K) {
        if former == Some(name) {
            return;
        }
        if let Some(former) = former {
            self.remove(former);
        }
        self.0.insert(name.into(), id);
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }
}
