//! Places of look-ups that run, shared out among the sandboxes.
//!
//! A sandbox that has none gets one, whatever the others do. One that has some gets another only while fewer are its own
//! than are free (dynamic thresholds, Choudhury and Hahne 1998): alone it can take half of all, `n` greedy ones take
//! `1/(n + 1)` each, and what is left is there for the next one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Questions that are being asked at a time, of all sandboxes: each takes up to three sockets. Only the first place of a
/// sandbox is given beyond it.
pub const MAX_RUNNING: usize = 1024;

/// How many places are taken: of all, or by one sandbox.
#[derive(Debug, Clone, Default)]
pub struct Taken(Arc<AtomicUsize>);

/// A place; it is given back when this is dropped.
#[derive(Debug)]
pub struct Place {
    all: Taken,
    own: Taken,
}

impl Place {
    /// One more for the sandbox that has `own`; `None` if it has its share.
    pub fn take(all: &Taken, own: &Taken) -> Option<Self> {
        // Counted first: two threads may both be refused the last place, never both get it.
        let n_all = all.0.fetch_add(1, Ordering::Relaxed);
        let n_own = own.0.fetch_add(1, Ordering::Relaxed);
        let place = Self { all: all.clone(), own: own.clone() };
        let n_free = MAX_RUNNING.saturating_sub(n_all);
        (n_own == 0 || n_own < n_free).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.0.fetch_sub(1, Ordering::Relaxed);
        self.own.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes in turns until nobody gets any more.
    fn take_all(all: &Taken, sandboxes: &[Taken]) -> Vec<Vec<Place>> {
        let mut places: Vec<Vec<Place>> = sandboxes.iter().map(|_| Vec::new()).collect();
        loop {
            let mut n_new = 0;
            for (own, places) in sandboxes.iter().zip(&mut places) {
                let new = Place::take(all, own);
                n_new += usize::from(new.is_some());
                places.extend(new);
            }
            if n_new == 0 {
                return places;
            }
        }
    }

    #[test]
    fn greedy_sandboxes_share_alike_and_leave_room() {
        for n_sandboxes in [1, 2, 5, 100] {
            let all = Taken::default();
            let sandboxes: Vec<Taken> = (0..n_sandboxes).map(|_| Taken::default()).collect();
            let places = take_all(&all, &sandboxes);
            let share = MAX_RUNNING / (n_sandboxes + 1);
            for places in &places {
                assert!(places.len().abs_diff(share) <= 1, "{} of {n_sandboxes}: {share}", places.len());
            }
            let newcomer = take_all(&all, &[Taken::default()]);
            assert!(newcomer[0].len() >= share / 2, "{} beside {n_sandboxes}", newcomer[0].len());
        }
    }

    #[test]
    fn each_sandbox_has_a_place_even_when_all_are_taken() {
        let all = Taken::default();
        let own: Vec<Taken> = (0..2 * MAX_RUNNING).map(|_| Taken::default()).collect();
        let places: Vec<Place> = own.iter().filter_map(|own| Place::take(&all, own)).collect();
        assert_eq!(places.len(), own.len());
        assert!(own.iter().all(|own| Place::take(&all, own).is_none()), "and no second one");
    }

    #[test]
    fn a_place_is_given_back() {
        let (all, own) = (Taken::default(), Taken::default());
        let mut places = take_all(&all, std::slice::from_ref(&own)).remove(0);
        assert_eq!(places.len(), MAX_RUNNING / 2);
        assert!(Place::take(&all, &own).is_none());
        places.truncate(1);
        assert_eq!(take_all(&all, &[own])[0].len(), MAX_RUNNING / 2 - 1);
    }
}
