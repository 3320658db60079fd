//! Where the answers come from: the node's meshd, or the pins when it is dead and the caller is root; for other nodes the
//! managers.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use control_client::{Client, ClientError};
use dataplane_model::inspect::{
    DnsQueryReport, DnsZoneReport, DropsReport, EndpointRow, FdbReport, FlowSamples, FlowsReport,
    GossipReport, LoadBalancerRow, NodeRow, NodeStatus, RingReport, TopReport, TraceReport, TraceRequest,
    TunnelledPacket, VerifyReport,
};

use crate::pins;

/// meshd reads its maps in milliseconds; one that takes longer is stuck, and the pins tell more.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// All tables of a large node take longer to read than one, and the driver may be in the middle of a pass.
const VERIFY_TIMEOUT: Duration = Duration::from_mins(1);

/// A node that is asked through a manager may use its own time; this comes on top.
const RELAY_TIME: Duration = Duration::from_secs(10);

/// One node's daemon and pins.
#[derive(Clone)]
pub struct Source {
    client: Client,
    /// Of this machine's own node.
    pin_dir: Option<PathBuf>,
    /// It was said that meshd does not answer: once is enough for who watches.
    has_told: Cell<bool>,
}

impl Source {
    pub fn new(socket: &Path, pin_dir: &Path) -> Self {
        Self {
            client: Client::new(socket).with_timeout(TIMEOUT),
            pin_dir: Some(pin_dir.to_owned()),
            has_told: Cell::new(false),
        }
    }

    /// Another node of the cluster, asked through the same daemon, which must be a manager's.
    pub fn of_node(&self, node: &str) -> Self {
        let client = self.client.clone().on_node(node).with_timeout(TIMEOUT + RELAY_TIME);
        Self { client, pin_dir: None, has_told: Cell::new(false) }
    }

    /// All nodes of the cluster.
    pub async fn nodes(&self) -> anyhow::Result<Vec<NodeRow>> {
        Ok(self.client.mesh_nodes().await?)
    }

    pub async fn status(&self) -> anyhow::Result<NodeStatus> {
        self.or_pins(self.client.node_status().await, pins::status)
    }

    pub async fn load_balancers(&self) -> anyhow::Result<Vec<LoadBalancerRow>> {
        self.or_pins(self.client.load_balancers().await, pins::load_balancers)
    }

    pub async fn rings(&self, of: &str) -> anyhow::Result<Vec<RingReport>> {
        self.or_pins(self.client.rings(of).await, |pins| pins::rings(pins, of))
    }

    pub async fn flows(&self, limit: usize) -> anyhow::Result<FlowsReport> {
        self.or_pins(self.client.flows(limit).await, |pins| pins::flows(pins, limit))
    }

    pub async fn fdb(&self) -> anyhow::Result<FdbReport> {
        self.or_pins(self.client.fdb().await, pins::fdb)
    }

    /// Of meshd alone: it is nothing of the kernel's.
    pub async fn gossip(&self) -> anyhow::Result<GossipReport> {
        self.client.gossip().await.context("only meshd can tell what its gossip knows")
    }

    pub async fn endpoints(&self) -> anyhow::Result<Vec<EndpointRow>> {
        self.or_pins(self.client.endpoints().await, pins::endpoints)
    }

    /// meshd alone knows what should be in the kernel: the pins can't stand in.
    pub async fn verify(&self) -> anyhow::Result<VerifyReport> {
        let report = self.client.clone().with_timeout(VERIFY_TIMEOUT + RELAY_TIME).verify().await;
        report.context("only meshd can tell what should be in the kernel")
    }

    /// Without meshd only from outside to an address: the pins know no names.
    pub async fn trace(&self, request: &TraceRequest) -> anyhow::Result<TraceReport> {
        self.or_pins(self.client.trace(request).await, |pins| pins::trace(pins, request))
    }

    /// On, from another node's tunnel.
    pub async fn trace_tunnelled(&self, packet: &TunnelledPacket) -> anyhow::Result<TraceReport> {
        Ok(self.client.trace_tunnelled(packet).await?)
    }

    /// A packet that is sent now. Of meshd alone.
    pub async fn trace_live(&self, request: &TraceRequest) -> anyhow::Result<TraceReport> {
        Ok(self.client.trace_live(request).await?)
    }

    /// The node waits for marked packets, for some seconds.
    pub async fn trace_mark(&self, protocol: u8, port: u16) -> anyhow::Result<()> {
        Ok(self.client.trace_mark(protocol, port).await?)
    }

    /// On, from another node's tunnel, with a marked packet.
    pub async fn trace_marked(&self, packet: &TunnelledPacket) -> anyhow::Result<TraceReport> {
        Ok(self.client.trace_marked(packet).await?)
    }

    /// Of meshd alone: the kernel's buffer has one reader.
    pub async fn samples(&self, every: u32) -> anyhow::Result<FlowSamples> {
        Ok(self.client.samples(every).await?)
    }

    pub async fn top(&self) -> anyhow::Result<TopReport> {
        self.or_pins(self.client.top().await, pins::top)
    }

    pub async fn drops(&self) -> anyhow::Result<DropsReport> {
        self.or_pins(self.client.drops().await, pins::drops)
    }

    /// Of meshd alone: the pins know no names.
    pub async fn dns_zone(&self, task: Option<&str>, network: Option<&str>) -> anyhow::Result<DnsZoneReport> {
        Ok(self.client.dns_zone(task, network).await?)
    }

    /// Of meshd alone.
    pub async fn dns_query(
        &self,
        task: &str,
        name: &str,
        record_type: &str,
    ) -> anyhow::Result<DnsQueryReport> {
        Ok(self.client.dns_query(task, name, record_type).await?)
    }

    /// meshd's answer; where it is unreachable what `read` finds in the pins.
    fn or_pins<T>(
        &self,
        answer: Result<T, ClientError>,
        read: impl FnOnce(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) if error.is_unreachable() => error,
            Err(error) => return Err(error.into()),
        };
        let Some(pins) = &self.pin_dir else { return Err(error.into()) };
        if !nix::unistd::geteuid().is_root() {
            return Err(error).context("without meshd only root can read the kernel's maps");
        }
        let pin_dir = pins.display();
        if !pins.is_dir() {
            return Err(error)
                .with_context(|| format!("nothing is pinned at {pin_dir} either (--bpffs-dir)"));
        }
        if !self.has_told.replace(true) {
            eprintln!("meshctl: {error}; reading from the pins at {pin_dir}");
        }
        read(pins).with_context(|| format!("can't read the pins at {pin_dir}"))
    }
}
