//! What `meshctl` asks of a node's daemon.

use dataplane_model::inspect::{
    DnsQueryReport, DnsZoneReport, DropsReport, EndpointRow, FdbReport, FlowsReport, LoadBalancerRow,
    NodeRow, NodeStatus, RingReport, TopReport, TraceReport, TraceRequest, TunnelledPacket, VerifyReport,
};
use http::Method;
use serde::de::DeserializeOwned;

use crate::{Client, ClientError};

impl Client {
    /// Node, cluster, hooks, generations.
    pub async fn node_status(&self) -> Result<NodeStatus, ClientError> {
        self.inspect("/status").await
    }

    /// Frontends and virtual addresses, with their rings.
    pub async fn load_balancers(&self) -> Result<Vec<LoadBalancerRow>, ClientError> {
        self.inspect("/lb").await
    }

    /// The rings of a service, or of what a frontend or virtual address leads to. `of` goes into the path as it is: it must
    /// have no characters but letters, digits and `-._:/`.
    pub async fn rings(&self, of: &str) -> Result<Vec<RingReport>, ClientError> {
        self.inspect(&format!("/lb/ring?of={of}")).await
    }

    /// Flows that the node remembers or keeps, at most `limit` of either.
    pub async fn flows(&self, limit: usize) -> Result<FlowsReport, ClientError> {
        self.inspect(&format!("/lb/flows?limit={limit}")).await
    }

    /// What would become of a connection. `from` and `to` go into the path as they are.
    pub async fn trace(&self, request: &TraceRequest) -> Result<TraceReport, ClientError> {
        let TraceRequest { from, to, protocol, port } = request;
        self.inspect(&format!("/trace?from={from}&to={to}&protocol={protocol}&port={port}")).await
    }

    /// The rest of a way that leads through a tunnel to this node.
    pub async fn trace_tunnelled(&self, packet: &TunnelledPacket) -> Result<TraceReport, ClientError> {
        let TunnelledPacket { from, to, vni, endpoint, source, destination, protocol } = packet;
        let tunnel = format!("from={from}&to={to}&vni={vni}&endpoint={endpoint}");
        let flow = format!("source={source}&destination={destination}&protocol={protocol}");
        self.inspect(&format!("/trace/tunnelled?{tunnel}&{flow}")).await
    }

    /// What happens in about a second, which the answer takes.
    pub async fn top(&self) -> Result<TopReport, ClientError> {
        self.inspect("/top").await
    }

    /// What the node's DNS process serves, to one task or to all, in one network or in all. Both go into the path as
    /// `of` does in [`Self::rings`].
    pub async fn dns_zone(
        &self,
        task: Option<&str>,
        network: Option<&str>,
    ) -> Result<DnsZoneReport, ClientError> {
        let (task, network) = (task.unwrap_or_default(), network.unwrap_or_default());
        self.inspect(&format!("/dns/zone?task={task}&network={network}")).await
    }

    /// What a task gets for a name. All three go into the path as they are.
    pub async fn dns_query(
        &self,
        task: &str,
        name: &str,
        record_type: &str,
    ) -> Result<DnsQueryReport, ClientError> {
        self.inspect(&format!("/dns/query?task={task}&name={name}&type={record_type}")).await
    }

    /// Peers, owners of addresses, endpoints.
    pub async fn fdb(&self) -> Result<FdbReport, ClientError> {
        self.inspect("/fdb").await
    }

    /// Endpoints that the kernel forwards to.
    pub async fn endpoints(&self) -> Result<Vec<EndpointRow>, ClientError> {
        self.inspect("/endpoints").await
    }

    /// Where the node's kernel differs from what it should hold.
    pub async fn verify(&self) -> Result<VerifyReport, ClientError> {
        self.inspect("/verify").await
    }

    /// What each BPF program did with its packets.
    pub async fn drops(&self) -> Result<DropsReport, ClientError> {
        self.inspect("/drops").await
    }

    /// The nodes of the cluster; told by managers alone.
    pub async fn mesh_nodes(&self) -> Result<Vec<NodeRow>, ClientError> {
        Ok(serde_json::from_slice(&self.send(Method::GET, "/mesh/nodes", None).await?)?)
    }

    async fn inspect<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let path = match &self.node {
            None => format!("/mesh{path}"),
            Some(node) => format!("/mesh/nodes/{node}{path}"),
        };
        Ok(serde_json::from_slice(&self.send(Method::GET, &path, None).await?)?)
    }
}
