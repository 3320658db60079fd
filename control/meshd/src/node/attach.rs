//! Asks the managers for places in the swarm's networks, for containers that no service made.

use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use async_trait::async_trait;
use control_model::TaskId;
use control_model::standalone::AttachRequest;
use control_rpc::pb::dispatcher_client::DispatcherClient;
use control_rpc::{encode, pb};
use control_runtime::Attacher;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::certificate::rpc_text;
use super::swarm::Swarm;

/// A manager that has not written it by then is not waited for.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// One node's way to the managers of its swarm.
pub struct Places(pub Weak<Swarm>);

impl Places {
    /// What the first manager says that can say anything.
    async fn ask<F: Future<Output = Result<Response<pb::Empty>, Status>>>(
        &self,
        call: impl Fn(DispatcherClient<Channel>) -> F,
    ) -> Result<(), String> {
        let swarm = self.0.upgrade().ok_or("this node leaves its swarm")?;
        let mut last = Status::unavailable("no manager is known");
        for addr in managers(&swarm) {
            let client = DispatcherClient::new(swarm.channels.get(addr));
            let answer = tokio::time::timeout(CALL_TIMEOUT, call(client)).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded"))) {
                Ok(_) => return Ok(()),
                // Another one may know more.
                Err(status)
                    if matches!(
                        status.code(),
                        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                    ) =>
                {
                    last = status;
                }
                Err(status) => return Err(rpc_text(&status)),
            }
        }
        Err(rpc_text(&last))
    }
}

/// That of the session first.
fn managers(swarm: &Swarm) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = swarm.session.borrow().connected.into_iter().collect();
    all.extend(swarm.other_managers());
    all.dedup();
    all
}

#[async_trait]
impl Attacher for Places {
    async fn attach(&self, request: AttachRequest) -> Result<(), String> {
        let body = encode(&request).map_err(|error| error.to_string())?;
        self.ask(|mut client| {
            let message = pb::AttachMessage { body: body.clone() };
            async move { client.attach(message).await }
        })
        .await
    }

    async fn detach(&self, id: TaskId) -> Result<(), String> {
        self.ask(|mut client| {
            let message = pb::DetachMessage { task_id: id.to_string() };
            async move { client.detach(message).await }
        })
        .await
    }
}
