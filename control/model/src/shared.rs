//! A value that many objects have alike, held once.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Reads like the value itself, and is a copy of its own when written to. Equal by value; cheap to compare and to clone
/// where it is the same one. On the wire and on disk it is the value: whoever keeps many gives them one again
/// ([`Shared::share`]).
#[derive(Debug, Clone, Default, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shared<T>(Arc<T>);

impl<T: PartialEq> Shared<T> {
    /// Takes `other` for its value if they are equal, and says so.
    pub fn share(&mut self, other: &Self) -> bool {
        let equal = self == other;
        if equal {
            self.0 = other.0.clone();
        }
        equal
    }
}

impl<T> Shared<T> {
    /// Whether both are one value in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || *self.0 == *other.0
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_one_is_apart_and_equal_ones_can_be_one() {
        let first = Shared::from("web".to_owned());
        let mut second = first.clone();
        assert!(second.is_same(&first));
        second.push('2');
        assert_eq!((first.as_str(), second.as_str()), ("web", "web2"));
        assert!(!second.share(&first));
        second.pop();
        assert!(second == first && !second.is_same(&first));
        assert!(second.share(&first) && second.is_same(&first));
    }

    #[test]
    fn is_written_as_its_value() {
        let shared = Shared::from(vec![1, 2]);
        let bytes = rmp_serde::to_vec_named(&shared).unwrap();
        assert_eq!(bytes, rmp_serde::to_vec_named(&vec![1, 2]).unwrap());
        assert_eq!(rmp_serde::from_slice::<Shared<Vec<i32>>>(&bytes).unwrap(), shared);
    }
}
