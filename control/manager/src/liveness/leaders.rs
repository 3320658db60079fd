//! Who led lately, as one manager has seen it: a leader that doubts its own data path lets another manager judge, and
//! best one that has not doubted its own. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::Timestamp;

/// Leadership goes on no sooner from one manager: where no manager's data path works, it must not go round and round.
const HAND_OVERS_APART: Duration = Duration::from_mins(10);

/// Leaders of all terms by Raft id.
#[derive(Debug, Default)]
pub struct Leaders {
    present: Option<u64>,
    /// When each was last seen to lead.
    led: BTreeMap<u64, Timestamp>,
    /// When this manager last handed leadership over.
    handed_over: Option<Timestamp>,
}

impl Leaders {
    /// From `now` on this one leads, if any.
    pub fn saw(&mut self, leader: Option<u64>, now: Timestamp) {
        let before = std::mem::replace(&mut self.present, leader);
        self.led.extend(before.into_iter().chain(leader).map(|id| (id, now)));
    }

    /// Is it time to hand over? Then to whom only if there is nobody else: who led within [`HAND_OVERS_APART`] has most
    /// likely handed over by doubt as well. The next time is [`HAND_OVERS_APART`].
    pub fn hand_over(&mut self, now: Timestamp) -> Option<BTreeSet<u64>> {
        let lately = |at: &Timestamp| now.since(*at) < HAND_OVERS_APART;
        if self.handed_over.as_ref().is_some_and(lately) {
            return None;
        }
        self.handed_over = Some(now);
        Some(self.led.iter().filter(|(_, at)| lately(at)).map(|(id, _)| *id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp(0).after(Duration::from_secs(secs))
    }

    /// Three managers whose data paths are broken but the third's: leadership gets there, whoever is furthest in the log.
    #[test]
    fn leadership_goes_to_who_has_not_led_lately() {
        let mut second = Leaders::default();
        second.saw(Some(1), at(0));
        second.saw(None, at(3600));
        second.saw(Some(2), at(3601));
        assert_eq!(second.hand_over(at(3611)), Some([1, 2].into()), "the third is left");
        second.saw(Some(3), at(3612));
        second.saw(Some(2), at(3700));
        assert_eq!(second.hand_over(at(3711)), None, "not round and round");
        assert_eq!(second.hand_over(at(4211)), Some([2, 3].into()), "the first may be well again");
    }
}
