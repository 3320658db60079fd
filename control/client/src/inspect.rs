//! What `meshctl` asks of a node's daemon.

use dataplane_model::inspect::{
    DropsReport, EndpointRow, FdbReport, FlowsReport, LoadBalancerRow, NodeStatus, RingReport, VerifyReport,
};
use http::Method;
use serde::de::DeserializeOwned;

use crate::{Client, ClientError};

impl Client {
    /// Node, cluster, hooks, generations.
    pub async fn node_status(&self) -> Result<NodeStatus, ClientError> {
        self.inspect("/mesh/status").await
    }

    /// Frontends and virtual addresses, with their rings.
    pub async fn load_balancers(&self) -> Result<Vec<LoadBalancerRow>, ClientError> {
        self.inspect("/mesh/lb").await
    }

    /// The rings of a service, or of what a frontend or virtual address leads to. `of` goes into the path as it is: it must
    /// have no characters but letters, digits and `-._:/`.
    pub async fn rings(&self, of: &str) -> Result<Vec<RingReport>, ClientError> {
        self.inspect(&format!("/mesh/lb/ring?of={of}")).await
    }

    /// Flows that the node remembers or keeps, at most `limit` of either.
    pub async fn flows(&self, limit: usize) -> Result<FlowsReport, ClientError> {
        self.inspect(&format!("/mesh/lb/flows?limit={limit}")).await
    }

    /// Peers, owners of addresses, endpoints.
    pub async fn fdb(&self) -> Result<FdbReport, ClientError> {
        self.inspect("/mesh/fdb").await
    }

    /// Endpoints that the kernel forwards to.
    pub async fn endpoints(&self) -> Result<Vec<EndpointRow>, ClientError> {
        self.inspect("/mesh/endpoints").await
    }

    /// Where the node's kernel differs from what it should hold.
    pub async fn verify(&self) -> Result<VerifyReport, ClientError> {
        self.inspect("/mesh/verify").await
    }

    /// What each BPF program did with its packets.
    pub async fn drops(&self) -> Result<DropsReport, ClientError> {
        self.inspect("/mesh/drops").await
    }

    async fn inspect<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.send(Method::GET, path, None).await?)?)
    }
}
