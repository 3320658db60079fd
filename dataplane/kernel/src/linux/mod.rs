//! [`LinuxKernel`]: the kernel that this process runs on. Network rows go to [`crate::net`], the others are translated
//! into the maps and hooks of [`crate::bpf`].

mod links;
mod observe;
mod rows;
mod sweeper;
mod write;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dataplane_model::kernel_state::{Change, LinkName};
use dataplane_model::{KernelState, Op};

use crate::bpf::{self, Bpf, PinDir, Tables};
use crate::net::{Machine, Net, NetOptions, NodeSockets};
use crate::seam::{Kernel, KernelError};

pub use sweeper::LinuxSweeper;

/// Where a node's data plane lives.
#[derive(Debug, Clone)]
pub struct LinuxOptions {
    pub netns_dir: PathBuf,
    /// Interfaces to other machines; empty for the one that holds the tunnel end.
    pub uplinks: Vec<LinkName>,
    /// Directory of the pins, in a BPF file system.
    pub bpffs_dir: PathBuf,
    /// Root of the cgroup v2 hierarchy; `None` finds it.
    pub cgroup2_root: Option<PathBuf>,
}

/// This machine's kernel, in the network namespace of the thread that made it.
pub struct LinuxKernel {
    options: LinuxOptions,
    net: Net,
    /// Opened when it is first needed: opening makes pins.
    bpf: Option<Bpf>,
    /// What an older meshd has pinned, while `bpf` is not opened: its programs carry the traffic.
    pinned: Option<Tables>,
    /// XDP must send by redirecting, see [`ebpf_abi::table::CONFIG_XDP_REDIRECT`].
    xdp_redirects: bool,
    last_tick: Instant,
    /// Nothing of an older version is left.
    is_settled: bool,
}

impl LinuxKernel {
    /// Checks that this machine can run the data plane; changes nothing. A tokio runtime must be entered.
    pub fn open(options: LinuxOptions) -> Result<Self, KernelError> {
        bpf::check().map_err(|error| KernelError::of(&error))?;
        let net = NetOptions { netns_dir: options.netns_dir.clone(), uplinks: options.uplinks.clone() };
        let net = Net::new(net).map_err(|error| KernelError::of(&error))?;
        Ok(Self {
            options,
            net,
            bpf: None,
            pinned: None,
            xdp_redirects: false,
            last_tick: Instant::now(),
            is_settled: false,
        })
    }

    fn bpf(&mut self) -> Result<&mut Bpf, KernelError> {
        if self.bpf.is_none() {
            self.pinned = None;
            self.bpf = Some(Bpf::open(&self.options.bpffs_dir).map_err(|error| KernelError::of(&error))?);
        }
        Ok(self.bpf.as_mut().expect("just set"))
    }

    /// The tables that the programs work with, if there are any. What can't be opened before there is a view the first pass
    /// makes anew, or says why not.
    fn tables(&mut self) -> Option<&mut Tables> {
        if let Some(bpf) = &mut self.bpf {
            return Some(&mut bpf.tables);
        }
        if self.pinned.is_none() {
            self.pinned = Tables::open(&PinDir::new(&self.options.bpffs_dir)).ok();
        }
        self.pinned.as_mut()
    }

    /// The uplink that the programs know, for who takes away what he knows no tunnel end of: forwarding there is ours.
    fn last_uplink(&mut self) -> Option<u32> {
        let index = self.tables()?.config.get().ok()?.uplink_ifindex;
        (index != 0).then_some(index)
    }
}

impl Kernel for LinuxKernel {
    type Sockets = NodeSockets;
    type Sweeper = LinuxSweeper;

    async fn machine(&mut self, vtep: IpAddr) -> Result<Machine, KernelError> {
        let last_uplink = if vtep.is_unspecified() { self.last_uplink() } else { None };
        let machine = self.net.machine(vtep, last_uplink).await.map_err(|error| KernelError::of(&error))?;
        let primary = machine.uplinks.values().find(|uplink| uplink.has(vtep));
        // The far end of a veth pair seldom runs XDP, and only then takes what XDP_TX sends.
        self.xdp_redirects = primary.is_some_and(|uplink| uplink.kind.as_deref() == Some("veth"));
        Ok(machine)
    }

    async fn changed(&mut self) {
        self.net.changed().await;
    }

    async fn observe(&mut self) -> Result<KernelState, KernelError> {
        let mut state = KernelState::default();
        self.net.observe(&mut state).await.map_err(|error| KernelError::of(&error))?;
        let sandboxes = self.net.sandboxes_behind().await.map_err(|error| KernelError::of(&error))?;
        self.observe_bpf(sandboxes, &mut state)?;
        Ok(state)
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        if let Op::Forwarding(Change::Put(name, _)) | Op::Forwarding6(Change::Put(name, _)) = op {
            self.note_uplink(name)?;
        }
        let is_done = self.net.apply(op).await.map_err(|error| KernelError::of(&error))?;
        if is_done { Ok(()) } else { self.apply_bpf(op).await }
    }

    /// Rings are taken together: writing one waits for all CPUs, writing many waits as long.
    async fn apply_all(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        if ops.len() > 1 && self.apply_rings(ops).is_ok() {
            return ops.iter().map(|_| Ok(())).collect();
        }
        let mut outcomes = Vec::with_capacity(ops.len());
        for op in ops {
            outcomes.push(self.apply(op).await);
        }
        outcomes
    }

    fn sockets(&self) -> NodeSockets {
        self.net.sockets()
    }

    fn sweeper(&self) -> LinuxSweeper {
        LinuxSweeper::new(self.options.bpffs_dir.clone(), self.net.sockets())
    }

    fn tick(&mut self) -> Result<(), KernelError> {
        let seconds = self.last_tick.elapsed().as_secs();
        let Some(tables) = self.tables() else { return Ok(()) };
        if seconds > 0 {
            let tick = tables.tick.get().map_err(|error| KernelError::of(&error))?;
            let step = u32::try_from(seconds).unwrap_or(u32::MAX);
            tables.tick.set(&tick.wrapping_add(step)).map_err(|error| KernelError::of(&error))?;
            self.last_tick += Duration::from_secs(seconds);
        }
        Ok(())
    }

    /// Hooks and pins of other versions: until now their programs carried the traffic.
    fn settle(&mut self) -> Result<(), KernelError> {
        if !self.is_settled {
            let removed = bpf::remove_other_versions(&PinDir::new(&self.options.bpffs_dir));
            removed.map_err(|error| KernelError::of(&error))?;
            self.is_settled = true;
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), KernelError> {
        // Filters don't end with their pins.
        bpf::remove_other_versions(&PinDir::new(&self.options.bpffs_dir))
            .map_err(|error| KernelError::of(&error))?;
        (self.bpf, self.pinned) = (None, None);
        for dir in [&self.options.bpffs_dir, &self.options.netns_dir] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(KernelError(format!("cannot remove {}: {error}", dir.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
