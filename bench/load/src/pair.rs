//! Two nodes of the mesh by their data planes alone, and a client, on one bridge: what is measured here is the path, with no
//! other daemon on the machine's few cores.

mod view;

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use dataplane_driver::{Driver, DriverOptions};
use dataplane_kernel::bpf::{PinDir, Tables};
use dataplane_model::{DataPlane as _, NodeView, Report, SandboxId, SandboxStatus};
use dataplane_plan::IngressHook;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::netns::{Namespace, Place};

pub use view::{Assigned, Extent, PORT, VIP, last_ring, overlay_address};

/// Tunnel ends of the two nodes; clients ask the first, the task that serves is on the second.
pub const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 11), Ipv4Addr::new(198, 18, 0, 12)];
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 100);

/// How long a view may take; the programs are loaded meanwhile, and 100,000 endpoints written.
const CONVERGE_LIMIT: Duration = Duration::from_mins(2);

/// For so long programs go by a next hop that they have asked for, and some more.
const NEXT_HOP_LIFE: Duration = Duration::from_millis(1500);

/// The nodes and their client.
pub struct Pair {
    nodes: [Node; 2],
    client: Namespace,
    _switch: Namespace,
}

impl Pair {
    pub fn start() -> Result<Self> {
        Self::start_by(IngressHook::default())
    }

    /// Nodes that take what comes in at this hook.
    pub fn start_by(hook: IngressHook) -> Result<Self> {
        let switch = Namespace::new("psw")?;
        switch.add_bridge()?;
        let client = Namespace::new("pcl")?;
        switch.plug(&client, "pcl", &format!("{CLIENT}/24"))?;
        client.place().allow_short_connections()?;
        let node = |index: usize| {
            let namespace = Namespace::new(&format!("pn{index}"))?;
            let port = format!("pn{index}");
            switch.plug(&namespace, &port, &format!("{}/24", NODES[index]))?;
            if hook == IngressHook::Xdp {
                // XDP sends by a veth whose far end receives as a NIC does, and takes packets as they are on a wire.
                switch.place().run("ethtool", &["-K", &port, "gro", "on", "tx", "off"])?;
            }
            namespace.place().run("sh", &["-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"])?;
            Node::start(namespace, hook)
        };
        Ok(Self { nodes: [node(0)?, node(1)?], client, _switch: switch })
    }

    pub fn client(&self) -> &Place {
        self.client.place()
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// Does `work` while the nodes leave all tunnels to the kernel's VXLAN device: without forwarding on its interface the
    /// kernel tells no program the next hop.
    pub fn by_tunnel_device<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.set_forwarding("0")?;
        let done = work();
        self.set_forwarding("1")?;
        done
    }

    fn set_forwarding(&self, value: &str) -> Result<()> {
        for node in &self.nodes {
            let command = format!("echo {value} > /proc/sys/net/ipv4/conf/eth0/forwarding");
            node.namespace.place().run("sh", &["-c", &command])?;
        }
        thread::sleep(NEXT_HOP_LIFE);
        Ok(())
    }

    /// Gives both nodes their views.
    pub fn converge(&self, revision: u64, extent: Extent) -> Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            node.converge(Assigned::new(index, revision, extent).view())?;
        }
        Ok(())
    }

    /// The task on a node.
    pub fn task(&self, index: usize) -> Result<Place> {
        let sandbox = self.nodes[index].options.netns_dir().join(view::sandbox_name(index));
        let place = Place::at(sandbox);
        place.allow_short_connections()?;
        Ok(place)
    }
}

/// A node's namespace and its driver. Both go when it is dropped, with all that the driver made.
pub struct Node {
    driver: Driver,
    runtime: Runtime,
    options: DriverOptions,
    namespace: Namespace,
    _directory: TempDir,
}

impl Node {
    fn start(namespace: Namespace, ingress_hook: IngressHook) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bench-node-").tempdir()?;
        let pins = PathBuf::from("/sys/fs/bpf").join(namespace.name());
        let options = DriverOptions { ingress_hook, ..DriverOptions::new(directory.path().to_owned(), pins) };
        let driver = namespace.place().inside(|| Ok(Driver::start(&options)?))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { driver, runtime, options, namespace, _directory: directory })
    }

    /// Gives the driver a view.
    pub fn want(&self, view: NodeView) {
        self.driver.set_view(view);
    }

    /// The maps that its programs read.
    pub fn tables(&self) -> Result<Tables> {
        Ok(Tables::open(&PinDir::new(&self.options.bpffs_dir))?)
    }

    /// Returns at once when the kernel holds the view and all sandboxes are ready.
    pub fn converge(&self, view: NodeView) -> Result<()> {
        let revision = view.revision;
        let sandboxes: Vec<SandboxId> = view.sandboxes.keys().cloned().collect();
        self.driver.set_view(view);
        let mut reports = self.driver.watch();
        let is_done = |report: &Report| report.applied_revision >= revision && are_ready(report, &sandboxes);
        let applied = self.runtime.block_on(async {
            tokio::time::timeout(CONVERGE_LIMIT, reports.wait_for(is_done))
                .await
                .is_ok_and(|seen| seen.is_ok())
        });
        ensure!(applied, "the view is not applied within {CONVERGE_LIMIT:?}: {:?}", *reports.borrow());
        Ok(())
    }
}

fn are_ready(report: &Report, sandboxes: &[SandboxId]) -> bool {
    sandboxes.iter().all(|id| matches!(report.sandboxes.get(id), Some(SandboxStatus::Ready { .. })))
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.driver.tear_down()) {
            eprintln!("bench-load: {error}");
        }
        let _ = fs::remove_dir(&self.options.bpffs_dir);
    }
}
