//! Questions to other nodes, on a manager; and whether a node has what the managers assign to it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use control_agent::Inspect;
use control_api::Node;
use control_api::node::{InspectError, LongAnswer};
use control_manager::Inspector;
use control_model::{Generation, NodeId};
use control_rpc::MAX_QUESTION_TIME;
use dataplane_model::inspect::{Assigned, Difference, VerifyReport};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::sleep;

use crate::node::swarm::Swarm;

/// A node that is up reads its maps in milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// All tables of a large node take longer, and the driver may be in the middle of a pass.
const VERIFY_LIMIT: Duration = MAX_QUESTION_TIME;

const VERIFY: &str = "/mesh/verify";
const ASSIGNED: &str = "/mesh/assigned";

/// Assignments on their way are no difference: how often they are looked at, …
const LOOKS: u32 = 6;
/// … and after which time again.
const PAUSE: Duration = Duration::from_millis(500);

/// What the managers have assigned to this node.
pub async fn assigned(swarm: &Swarm) -> Result<Assigned, InspectError> {
    let held = swarm.holdings.read().await;
    let (generation, digest) =
        held.ok_or_else(|| InspectError("no manager has assigned anything yet".to_owned()))?;
    Ok(to_row(generation, digest))
}

fn to_row(Generation { epoch, index }: Generation, digest: String) -> Assigned {
    Assigned { generation: dataplane_model::Generation { epoch, index }, digest }
}

/// What `node` answers. A comparison of its kernel with its assignments is completed by one of these with the managers' state.
pub async fn ask(
    me: Arc<dyn Node>,
    swarm: &Swarm,
    node: NodeId,
    question: &str,
) -> Result<Vec<u8>, InspectError> {
    let manager = swarm.manager().ok_or_else(|| InspectError("this node is no manager".to_owned()))?;
    let way = Way { me, own: swarm.node_id(), inspector: &manager.inspector };
    if question != VERIFY {
        return way.ask(node, question, LIMIT).await;
    }
    let report = way.ask(node, VERIFY, VERIFY_LIMIT).await?;
    let report = serde_json::from_slice(&report).map_err(|error| malformed(&error))?;
    let report = way.compare(node, report).await?;
    serde_json::to_vec(&report).map_err(|error| InspectError(error.to_string()))
}

fn malformed(error: &serde_json::Error) -> InspectError {
    InspectError(format!("it answers something else than was asked: {error}"))
}

/// What `node` answers at length.
pub async fn open(
    me: Arc<dyn Node>,
    swarm: &Swarm,
    node: NodeId,
    question: &str,
) -> Result<LongAnswer, InspectError> {
    if node == swarm.node_id() {
        return control_api::open(me, question).await.map_err(InspectError);
    }
    let manager = swarm.manager().ok_or_else(|| InspectError("this node is no manager".to_owned()))?;
    let answer = manager.inspector.open(node, question).await;
    let pieces = answer.map_err(|error| InspectError(error.to_string()))?;
    let pieces = pieces.map_ok(Bytes::from).map_err(|error| InspectError(error.to_string()));
    Ok(pieces.boxed())
}

/// This node, asked by managers, while its daemon is there.
pub struct Own(pub Weak<dyn Node>);

impl Own {
    fn node(&self) -> Result<Arc<dyn Node>, String> {
        self.0.upgrade().ok_or_else(|| "the daemon is stopping".to_owned())
    }
}

#[async_trait]
impl Inspect for Own {
    async fn answer(&self, question: String) -> Result<Vec<u8>, String> {
        control_api::inspect(self.node()?, &question).await
    }

    async fn long_answer(&self, question: String) -> Result<control_agent::LongAnswer, String> {
        let pieces = control_api::open(self.node()?, &question).await?;
        Ok(Box::pin(pieces.map_ok(|piece| piece.to_vec()).map_err(|error| error.0)))
    }
}

/// From a manager to all nodes, itself included.
struct Way<'a> {
    me: Arc<dyn Node>,
    own: NodeId,
    inspector: &'a Inspector,
}

impl Way<'_> {
    async fn ask(&self, node: NodeId, question: &str, limit: Duration) -> Result<Vec<u8>, InspectError> {
        if node == self.own {
            return control_api::inspect(self.me.clone(), question).await.map_err(InspectError);
        }
        let answer = self.inspector.ask(node, question, limit).await;
        answer.map_err(|error| InspectError(error.to_string()))
    }

    /// Adds a difference to `report` if `node` has other assignments than this manager's state wants, and goes on so.
    async fn compare(&self, node: NodeId, mut report: VerifyReport) -> Result<VerifyReport, InspectError> {
        report.is_compared = true;
        for look in 1.. {
            let answer = self.ask(node, ASSIGNED, LIMIT).await?;
            let held: Assigned = serde_json::from_slice(&answer).map_err(|error| malformed(&error))?;
            let wish = self.inspector.wish(node).map_err(|error| InspectError(error.to_string()))?;
            let wish = to_row(wish.0, wish.1);
            if held.digest == wish.digest {
                break;
            }
            if look == LOOKS {
                report.differences.insert(0, difference(&held, &wish));
                break;
            }
            sleep(PAUSE).await;
        }
        Ok(report)
    }
}

fn difference(held: &Assigned, wish: &Assigned) -> Difference {
    let text = |Assigned { generation, digest }: &Assigned| {
        format!("{digest} of generation {}.{}", generation.epoch, generation.index)
    };
    Difference {
        table: "assignments".to_owned(),
        key: "-".to_owned(),
        is: Some(text(held)),
        should: Some(text(wish)),
    }
}
