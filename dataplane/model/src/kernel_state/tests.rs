use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{
    AttachmentRole, AttachmentRow, Change, Device, Endpoint, EndpointKey, Hook, HookMode, HookTarget,
    KernelState, Leg, LinkName, Op, PeerRow, Place, Program, Ring, RingKey, SandboxNet, VipKey,
};
use crate::view::{Mac, SandboxId, Vni};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

fn vni() -> Vni {
    Vni::new(4096).unwrap()
}

fn state() -> KernelState {
    let mut state = KernelState::default();
    state.devices.insert(LinkName::vxlan(), Device::Vxlan { port: 4789, mtu_bytes: 1450, over_ipv6: false });
    let key = RingKey { service: 7, vni: vni() };
    state.rings.insert(key, Ring(Arc::from([ADDRESS, ADDRESS])));
    state.vips.insert(VipKey { vni: vni(), address: Ipv4Addr::new(10, 0, 0, 2) }, key);
    state
}

fn sandbox() -> (SandboxId, SandboxNet) {
    let id = SandboxId("t1".into());
    let leg = Leg {
        name: LinkName::new("eth0").unwrap(),
        host: LinkName::of_attachment(&id, vni()),
        bridge: None,
        address: "10.0.0.5/24".parse().unwrap(),
        mac: Mac::of_endpoint(ADDRESS),
        mtu_bytes: 1450,
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        table: 100,
        default_route: false,
        ipv6: None,
    };
    (id, SandboxNet { legs: vec![leg] })
}

#[test]
fn ops_make_what_is_referred_to_first_and_remove_it_last() {
    let full = state();
    let empty = KernelState::default();

    let made: Vec<String> = empty.ops_to(&full).iter().map(ToString::to_string).collect();
    let removed: Vec<String> = full.ops_to(&empty).iter().map(ToString::to_string).collect();

    assert_eq!(
        made,
        [
            "+ devices mesh-vx vxlan port 4789 mtu 1450",
            "+ rings 0000000000000007/4096 2 places 10.0.0.5*2",
            "+ vips 4096/10.0.0.2 0000000000000007/4096",
        ]
    );
    assert_eq!(removed, ["- vips 4096/10.0.0.2", "- rings 0000000000000007/4096", "- devices mesh-vx"]);
}

#[test]
fn recording_all_ops_gives_the_wanted_state() {
    let wanted = state();
    let mut held = KernelState::default();
    held.peers.insert(Ipv4Addr::LOCALHOST.into(), PeerRow::default());

    for op in held.clone().ops_to(&wanted) {
        held.record(&op);
    }

    assert_eq!(held, wanted);
    assert_eq!(held.ops_to(&wanted), []);
}

#[test]
fn rows_bound_to_a_link_are_forgotten_with_its_sandbox() {
    let (id, net) = sandbox();
    let host = net.legs[0].host.clone();
    let hook = Hook { program: Program::Task, target: HookTarget::Interface(host.clone()) };
    let key = EndpointKey { vni: vni(), address: ADDRESS };
    let mut held = state();
    let mac = net.legs[0].mac;
    let row = AttachmentRow {
        vni: vni(),
        address: net.legs[0].address,
        mac,
        gateway: net.legs[0].gateway,
        mtu_bytes: 1450,
        role: AttachmentRole::Overlay,
    };
    held.sandboxes.insert(id.clone(), net);
    held.attachments.insert(host.clone(), row);
    let endpoint = Endpoint { mac, place: Place::Local(host.clone()), serves: true };
    held.endpoints.insert(key, endpoint.clone());
    held.hooks.insert(hook.clone(), HookMode::Tcx);
    let wanted = held.clone();

    held.forget_dependents_of_sandbox(&id);

    assert_eq!(
        held.ops_to(&wanted),
        [
            Op::Endpoint(Change::Put(key, endpoint)),
            Op::Attachment(Change::Put(host, row)),
            Op::Hook(Change::Put(hook, HookMode::Tcx)),
        ]
    );
}

#[test]
fn link_names_fit_the_kernel_and_differ() {
    let id = SandboxId("0123456789abcdefghijklmno".into());
    let names = [
        LinkName::of_attachment(&id, vni()),
        LinkName::of_attachment(&id, Vni::new(4097).unwrap()),
        LinkName::of_gateway_leg(&id),
    ];

    for name in &names {
        assert_eq!(LinkName::new(name.as_str()).as_ref(), Some(name));
        assert_eq!(name.as_str().len(), 13);
    }
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
    assert_eq!(LinkName::new("a name that is too long"), None);
    assert_eq!(LinkName::new("a/b"), None);
}
