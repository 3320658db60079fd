//! openraft's types on its deterministic runtime.

use std::time::Duration;

use control_consensus::{Batch, Member, Reply};
use openraft::alias::LogIdOf;
use openraft_rt::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

openraft::declare_raft_types!(
    /// As `control-consensus` has them, on virtual time.
    pub Config: D = Batch, R = Reply, NodeId = u64, Node = Member, AsyncRuntime = SimRuntime,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>
);

pub type LogId = LogIdOf<Config>;

/// Lets virtual time pass.
pub async fn sleep(span: Duration) {
    SimRuntime::sleep(span).await;
}
