//! Keeps a node in step with its cluster: remembers the managers, renews the certificate when it is time or when the
//! wanted role or the root has changed, and starts and ends the manager half with the role.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use control_agent::SessionState;
use control_ca::Certificate;
use control_consensus::JoinError;
use control_manager::clock;
use control_model::spec::Role;

use super::certificate;
use super::manager::ManagerError;
use super::swarm::Swarm;
use crate::disk::KnownManager;

/// After something failed that will be tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at what nobody tells, such as the seat in Raft.
const LOOK: Duration = Duration::from_secs(2);
/// A renewal that is due is noticed this late at most: the wall clock may jump.
const LONGEST_SLEEP: Duration = Duration::from_mins(10);

/// Works until the swarm is stopped.
pub async fn keep_in_step(swarm: Arc<Swarm>) {
    let mut session = swarm.session.clone();
    loop {
        let state = session.borrow_and_update().clone();
        let Some(result) = swarm.stop.run_until_cancelled(step(&swarm, &state)).await else { return };
        let trouble = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
        let pause = if trouble.is_empty() { until_renewal(&swarm).min(LOOK) } else { RETRY };
        swarm.trouble.send_if_modified(|known| {
            let changed = *known != trouble;
            if changed && !trouble.is_empty() {
                tracing::warn!(error = trouble, "not in step with the cluster");
            }
            *known = trouble;
            changed
        });
        tokio::select! {
            () = swarm.stop.cancelled() => return,
            () = fenced(&swarm) => {}
            changed = session.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn step(swarm: &Swarm, session: &SessionState) -> Result<()> {
    if swarm.is_leaving() {
        return Ok(());
    }
    if let Some(failure) = swarm.manager().and_then(|manager| manager.consensus.failure()) {
        // Opened again at the next step: what is on the disk is checked then, and there may be room again.
        swarm.stop_manager().await;
        bail!("the manager's raft has ended: {failure}");
    }
    if let Some(epoch) = swarm.manager().and_then(|manager| *manager.fenced().borrow()) {
        tracing::warn!(epoch, "this manager lays down its part in the cluster that was given up");
        swarm.lay_down().await?;
    }
    if session.removed {
        if swarm.manager().is_some() {
            swarm.resign().await?;
        }
        bail!("the cluster says that this node is no member any more: it may have been removed");
    }
    if !session.managers.is_empty() {
        let managers = session.managers.iter();
        let managers = managers.map(|known| KnownManager { node: known.node, addr: known.addr }).collect();
        swarm.update_file(|file| file.managers = managers)?;
    }
    let wanted = session.desired_role.filter(|role| *role != swarm.me().role);
    let wants_another = wanted.is_some() || swarm.is_fenced();
    let new_root = !session.root_pem.is_empty() && session.root_pem != swarm.pem().roots;
    if wants_another || new_root || until_renewal(swarm).is_zero() {
        renew(swarm).await.context("certificate not renewed")?;
    }
    match (swarm.me().role, swarm.manager()) {
        (Role::Manager, None) => swarm.start_manager().await?,
        (Role::Worker, Some(_)) => swarm.resign().await?,
        _ => {}
    }
    if let Some(manager) = swarm.manager().filter(|manager| !manager.is_settled())
        && let Err(error) = manager.join(&swarm.other_managers()).await
    {
        if matches!(error, ManagerError::Join(JoinError::Refused(_))) {
            // Perhaps this node is not wanted as a manager any more: then the next certificate says so.
            renew(swarm).await.context("certificate not renewed")?;
        }
        bail!(error);
    }
    Ok(())
}

/// Returns when the manager half is fenced off; never without one.
async fn fenced(swarm: &Swarm) {
    let Some(manager) = swarm.manager().filter(|_| !swarm.is_leaving()) else {
        return std::future::pending().await;
    };
    if manager.fenced().wait_for(Option::is_some).await.is_err() {
        // Consensus has ended.
        std::future::pending::<()>().await;
    }
}

/// Asks the managers for a new certificate, one after another, the one in this daemon last.
async fn renew(swarm: &Swarm) -> Result<()> {
    let own = swarm.manager().map(|_| swarm.file().advertise);
    let mut last = anyhow::anyhow!("no manager is known");
    for addr in swarm.other_managers().into_iter().chain(own) {
        match certificate::renew(&swarm.channels, addr).await {
            Ok(pem) => {
                swarm.take_identity(pem)?;
                tracing::info!(role = ?swarm.me().role, "certificate renewed");
                return Ok(());
            }
            Err(error) => last = error.into(),
        }
    }
    bail!(last)
}

/// Time until the certificate is to be renewed, by the wall clock, but never long.
fn until_renewal(swarm: &Swarm) -> Duration {
    let Ok(certificate) = Certificate::parse(&swarm.pem().certificate) else { return LONGEST_SLEEP };
    // The same moment at every look, another one on every node.
    let seed = swarm.node_id().bits() & u128::from(u64::MAX);
    let due = certificate.renew_at(u64::try_from(seed).unwrap_or_default());
    due.since(clock::now()).min(LONGEST_SLEEP)
}
