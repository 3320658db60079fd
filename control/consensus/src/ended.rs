//! A leader whose process has ended is replaced before its silence alone says so.
//!
//! Silence is waited for longer than a machine stalls. But where a process has ended its machine is there, and its kernel
//! refuses connections to the port that it listened at. A follower that misses a heartbeat looks, and asks the others for their
//! votes at once, marked as a hand-over: else they would wait for the leader's lease to pass. Nobody reads by the lease of a
//! leader that is no more. One that lives answers the look, or is heard; of a machine that is gone no answer comes, and its
//! silence is waited for.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use openraft::alias::VoteOf;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::Fatal;
use openraft::raft::TransferLeaderRequest;
use openraft::{Instant as _, Raft};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::limits::{LEADER_LOOK_AFTER, LEADER_LOOK_TIMEOUT, LEADER_LOOK_TURN};
use crate::machine::Machine;
use crate::types::TypeConfig;

/// A leader that is not heard.
struct Silent {
    vote: VoteOf<TypeConfig>,
    addr: SocketAddr,
    /// How many voters look before this one.
    turn: u32,
}

/// Looks after the leader until Raft stops.
pub(crate) async fn watch(raft: Raft<TypeConfig, Machine>, raft_id: u64) {
    loop {
        let looked = async {
            if let Some(wait) = until_silent(&raft).await? {
                sleep(wait).await;
            } else {
                look(&raft, raft_id).await?;
                sleep(LEADER_LOOK_TURN).await;
            }
            Ok::<_, Fatal<TypeConfig>>(())
        };
        if looked.await.is_err() {
            return;
        }
    }
}

/// How long the leader that was heard last has until the next word of it is late; `None` if that is over.
async fn until_silent(raft: &Raft<TypeConfig, Machine>) -> Result<Option<Duration>, Fatal<TypeConfig>> {
    let heard = raft.with_raft_state(openraft::RaftState::vote_last_modified).await?;
    let silent_for = heard.map_or(Duration::ZERO, |at| at.elapsed());
    Ok(LEADER_LOOK_AFTER.checked_sub(silent_for).filter(|wait| !wait.is_zero()))
}

/// Campaigns, if the leader's process has ended.
async fn look(raft: &Raft<TypeConfig, Machine>, raft_id: u64) -> Result<(), Fatal<TypeConfig>> {
    let Some(silent) = silent_leader(raft, raft_id).await? else { return Ok(()) };
    sleep(LEADER_LOOK_TURN * silent.turn).await;
    if until_silent(raft).await?.is_some() || !refuses(silent.addr).await {
        return Ok(());
    }
    tracing::info!(leader = %silent.addr, "the leader's process has ended");
    // Does nothing where another leader, or candidate, was heard of meanwhile.
    let request = TransferLeaderRequest::new(silent.vote, raft_id, None);
    if let Err(error) = raft.handle_transfer_leader(request).await? {
        tracing::debug!(%error, "no campaign");
    }
    Ok(())
}

/// The leader that this voter follows.
async fn silent_leader(
    raft: &Raft<TypeConfig, Machine>,
    raft_id: u64,
) -> Result<Option<Silent>, Fatal<TypeConfig>> {
    let found = {
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let leader = now.current_leader.filter(|leader| *leader != raft_id && voters.contains(&raft_id));
        let addr = leader.and_then(|leader| Some(membership.get_node(&leader)?.addr));
        let before = voters.iter().filter(|id| **id < raft_id && Some(**id) != leader).count();
        addr.map(|addr| (addr, u32::try_from(before).unwrap_or(u32::MAX)))
    };
    let Some((addr, turn)) = found else { return Ok(None) };
    let vote = raft.with_raft_state(|state| *state.vote_ref()).await?;
    Ok(Some(Silent { vote, addr, turn }))
}

/// Whether the machine is there, and nobody listens on it. Silence is no answer.
async fn refuses(addr: SocketAddr) -> bool {
    let connected = timeout(LEADER_LOOK_TIMEOUT, TcpStream::connect(addr)).await;
    matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}
