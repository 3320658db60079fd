//! Where a container is behind the node's gateway: its namespace says it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

use crate::oci::Place;

/// Blocks. `None` of a namespace that has no way out.
pub(super) fn place_in(netns: &Path) -> io::Result<Option<Place>> {
    let netns = File::open(netns)?;
    // The namespace is a thread's own, and goes with it.
    let looking = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let routes = std::fs::read_to_string("/proc/thread-self/net/route")?;
        let Some((interface, gateway)) = default_route(&routes) else { return Ok(None) };
        place_of(&interface, gateway)
    });
    looking.join().map_err(|_| io::Error::other("the look into a namespace has failed"))?
}

fn place_of(interface: &str, gateway: Ipv4Addr) -> io::Result<Option<Place>> {
    let (mut address, mut mac) = (None, String::new());
    for found in getifaddrs()?.filter(|found| found.interface_name == interface) {
        let Some(own) = found.address else { continue };
        if let Some(link) = own.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr) {
            mac = link.map(|byte| format!("{byte:02x}")).join(":");
        }
        let mask = found.netmask.as_ref().and_then(|mask| mask.as_sockaddr_in());
        if let (Some(ip), Some(mask)) = (own.as_sockaddr_in(), mask) {
            address = Ipv4Network::with_netmask(ip.ip(), mask.ip()).ok();
        }
    }
    let place = |address| Place { address: IpNetwork::V4(address), gateway: Some(IpAddr::V4(gateway)), mac };
    Ok(address.map(place))
}

/// Interface and gateway of the default route in a kernel's table, whose addresses are numbers of the machine.
fn default_route(table: &str) -> Option<(String, Ipv4Addr)> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (interface, destination, gateway) = (words.next()?, words.next()?, words.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && gateway != 0)
            .then(|| (interface.to_owned(), Ipv4Addr::from(gateway.to_ne_bytes())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_the_default_route() {
        let gateway = u32::from_ne_bytes([172, 18, 0, 1]);
        let table = format!(
            "Iface\tDestination\tGateway \tFlags\neth1\t{:08X}\t00000000\t0001\neth0\t00000000\t{gateway:08X}\t0003\n",
            u32::from_ne_bytes([10, 0, 0, 0])
        );
        assert_eq!(default_route(&table), Some(("eth0".to_owned(), Ipv4Addr::new(172, 18, 0, 1))));
        assert_eq!(default_route("Iface\tDestination\tGateway\n"), None);
    }
}
