//! The agent says that it lives, and what its data plane holds.

use std::convert::Infallible;
use std::time::Duration;

use control_rpc::pb;
use dataplane_model::Report;
use tokio::sync::watch;

use super::{Client, SessionError, in_time};

/// Of a manager that says none.
const PERIOD: Duration = Duration::from_secs(1);
/// The manager says how often; what lies outside is a mistake that neither side should pay for.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// Two beats are never closer, however often the data plane applies something newer: managers refuse who beats more than 100
/// times a second. Long before anyone would notice that a drain waits.
const PACE: Duration = Duration::from_millis(20);

/// Beats as often as the manager says, and at once when the data plane has applied something newer.
pub(super) async fn heartbeats(
    mut client: Client,
    session_id: String,
    mut reports: watch::Receiver<Report>,
) -> Result<Infallible, SessionError> {
    loop {
        let applied = reports.borrow_and_update().applied;
        let generation = pb::Generation { epoch: applied.epoch, index: applied.index };
        let request = pb::HeartbeatRequest { session_id: session_id.clone(), applied: Some(generation) };
        let reply = in_time(async { Ok(client.heartbeat(request).await?) }).await?;
        let pause = pause(reply.into_inner().period_ms);
        tokio::time::sleep(PACE).await;
        let newer = async {
            // The data plane reports more often than its generation changes; when it is gone, time alone wakes.
            if reports.wait_for(|report| report.applied != applied).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(pause.saturating_sub(PACE), newer).await;
    }
}

/// Until the next beat, by a manager's word in milliseconds; 0 is none.
fn pause(period_ms: u32) -> Duration {
    match period_ms {
        0 => PERIOD,
        given => Duration::from_millis(given.into()).clamp(SHORTEST, LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_managers_period_is_obeyed_within_bounds() {
        let pauses = [0, 1, 100, 250, 1000, 5000, 5001, u32::MAX].map(|ms| pause(ms).as_millis());
        assert_eq!(pauses, [1000, 100, 100, 250, 1000, 5000, 5000, 5000]);
    }
}
