//! How many changes one entry of the log takes.

use std::collections::VecDeque;

use control_model::Change;
use control_rpc::encoded_len;

/// Objects that one entry changes. An entry is applied in one go: so many take some ten milliseconds.
pub const MAX_OBJECTS: usize = 2000;
/// Encoded changes in one entry, of which one may be larger: a third of what the log takes.
const MAX_BYTES: usize = 1 << 19;

/// `changes` in their order, as many to an entry as it takes.
pub fn in_entries(changes: Vec<Change>) -> VecDeque<Vec<Change>> {
    let mut entries = VecDeque::new();
    let (mut entry, mut n_objects, mut n_bytes) = (Vec::new(), 0, 0);
    for change in changes {
        let (objects, bytes) = (change.n_objects(), encoded_len(&change));
        if !entry.is_empty() && (n_objects + objects > MAX_OBJECTS || n_bytes + bytes > MAX_BYTES) {
            entries.push_back(std::mem::take(&mut entry));
            (n_objects, n_bytes) = (0, 0);
        }
        n_objects += objects;
        n_bytes += bytes;
        entry.push(change);
    }
    entries.extend((!entry.is_empty()).then_some(entry));
    entries
}
