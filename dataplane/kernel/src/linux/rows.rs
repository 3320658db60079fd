//! Rows of the model as keys and values of the maps, and back.

use std::net::IpAddr;

use dataplane_model::kernel_state::{
    AttachmentRole, AttachmentRow, Dual, EndpointKey, Frontend, FrontendKey, PeerRow, PortKey, Program,
    RingKey, TargetPort, VipKey,
};
use dataplane_model::{Mac, Vni};
use ebpf_abi::flow::FLOW_DSR;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT, ENDPOINT_SERVES};
use ebpf_abi::{Ip, MacAddr, Peer, Port, Prefix6, ProgramId};
use ipnetwork::{Ipv4Network, Ipv6Network};

pub(super) fn ring_key(key: RingKey) -> ebpf_abi::RingKey {
    ebpf_abi::RingKey::new(key.service, key.vni.get())
}

/// `None` for what no meshd of ours can have written: a VNI of more than 24 bits.
pub(super) fn ring_key_back(key: ebpf_abi::RingKey) -> Option<RingKey> {
    Some(RingKey { service: key.service, vni: Vni::new(key.vni)? })
}

pub(super) fn frontend_key(key: FrontendKey) -> ebpf_abi::FrontendKey {
    ebpf_abi::FrontendKey::new(Ip::from(key.address), Port::new(key.port), key.protocol)
}

pub(super) fn frontend_key_back(key: ebpf_abi::FrontendKey) -> FrontendKey {
    FrontendKey { address: key.address.into(), protocol: key.protocol, port: key.port.get() }
}

pub(super) fn frontend(row: Frontend) -> ebpf_abi::Frontend {
    ebpf_abi::Frontend::new(ring_key(row.ring), Port::new(row.target))
}

pub(super) fn frontend_back(row: ebpf_abi::Frontend) -> Option<Frontend> {
    Some(Frontend { ring: ring_key_back(row.ring)?, target: row.target.get() })
}

pub(super) fn prefix6(row: Dual) -> Prefix6 {
    let host_mask = u32::from(row.subnet.mask()) ^ u32::MAX;
    Prefix6 {
        prefix: IpAddr::V6(row.subnet6.network()).into(),
        subnet: row.subnet.network().into(),
        host_mask,
    }
}

/// `None` for a row that this version does not write. How long the prefix is doesn't stand in it: all the bits are in that
/// which programs ask for.
pub(super) fn prefix6_back(row: &Prefix6) -> Option<Dual> {
    let bits = u8::try_from((!row.host_mask).leading_ones()).ok()?;
    let subnet = Ipv4Network::new(row.subnet.into(), bits).ok()?;
    let IpAddr::V6(prefix) = IpAddr::from(row.prefix) else { return None };
    let back = Dual { subnet, subnet6: Ipv6Network::new(prefix, 96 + bits).ok()? };
    (prefix6(back) == *row).then_some(back)
}

pub(super) fn peer(row: PeerRow) -> Peer {
    Peer { mtu: row.mtu_bytes.unwrap_or(0) }
}

pub(super) fn peer_back(row: Peer) -> PeerRow {
    PeerRow { mtu_bytes: (row.mtu != 0).then_some(row.mtu) }
}

pub(super) fn endpoint_key(key: EndpointKey) -> ebpf_abi::EndpointKey {
    ebpf_abi::EndpointKey { vni: key.vni.get(), address: key.address.into() }
}

pub(super) fn endpoint_key_back(key: ebpf_abi::EndpointKey) -> Option<EndpointKey> {
    Some(EndpointKey { vni: Vni::new(key.vni)?, address: key.address.into() })
}

/// `None` for flags that this version does not write.
pub(super) fn serves_back(flags: u32) -> Option<bool> {
    (flags & !ENDPOINT_SERVES == 0).then_some(flags & ENDPOINT_SERVES != 0)
}

pub(super) fn port_key(key: PortKey) -> ebpf_abi::TargetPortKey {
    ebpf_abi::TargetPortKey::new(key.endpoint.into(), Port::new(key.published), key.protocol)
}

pub(super) fn port_key_back(key: ebpf_abi::TargetPortKey) -> PortKey {
    PortKey { endpoint: key.endpoint.into(), protocol: key.protocol, published: key.published.get() }
}

pub(super) fn target_port(row: TargetPort) -> ebpf_abi::TargetPort {
    ebpf_abi::TargetPort::new(Port::new(row.port)).with_dsr(row.dsr)
}

/// `None` for a row that this version does not write.
pub(super) fn target_port_back(row: ebpf_abi::TargetPort) -> Option<TargetPort> {
    let back = TargetPort { port: row.target.get(), dsr: row.way == FLOW_DSR };
    (target_port(back) == row).then_some(back)
}

pub(super) fn vip_key(key: VipKey) -> ebpf_abi::VipKey {
    ebpf_abi::VipKey { vni: key.vni.get(), address: key.address.into() }
}

pub(super) fn vip_key_back(key: ebpf_abi::VipKey) -> Option<VipKey> {
    Some(VipKey { vni: Vni::new(key.vni)?, address: key.address.into() })
}

/// `sandbox` is the namespace id that the link tells of its other end.
pub(super) fn attachment(row: &AttachmentRow, sandbox: Option<u32>) -> ebpf_abi::Attachment {
    ebpf_abi::Attachment {
        vni: row.vni.get(),
        address: row.address.ip().into(),
        gateway: row.gateway.into(),
        mtu: row.mtu_bytes,
        mac: mac(row.mac),
        flags: match row.role {
            AttachmentRole::Overlay => 0,
            AttachmentRole::Ingress => ATTACHMENT_INGRESS,
            AttachmentRole::WayOut => ATTACHMENT_WAY_OUT,
        },
        prefix: row.address.prefix(),
        sandbox: sandbox.map_or(0, |id| id + 1),
    }
}

/// `None` for a row with flags or a prefix that this version does not write, or of another namespace.
pub(super) fn attachment_back(row: &ebpf_abi::Attachment, sandbox: Option<u32>) -> Option<AttachmentRow> {
    let back = AttachmentRow {
        vni: Vni::new(row.vni)?,
        address: Ipv4Network::new(row.address.into(), row.prefix).ok()?,
        mac: mac_back(row.mac),
        gateway: row.gateway.into(),
        mtu_bytes: row.mtu,
        role: match row.flags {
            ATTACHMENT_INGRESS => AttachmentRole::Ingress,
            ATTACHMENT_WAY_OUT => AttachmentRole::WayOut,
            _ => AttachmentRole::Overlay,
        },
    };
    (attachment(&back, sandbox) == *row).then_some(back)
}

pub(super) fn mac(mac: Mac) -> MacAddr {
    MacAddr(mac.0)
}

pub(super) fn mac_back(mac: MacAddr) -> Mac {
    Mac(mac.0)
}

/// The tunnel end in an endpoint or owner row; `None` for this node.
pub(super) fn vtep_back(vtep: Ip) -> Option<IpAddr> {
    (!vtep.is_unspecified()).then(|| vtep.into())
}

pub(super) fn program_id(program: Program) -> ProgramId {
    match program {
        Program::Task => ProgramId::MeshTask,
        Program::Vxlan => ProgramId::MeshVxlan,
        Program::VxlanOut => ProgramId::MeshVxlanOut,
        Program::Connect4 => ProgramId::MeshConnect4,
        Program::Sendmsg4 => ProgramId::MeshSendmsg4,
        Program::Recvmsg4 => ProgramId::MeshRecvmsg4,
        Program::Getpeername4 => ProgramId::MeshGetpeername4,
        Program::Connect6 => ProgramId::MeshConnect6,
        Program::Sendmsg6 => ProgramId::MeshSendmsg6,
        Program::Recvmsg6 => ProgramId::MeshRecvmsg6,
        Program::Getpeername6 => ProgramId::MeshGetpeername6,
        Program::Uplink => ProgramId::MeshUplink,
        Program::Xdp => ProgramId::MeshXdp,
    }
}

pub(super) fn program_back(program: ProgramId) -> Program {
    match program {
        ProgramId::MeshTask => Program::Task,
        ProgramId::MeshVxlan => Program::Vxlan,
        ProgramId::MeshVxlanOut => Program::VxlanOut,
        ProgramId::MeshConnect4 => Program::Connect4,
        ProgramId::MeshSendmsg4 => Program::Sendmsg4,
        ProgramId::MeshRecvmsg4 => Program::Recvmsg4,
        ProgramId::MeshGetpeername4 => Program::Getpeername4,
        ProgramId::MeshConnect6 => Program::Connect6,
        ProgramId::MeshSendmsg6 => Program::Sendmsg6,
        ProgramId::MeshRecvmsg6 => Program::Recvmsg6,
        ProgramId::MeshGetpeername6 => Program::Getpeername6,
        ProgramId::MeshUplink => Program::Uplink,
        ProgramId::MeshXdp => Program::Xdp,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn programs_keep_their_names() {
        for id in ProgramId::ALL {
            let program = program_back(*id);
            assert_eq!(program_id(program), *id);
            assert_eq!(program.name(), id.label());
        }
    }

    #[test]
    fn rows_come_back() {
        let row = AttachmentRow {
            vni: Vni::new(4096).unwrap(),
            address: "10.0.0.5/24".parse().unwrap(),
            mac: Mac::of_endpoint(Ipv4Addr::new(10, 0, 0, 5)),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            mtu_bytes: 1450,
            role: AttachmentRole::Ingress,
        };
        for sandbox in [None, Some(0), Some(7)] {
            assert_eq!(attachment_back(&attachment(&row, sandbox), sandbox), Some(row));
        }
        assert_eq!(attachment_back(&attachment(&row, Some(7)), Some(8)), None);
        let mut foreign = attachment(&row, None);
        foreign.flags = 0x80;
        assert_eq!(attachment_back(&foreign, None), None);

        assert_eq!([0, ENDPOINT_SERVES, 2, 3].map(serves_back), [Some(false), Some(true), None, None]);
        let key = FrontendKey { address: Ipv4Addr::new(198, 18, 0, 11).into(), protocol: 6, port: 8080 };
        assert_eq!(frontend_key_back(frontend_key(key)), key);
        let ring = RingKey { service: 7, vni: Vni::new(4096).unwrap() };
        assert_eq!(
            frontend_back(frontend(Frontend { ring, target: 80 })),
            Some(Frontend { ring, target: 80 })
        );
        let port = PortKey { endpoint: Ipv4Addr::new(10, 0, 0, 5), protocol: 17, published: 53 };
        assert_eq!(port_key_back(port_key(port)), port);
        for dsr in [false, true] {
            let row = TargetPort { port: 80, dsr };
            assert_eq!(target_port_back(target_port(row)), Some(row));
        }
        let mut foreign = target_port(TargetPort { port: 80, dsr: false });
        foreign.way = 4;
        assert_eq!(target_port_back(foreign), None);
    }
}
