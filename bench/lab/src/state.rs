//! What a lab is: its shape, its addresses, its paths. Kept in a file, so that later commands find it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// Labs that can run side by side: one /24 of 198.18.0.0/15 (RFC 2544's benchmark range) each.
const MAX_LABS: u8 = 100;
/// Longest lab name: interface names end at 15 bytes.
const MAX_NAME_LEN: usize = 8;
/// Host part of the first node's address.
const FIRST_NODE_HOST: u8 = 11;
/// Host part of the client's address.
const CLIENT_HOST: u8 = 100;
/// Nodes that fit between the first node and the client.
const MAX_NODES: usize = (CLIENT_HOST - FIRST_NODE_HOST) as usize;

/// The shape of a lab to make.
#[derive(Debug, Clone)]
pub struct LabOptions {
    pub name: String,
    pub managers: usize,
    pub workers: usize,
    pub meshd: PathBuf,
    /// Further arguments for every meshd.
    pub meshd_args: Vec<String>,
    /// The nodes have IPv6 alone. The client has both families.
    pub is_ipv6_only: bool,
    /// Each node has a Docker Engine, which runs its containers.
    pub has_docker: bool,
}

/// Manager or worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Manager,
    Worker,
}

/// A node of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Name of the node, its namespace and its host.
    pub name: String,
    pub role: Role,
    pub address: Ipv4Addr,
}

impl NodeRecord {
    /// Its IPv6 address on the same wire.
    pub fn address6(&self) -> Ipv6Addr {
        address6(self.address)
    }
}

/// `fd00:198:18:0::11` belongs to 198.18.0.11: decimal digits are kept, so that a reader finds them again.
pub(crate) fn address6(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(|octet| {
        let (hundreds, tens, ones) = (octet / 100, octet / 10 % 10, octet % 10);
        u16::from(hundreds) << 8 | u16::from(tens) << 4 | u16::from(ones)
    });
    Ipv6Addr::new(0xfd00, a, b, c, 0, 0, 0, d)
}

/// A lab on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LabState {
    pub name: String,
    /// Third octet of the lab's subnet.
    pub subnet_number: u8,
    pub nodes: Vec<NodeRecord>,
    pub meshd: PathBuf,
    pub meshd_args: Vec<String>,
    #[serde(default)]
    pub is_ipv6_only: bool,
    #[serde(default)]
    pub has_docker: bool,
}

impl LabState {
    /// Lays out a lab; `lab` has subnet 198.18.0.0/24, every other the first that no lab has.
    pub fn new(options: &LabOptions) -> Result<Self> {
        let name = &options.name;
        ensure!(
            !name.is_empty()
                && name.len() <= MAX_NAME_LEN
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
            "a lab's name has 1 to {MAX_NAME_LEN} lower-case letters and digits, not {name:?}"
        );
        ensure!(options.managers >= 1, "a cluster needs at least one manager");
        ensure!(options.managers + options.workers <= MAX_NODES, "a lab has at most {MAX_NODES} nodes");
        let subnet_number = if name == "lab" { 0 } else { free_subnet_number()? };
        let managers = (1..=options.managers).map(|n| (format!("{name}-m{n}"), Role::Manager));
        let workers = (1..=options.workers).map(|n| (format!("{name}-w{n}"), Role::Worker));
        let nodes = managers
            .chain(workers)
            .zip(FIRST_NODE_HOST..)
            .map(|((name, role), host)| NodeRecord {
                name,
                role,
                address: Ipv4Addr::new(198, 18, subnet_number, host),
            })
            .collect();
        Ok(Self {
            name: name.clone(),
            subnet_number,
            nodes,
            meshd: options.meshd.clone(),
            meshd_args: options.meshd_args.clone(),
            is_ipv6_only: options.is_ipv6_only,
            has_docker: options.has_docker,
        })
    }

    /// Lays out one more worker after the last node.
    pub fn add_worker(&mut self) -> Result<NodeRecord> {
        ensure!(self.nodes.len() < MAX_NODES, "a lab has at most {MAX_NODES} nodes");
        let number = self.nodes.iter().filter(|n| n.role == Role::Worker).count() + 1;
        let host = FIRST_NODE_HOST + u8::try_from(self.nodes.len())?;
        let node = NodeRecord {
            name: format!("{}-w{number}", self.name),
            role: Role::Worker,
            address: Ipv4Addr::new(198, 18, self.subnet_number, host),
        };
        self.nodes.push(node.clone());
        Ok(node)
    }

    pub fn load(name: &str) -> Result<Option<Self>> {
        let path = state_file(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
        }
    }

    pub fn save(&self) -> Result<()> {
        std::fs::create_dir_all(run_root(&self.name))?;
        std::fs::write(state_file(&self.name), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    pub fn node(&self, name: &str) -> Result<&NodeRecord> {
        let full = format!("{}-{name}", self.name);
        self.nodes.iter().find(|n| n.name == name || n.name == full).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
            format!("lab {} has no node {name}; it has {}", self.name, names.join(", "))
        })
    }

    /// Whether its daemons are told to use XDP, which veth pairs must be prepared for.
    pub fn wants_xdp(&self) -> bool {
        self.meshd_args.iter().any(|arg| arg == "xdp" || arg == "--ingress-hook=xdp")
    }

    pub fn client_namespace(&self) -> String {
        format!("{}-client", self.name)
    }

    pub fn bridge_namespace(&self) -> String {
        format!("{}-net", self.name)
    }

    pub fn client_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet_number, CLIENT_HOST)
    }
}

/// `/run/meshd-<lab>`.
pub(crate) fn run_root(lab: &str) -> PathBuf {
    PathBuf::from(format!("/run/meshd-{lab}"))
}

/// `/var/lib/meshd-<lab>`.
pub(crate) fn state_root(lab: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/meshd-{lab}"))
}

/// `/sys/fs/bpf/meshd-<lab>`.
pub(crate) fn bpffs_root(lab: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/meshd-{lab}"))
}

fn state_file(lab: &str) -> PathBuf {
    run_root(lab).join("lab.json")
}

/// Third octets that running labs have.
fn free_subnet_number() -> Result<u8> {
    let mut taken = vec![0];
    for entry in std::fs::read_dir("/run")? {
        let name = entry?.file_name();
        if let Some(lab) = name.to_str().and_then(|n| n.strip_prefix("meshd-"))
            && let Some(state) = LabState::load(lab)?
        {
            taken.push(state.subnet_number);
        }
    }
    (1..=MAX_LABS).find(|n| !taken.contains(n)).context("too many labs run on this machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str, managers: usize, workers: usize) -> LabOptions {
        LabOptions {
            name: name.into(),
            managers,
            workers,
            meshd: "meshd".into(),
            meshd_args: vec![],
            is_ipv6_only: false,
            has_docker: false,
        }
    }

    #[test]
    fn managers_come_first_and_addresses_count_up() {
        let lab = LabState::new(&options("lab", 3, 2)).unwrap();
        let rows: Vec<String> = lab.nodes.iter().map(|n| format!("{} {}", n.name, n.address)).collect();
        assert_eq!(
            rows,
            [
                "lab-m1 198.18.0.11",
                "lab-m2 198.18.0.12",
                "lab-m3 198.18.0.13",
                "lab-w1 198.18.0.14",
                "lab-w2 198.18.0.15"
            ]
        );
        assert_eq!(lab.client_address(), Ipv4Addr::new(198, 18, 0, 100));
        assert_eq!(lab.nodes[1].address6().to_string(), "fd00:198:18::12");
        assert_eq!(address6(lab.client_address()).to_string(), "fd00:198:18::100");
    }

    #[test]
    fn refuses_bad_shapes() {
        for (name, managers, workers) in
            [("", 1, 0), ("Lab", 1, 0), ("much-too-long", 1, 0), ("x", 0, 1), ("x", 50, 50)]
        {
            assert!(LabState::new(&options(name, managers, workers)).is_err(), "{name} {managers} {workers}");
        }
    }

    #[test]
    fn nodes_are_found_by_short_and_long_name() {
        let lab = LabState::new(&options("lab", 1, 1)).unwrap();
        assert_eq!(lab.node("w1").unwrap().name, "lab-w1");
        assert_eq!(lab.node("lab-w1").unwrap().name, "lab-w1");
        assert!(lab.node("w2").is_err());
    }
}
