//! What a node says of itself.

use std::net::IpAddr;

use control_model::generic::GenericResources;
use control_model::object::NodeDescription;
use control_model::spec::{Labels, Platform, Resources};

/// 10^9 is one CPU.
const NANO_CPUS_PER_CPU: i64 = 1_000_000_000;

/// This host's description. The hostname and the addresses are the caller's: it knows its namespace and its
/// flags. The underlay's MTU, the certificate's root, labels and generic resources, too, are its to fill in.
pub fn describe_host(
    hostname: String,
    data_path_addr: IpAddr,
    addresses: Vec<IpAddr>,
    engine_version: String,
) -> NodeDescription {
    let n_cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    NodeDescription {
        hostname,
        platform: Platform {
            os: Platform::HOST_OS.to_owned(),
            architecture: Platform::HOST_ARCHITECTURE.to_owned(),
        },
        resources: Resources {
            nano_cpus: i64::try_from(n_cpus).unwrap_or(i64::MAX).saturating_mul(NANO_CPUS_PER_CPU),
            memory_bytes: memory_bytes(&meminfo),
        },
        generic: GenericResources::new(),
        engine_version,
        engine_labels: Labels::new(),
        data_path_addr: Some(data_path_addr),
        addresses,
        underlay_mtu_bytes: None,
        gossip_addr: None,
        tls: None,
    }
}

/// `MemTotal` of `/proc/meminfo`, bytes; 0 if it can't be read.
fn memory_bytes(meminfo: &str) -> i64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes =
        total.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    kibibytes.unwrap_or(0_i64).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16 << 20);
        assert_eq!(memory_bytes("nothing"), 0);
    }

    #[test]
    fn this_host_has_cpus_and_memory() {
        let host = describe_host("n".into(), IpAddr::from([127, 0, 0, 1]), vec![], "1".into());
        assert!(host.resources.nano_cpus >= NANO_CPUS_PER_CPU && host.resources.memory_bytes > 0);
        assert_eq!(host.platform.os, "linux");
    }
}
