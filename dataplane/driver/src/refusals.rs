//! Uplinks whose driver has refused native XDP. That a driver has XDP says nothing of this MTU, these queues and offloads,
//! or of what hangs there already: only trying tells.

use std::collections::BTreeMap;

use dataplane_model::Op;
use dataplane_model::kernel_state::{Change, Hook, HookMode, HookTarget, LinkName, Program};
use dataplane_plan::Uplink;

/// What was refused since the driver started.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    of: BTreeMap<LinkName, Refusal>,
    /// One has come since the last plan.
    is_new: bool,
}

#[derive(Debug)]
struct Refusal {
    words: String,
    /// As it was then.
    uplink: Uplink,
}

impl Refusals {
    /// `true` if the failed step is native XDP on an uplink: it is a fact from now on, until the uplink is another.
    pub(crate) fn note(&mut self, op: &Op, words: &str, uplinks: &BTreeMap<LinkName, Uplink>) -> bool {
        let Op::Hook(Change::Put(hook, HookMode::XdpNative)) = op else { return false };
        let Hook { program: Program::Xdp, target: HookTarget::Interface(link) } = hook else { return false };
        let Some(uplink) = uplinks.get(link) else { return false };
        tracing::info!(%link, reason = words, "the uplink's driver refuses XDP: tc alone takes its packets");
        self.of.insert(link.clone(), Refusal { words: words.to_owned(), uplink: uplink.clone() });
        self.is_new = true;
        true
    }

    /// A plan is made of them, and of these uplinks. Forgets refusals of those that are others by now.
    pub(crate) fn keep(&mut self, uplinks: &BTreeMap<LinkName, Uplink>) {
        self.of.retain(|link, refusal| uplinks.get(link).is_some_and(|now| is_same(&refusal.uplink, now)));
        self.is_new = false;
    }

    /// The refusals that hold for these uplinks.
    pub(crate) fn of(&self, uplinks: &BTreeMap<LinkName, Uplink>) -> BTreeMap<LinkName, String> {
        let holds = |(link, refusal): (&LinkName, &Refusal)| {
            let uplink = uplinks.get(link)?;
            is_same(&refusal.uplink, uplink).then(|| (link.clone(), refusal.words.clone()))
        };
        self.of.iter().filter_map(holds).collect()
    }

    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }
}

/// Nothing has changed that a driver looks at. Addresses come and go.
fn is_same(before: &Uplink, now: &Uplink) -> bool {
    let looked_at = |uplink: &Uplink| (uplink.index, uplink.mtu_bytes, uplink.driver.clone());
    looked_at(before) == looked_at(now)
}
