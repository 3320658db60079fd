//! What `meshctl` asks of a node's daemon.

use dataplane_model::inspect::{
    DnsQueryReport, DnsZoneReport, DropsReport, EndpointRow, FdbReport, FlowSamples, FlowsReport,
    GossipReport, LoadBalancerRow, NodeRow, NodeStatus, RingReport, TopReport, TraceReport, TraceRequest,
    TunnelledPacket, VerifyReport,
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
    /// have no characters but letters, digits and `-._:/[]`.
    pub async fn rings(&self, of: &str) -> Result<Vec<RingReport>, ClientError> {
        self.inspect(&format!("/lb/ring?of={of}")).await
    }

    /// Flows that the node remembers or keeps, at most `limit` of either.
    pub async fn flows(&self, limit: usize) -> Result<FlowsReport, ClientError> {
        self.inspect(&format!("/lb/flows?limit={limit}")).await
    }

    /// What would become of a connection. `from` and `to` go into the path as they are.
    pub async fn trace(&self, request: &TraceRequest) -> Result<TraceReport, ClientError> {
        self.inspect(&format!("/trace?{}", between(request))).await
    }

    /// What becomes of a packet that is sent now.
    pub async fn trace_live(&self, request: &TraceRequest) -> Result<TraceReport, ClientError> {
        self.inspect(&format!("/trace/live?{}", between(request))).await
    }

    /// The node tells of packets with this source port, for some seconds; of none any more if it is 0.
    pub async fn trace_mark(&self, protocol: u8, port: u16) -> Result<(), ClientError> {
        self.inspect(&format!("/trace/mark?protocol={protocol}&port={port}")).await
    }

    /// The rest of a way that leads through a tunnel to this node.
    pub async fn trace_tunnelled(&self, packet: &TunnelledPacket) -> Result<TraceReport, ClientError> {
        self.inspect(&format!("/trace/tunnelled?{}", tunnelled(packet))).await
    }

    /// The same of a marked packet that has come.
    pub async fn trace_marked(&self, packet: &TunnelledPacket) -> Result<TraceReport, ClientError> {
        self.inspect(&format!("/trace/marked?{}", tunnelled(packet))).await
    }

    /// One of `every` packets at each program, of about a second.
    pub async fn samples(&self, every: u32) -> Result<FlowSamples, ClientError> {
        self.inspect(&format!("/flows?every={every}")).await
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

    /// What its gossip knows.
    pub async fn gossip(&self) -> Result<GossipReport, ClientError> {
        self.inspect("/gossip").await
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

fn between(TraceRequest { from, to, protocol, port, ipv6 }: &TraceRequest) -> String {
    let family = if *ipv6 { "&ipv6=true" } else { "" };
    format!("from={from}&to={to}&protocol={protocol}&port={port}{family}")
}

fn tunnelled(packet: &TunnelledPacket) -> String {
    let TunnelledPacket { from, to, vni, endpoint, source, destination, protocol } = packet;
    let tunnel = format!("from={from}&to={to}&vni={vni}&endpoint={endpoint}");
    format!("{tunnel}&source={source}&destination={destination}&protocol={protocol}")
}
