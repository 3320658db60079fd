//! Collecting dead flows to virtual addresses that have passed the socket hooks, by the same limits as those of published ports; and
//! counting what each task has, of which the programs give it no more than its share.

use std::collections::BTreeMap;

use ebpf_abi::flow::VIP_FLOW_WENT_ON;
use ebpf_abi::limits::{MAX_VIP_FLOWS, MAX_VIP_ROWS_OF_TASK};
use ebpf_abi::{Endpoint, EndpointKey, VipFlow, VipFlowKey};

use super::flows::{CROWDED, FlowSweep, Limits, SweepError, USUAL, age};
use super::tables::Tables;

/// More rows than seven eighths of the table are a crowd.
const CROWD: usize = MAX_VIP_FLOWS as usize / 8 * 7;
/// The same of one task's share.
const CROWD_OF_TASK: u32 = MAX_VIP_ROWS_OF_TASK / 8 * 7;

/// Rows by the task that asks.
type Shares = BTreeMap<EndpointKey, u32>;

type Row = (VipFlowKey, VipFlow);

/// What is judged by: which endpoints there are, and how long flows may be silent.
struct Judge<'a> {
    tables: &'a Tables,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    now: u32,
    /// Whose flows have the shorter limits.
    is_crowded: &'a dyn Fn(&EndpointKey) -> bool,
}

impl Tables {
    /// Removes dead rows. To be called every few seconds; costs nothing while there are no such flows, else one pass over their
    /// table, and another with shorter limits if it is nearly full.
    pub fn sweep_vip_flows(&mut self) -> Result<FlowSweep, SweepError> {
        let asked = self.vips_asked.get()?;
        if asked == 0 {
            return Ok(FlowSweep::default());
        }
        let (mut sweep, mut shares) = self.sweep_vips_by(&|_| false)?;
        let is_crowd = sweep.n_kept > CROWD;
        if is_crowd || shares.values().any(|n_rows| *n_rows > CROWD_OF_TASK) {
            let has_much =
                |task: &EndpointKey| shares.get(task).is_some_and(|n_rows| *n_rows > CROWD_OF_TASK);
            let (crowded, left) = self.sweep_vips_by(&|task| is_crowd || has_much(task))?;
            sweep = FlowSweep { n_removed: sweep.n_removed + crowded.n_removed, ..crowded };
            shares = left;
        }
        self.set_vip_shares(&shares)?;
        // A flow of this very second may be about to get its rows.
        if sweep == FlowSweep::default() && age(self.tick.get()?, asked) > 1 {
            self.vips_asked.set(&0)?;
        }
        Ok(sweep)
    }

    fn sweep_vips_by(
        &mut self,
        is_crowded: &dyn Fn(&EndpointKey) -> bool,
    ) -> Result<(FlowSweep, Shares), SweepError> {
        let (endpoints, now) = (self.endpoints.rows()?, self.tick.get()?);
        let (mut dead, mut n_kept, mut shares) = (Vec::new(), 0, Shares::new());
        let judge = Judge { tables: self, endpoints, now, is_crowded };
        self.vip_flows.visit(|key, row| {
            if judge.lives(&(key, row))? {
                n_kept += 1;
                *shares.entry(client(&key)).or_default() += 1;
            } else {
                dead.push((key, row));
            }
            Ok(())
        })?;
        Ok((FlowSweep { n_kept, n_removed: self.remove_vip_rows(dead)? }, shares))
    }

    /// What the programs have counted since the pass began is lost: the next one finds it.
    fn set_vip_shares(&mut self, shares: &Shares) -> Result<(), SweepError> {
        for task in self.vip_shares.rows()?.keys().filter(|task| !shares.contains_key(task)) {
            self.vip_shares.remove(task)?;
        }
        for (task, n_rows) in shares {
            self.vip_shares.insert(task, n_rows)?;
        }
        Ok(())
    }

    /// A flow that came to life again since it was judged is left alone: rows of answers go only when the other one is gone,
    /// so that no flow is left without answers.
    fn remove_vip_rows(&mut self, mut dead: Vec<Row>) -> Result<usize, SweepError> {
        let mut n_removed = 0;
        dead.sort_by_key(|(key, _)| key.is_of_answers());
        for (key, row) in dead {
            let is_needed = key.is_of_answers() && self.question(&(key, row))?.is_some();
            if !is_needed && self.vip_flows.get(&key)? == Some(row) {
                self.vip_flows.remove(&key)?;
                n_removed += 1;
            }
        }
        Ok(n_removed)
    }

    /// The row of what these answers answer, while it has their backend.
    fn question(&self, (key, row): &Row) -> Result<Option<Row>, SweepError> {
        let asked = key.asked(row.becomes);
        let question = self.vip_flows.get(&asked)?;
        Ok(question.filter(|question| question.becomes == key.service).map(|question| (asked, question)))
    }

    fn answers(&self, (key, row): &Row) -> Result<Option<Row>, SweepError> {
        let answers = key.answers(row.becomes);
        let found = self.vip_flows.get(&answers)?;
        Ok(found.filter(|found| found.becomes == key.service).map(|found| (answers, found)))
    }
}

fn client(key: &VipFlowKey) -> EndpointKey {
    EndpointKey { vni: key.vni, address: key.client }
}

impl Judge<'_> {
    fn lives(&self, row: &Row) -> Result<bool, SweepError> {
        let (key, VipFlow { last_seen, .. }) = row;
        let (idle_secs, limits) = (age(self.now, *last_seen), self.limits(key));
        let (question, answers) = if key.is_of_answers() {
            (self.tables.question(row)?, Some(*row))
        } else {
            (Some(*row), self.tables.answers(row)?)
        };
        Ok(match (question, answers) {
            (Some(question), Some(answers)) => self.flow_lives(&question, &answers),
            // The flow has another backend by now: what the one before says may be on its way.
            (None, _) => idle_secs <= limits.single_datagram,
            // A row of this very second may be about to get the other one.
            (Some(_), None) => idle_secs <= 1,
        })
    }

    fn limits(&self, key: &VipFlowKey) -> &'static Limits {
        if (self.is_crowded)(&client(key)) { &CROWDED } else { &USUAL }
    }

    fn flow_lives(&self, (key, question): &Row, (_, answers): &Row) -> bool {
        let endpoint = |address| self.endpoints.get(&EndpointKey { vni: key.vni, address });
        let has_ends =
            endpoint(key.client).is_some_and(Endpoint::is_local) && endpoint(question.becomes).is_some();
        let is_established = question.state & answers.state & VIP_FLOW_WENT_ON != 0;
        let closing = question.closing | answers.closing;
        let last_seen = question.last_seen.max(answers.last_seen);
        has_ends && age(self.now, last_seen) <= self.limits(key).of(key.protocol, closing, is_established)
    }
}
