//! Keeps a node in step with its cluster: remembers the managers, renews the certificate when it is time or when the
//! wanted role or the root has changed, and starts and ends the manager half with the role.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use control_agent::SessionState;
use control_api::node::EXPIRED;
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

async fn step(swarm: &Arc<Swarm>, session: &SessionState) -> Result<()> {
    if swarm.is_leaving() {
        return Ok(());
    }
    if let Some(failure) = swarm.manager().and_then(|manager| manager.consensus.failure()) {
        // Opened again at the next step: what is on the disk is checked then, and there may be room again.
        swarm.stop_manager().await;
        bail!("the manager's raft has ended: {failure}");
    }
    if let Some(beyond) = swarm.manager().and_then(|manager| *manager.fenced().borrow()) {
        tracing::warn!(
            epoch = beyond.epoch,
            "this manager lays down its part in the cluster that was given up"
        );
        swarm.lay_down(beyond).await?;
    }
    if let Some(addr) = swarm.taken_over_by() {
        bail!(
            "the cluster was made anew at {addr}, of what this node or a backup of it had, and in its name: run \"docker swarm \
             leave --force\" here, and join again"
        );
    }
    if session.removed {
        if swarm.manager().is_some() {
            swarm.resign().await?;
        }
        bail!("the cluster says that this node is no member any more: it may have been removed");
    }
    // Those of the cluster that was given up are not to come back.
    if !session.managers.is_empty() && !swarm.is_fenced() {
        let managers = session.managers.iter();
        let managers = managers.map(|known| KnownManager { node: known.node, addr: known.addr }).collect();
        swarm.update_file(|file| file.managers = managers)?;
    }
    if swarm.is_fenced() {
        // What it has of the cluster that was given up seals its key, so it goes when there is another one.
        renew(swarm).await.context("certificate not renewed")?;
        swarm.resign().await?;
    }
    // A manager serves before it renews: if it is the only one, or all of them begin anew, there is nobody else to ask.
    let served = serve_if_manager(swarm).await;
    let believes = believe(swarm, session)?;
    let renewed = if !believes || is_to_renew(swarm, session) { renew(swarm).await } else { Ok(()) };
    served?;
    renewed.context("certificate not renewed")?;
    serve_if_manager(swarm).await?;
    // What is on the disk of a manager that became a worker may be left by a crash.
    if swarm.me().role == Role::Worker && (swarm.manager().is_some() || swarm.file().raft_id.is_some()) {
        swarm.resign().await?;
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

async fn serve_if_manager(swarm: &Arc<Swarm>) -> Result<(), ManagerError> {
    if swarm.me().role == Role::Manager && swarm.manager().is_none() && !swarm.is_fenced() {
        swarm.start_manager().await?;
    }
    Ok(())
}

/// Trusts the root that the managers trust. False if this node's certificate is none of that root's: it needs another one.
fn believe(swarm: &Swarm, session: &SessionState) -> Result<bool> {
    if session.root_pem.is_empty() || session.root_pem == swarm.pem().roots {
        return Ok(true);
    }
    swarm.trust(&session.root_pem)
}

fn is_to_renew(swarm: &Swarm, session: &SessionState) -> bool {
    let other_role = session.desired_role.is_some_and(|role| role != swarm.me().role);
    let other_issuer = !session.issuer.is_empty() && !swarm.is_issued_by(&session.issuer);
    other_role || other_issuer || swarm.renews_soon() || until_renewal(swarm).is_zero()
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

/// Asks the managers for a new certificate, one after another, the one in this daemon last. With one that ran out nobody
/// answers: a manager then gives itself a new one, a worker is let in again by a token.
async fn renew(swarm: &Swarm) -> Result<()> {
    if swarm.is_expired() {
        let Some(consensus) = swarm.consensus() else { bail!(EXPIRED) };
        swarm.take_identity(certificate::renew_own(consensus, swarm.me())?)?;
        tracing::warn!("this manager's certificate had run out: it gave itself another one");
        return Ok(());
    }
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
