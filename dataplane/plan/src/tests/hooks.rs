//! Which program hangs where on an uplink, and the reason that is shown.

use dataplane_model::kernel_state::{Hook, HookMode, HookTarget, LinkName, Program};

use super::fixture::{facts, view};
use crate::facts::{IngressHook, NodeFacts, TcAttach};
use crate::plan;

fn up0() -> LinkName {
    LinkName::new("up0").unwrap()
}

/// How a program hangs on the uplink, and why.
fn planned(facts: &NodeFacts, program: Program) -> Option<(HookMode, String)> {
    let plan = plan(&view(), facts).unwrap();
    let hook = Hook { program, target: HookTarget::Interface(up0()) };
    Some((*plan.state.hooks.get(&hook)?, plan.reasons[&hook].clone()))
}

/// The fixture's uplink is a NIC with this driver.
fn nic(driver: &str, has_native_xdp: bool, asked: IngressHook) -> NodeFacts {
    let mut facts = NodeFacts { ingress_hook: asked, ..facts() };
    for uplink in facts.uplinks.values_mut() {
        uplink.kind = None;
        uplink.driver = Some(driver.into());
        uplink.has_native_xdp = has_native_xdp;
    }
    facts
}

#[test]
fn hooks_follow_the_interface_and_the_wish() {
    let veth = |asked| NodeFacts { ingress_hook: asked, ..facts() };
    for (facts, xdp, reason) in [
        (veth(IngressHook::Auto), None, "XDP is slower than tc on a veth interface; the kernel has TCX"),
        (veth(IngressHook::Xdp), Some(HookMode::XdpNative), "XDP was asked for"),
        (veth(IngressHook::Tc), None, "tc was asked for; the kernel has TCX"),
        (
            nic("ice", true, IngressHook::Auto),
            Some(HookMode::XdpNative),
            "the ice driver runs XDP before the packet gets a buffer",
        ),
        (nic("ice", true, IngressHook::Xdp), Some(HookMode::XdpNative), "XDP was asked for"),
        (nic("ice", true, IngressHook::Tc), None, "tc was asked for; the kernel has TCX"),
        (
            nic("e1000", false, IngressHook::Auto),
            None,
            "the driver (e1000) is not known to run XDP by itself; the kernel has TCX",
        ),
        (
            nic("e1000", false, IngressHook::Xdp),
            Some(HookMode::XdpGeneric),
            "XDP was asked for; the driver has none of its own",
        ),
        (nic("e1000", false, IngressHook::Tc), None, "tc was asked for; the kernel has TCX"),
    ] {
        let beneath = planned(&facts, Program::Uplink).unwrap();
        assert_eq!(beneath.0, HookMode::Tcx, "{reason}");
        if let Some(mode) = xdp {
            assert_eq!(planned(&facts, Program::Xdp), Some((mode, reason.to_owned())));
            assert_eq!(beneath.1, "beneath XDP, for what it passes; the kernel has TCX");
        } else {
            assert_eq!(planned(&facts, Program::Xdp), None, "{reason}");
            assert_eq!(beneath.1, reason);
        }
    }
    let old = NodeFacts { tc_attach: TcAttach::Clsact, ..facts() };
    assert_eq!(planned(&old, Program::Uplink).unwrap().0, HookMode::Clsact);
}

#[test]
fn xdp_that_the_driver_refused_is_left_to_tc_unless_it_was_asked_for() {
    let refused = |asked| {
        let mut facts = nic("ena", true, asked);
        facts.xdp_refusals.insert(up0(), "Operation not supported (os error 95)".into());
        facts
    };

    let auto = refused(IngressHook::Auto);
    assert_eq!(planned(&auto, Program::Xdp), None);
    let reason =
        "the ena driver has XDP, but refused it: Operation not supported (os error 95); the kernel has TCX";
    assert_eq!(planned(&auto, Program::Uplink), Some((HookMode::Tcx, reason.to_owned())));
    let asked = planned(&refused(IngressHook::Xdp), Program::Xdp);
    assert_eq!(asked, Some((HookMode::XdpNative, "XDP was asked for".to_owned())));
}
