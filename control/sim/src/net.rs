//! The model network: each way between two machines by itself has its delay, its loss, and may be cut.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::host::HostId;
use crate::random::Random;

/// Least time on the way.
const MIN_DELAY: Duration = Duration::from_micros(100);
/// Most of the time; every twentieth message takes up to [`LATE`].
const USUAL_DELAY: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(300);

/// What the network does to messages.
#[derive(Debug)]
pub struct Net {
    random: Random,
    cut: BTreeSet<(HostId, HostId)>,
    /// Datagrams lost, of a hundred.
    pub loss_percent: usize,
}

impl Net {
    pub fn new(random: Random) -> Self {
        Self { random, cut: BTreeSet::new(), loss_percent: 0 }
    }

    /// Nothing gets from `from` to `to` any more. The other way is another one.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    /// All is well again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.loss_percent = 0;
    }

    pub fn leads(&self, from: HostId, to: HostId) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Nothing is cut, and nothing lost.
    pub fn is_well(&self) -> bool {
        self.cut.is_empty() && self.loss_percent == 0
    }

    /// A call and its answer get through.
    pub fn is_both_ways(&self, a: HostId, b: HostId) -> bool {
        self.leads(a, b) && self.leads(b, a)
    }

    /// How long a message takes. Messages overtake each other.
    pub fn delay(&mut self) -> Duration {
        let most = if self.random.percent(5) { LATE } else { USUAL_DELAY };
        self.random.between(MIN_DELAY, most)
    }

    /// A datagram gets through.
    pub fn datagram(&mut self, from: HostId, to: HostId) -> bool {
        self.leads(from, to) && !self.random.percent(self.loss_percent)
    }
}
