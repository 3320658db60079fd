//! What `meshctl` asks of a node's daemon.

use dataplane_model::inspect::{DropsReport, EndpointRow, LoadBalancerRow, NodeStatus};
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

    /// Endpoints that the kernel forwards to.
    pub async fn endpoints(&self) -> Result<Vec<EndpointRow>, ClientError> {
        self.inspect("/mesh/endpoints").await
    }

    /// What each BPF program did with its packets.
    pub async fn drops(&self) -> Result<DropsReport, ClientError> {
        self.inspect("/mesh/drops").await
    }

    async fn inspect<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.send(Method::GET, path, None).await?)?)
    }
}
