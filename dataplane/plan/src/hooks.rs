//! Which program hangs where, in which way, and why.

use dataplane_model::kernel_state::{Hook, HookMode, HookTarget, LinkName, Program};

use crate::facts::{IngressHook, NodeFacts, TcAttach, Uplink};
use crate::plan::Plan;

/// Fills the table of hooks, and the reasons.
pub(crate) fn plan(facts: &NodeFacts, plan: &mut Plan) {
    let (tc, tc_reason) = tc_mode(facts);
    let tasks: Vec<LinkName> = plan.state.attachments.keys().cloned().collect();
    for link in tasks {
        insert(plan, Program::Task, HookTarget::Interface(link), (tc, tc_reason.clone()));
    }
    for program in [Program::Vxlan, Program::VxlanOut] {
        insert(plan, program, HookTarget::Interface(LinkName::vxlan()), (tc, tc_reason.clone()));
    }
    for program in Program::OF_SOCKETS {
        let reason = "translates the sockets of the node and its tasks".to_owned();
        insert(plan, program, HookTarget::CgroupRoot, (HookMode::Cgroup, reason));
    }
    for (name, uplink) in &facts.uplinks {
        let refusal = facts.xdp_refusals.get(name);
        let (xdp, why) = xdp_mode(facts.ingress_hook, uplink, refusal);
        let target = HookTarget::Interface(name.clone());
        if let Some(mode) = xdp {
            insert(plan, Program::Xdp, target.clone(), (mode, why));
            let reason = format!("beneath XDP, for what it passes; {tc_reason}");
            insert(plan, Program::Uplink, target, (tc, reason));
        } else {
            insert(plan, Program::Uplink, target, (tc, format!("{why}; {tc_reason}")));
        }
    }
}

fn insert(plan: &mut Plan, program: Program, target: HookTarget, (mode, reason): (HookMode, String)) {
    let hook = Hook { program, target };
    plan.reasons.insert(hook.clone(), reason);
    plan.state.hooks.insert(hook, mode);
}

fn tc_mode(facts: &NodeFacts) -> (HookMode, String) {
    let (mode, reason) = match facts.tc_attach {
        TcAttach::Tcx => (HookMode::Tcx, "TCX was asked for"),
        TcAttach::Clsact => (HookMode::Clsact, "clsact was asked for"),
        TcAttach::Auto if facts.has_tcx => (HookMode::Tcx, "the kernel has TCX"),
        TcAttach::Auto => (HookMode::Clsact, "the kernel has no TCX (it came with 6.6)"),
    };
    (mode, reason.to_owned())
}

/// `None` for tc alone.
fn xdp_mode(asked: IngressHook, uplink: &Uplink, refusal: Option<&String>) -> (Option<HookMode>, String) {
    let is_veth = uplink.kind.as_deref() == Some("veth");
    match (asked, &uplink.kind) {
        (IngressHook::Tc, _) => (None, "tc was asked for".to_owned()),
        (IngressHook::Xdp, _) if uplink.has_native_xdp || is_veth => {
            (Some(HookMode::XdpNative), "XDP was asked for".to_owned())
        }
        (IngressHook::Xdp, _) => {
            (Some(HookMode::XdpGeneric), "XDP was asked for; the driver has none of its own".to_owned())
        }
        (IngressHook::Auto, Some(kind)) => (None, format!("XDP is slower than tc on a {kind} interface")),
        (IngressHook::Auto, None) if uplink.has_native_xdp => {
            let driver = uplink.driver.as_deref().unwrap_or("its");
            match refusal {
                None => {
                    let reason = format!("the {driver} driver runs XDP before the packet gets a buffer");
                    (Some(HookMode::XdpNative), reason)
                }
                Some(words) => (None, format!("the {driver} driver has XDP, but refused it: {words}")),
            }
        }
        (IngressHook::Auto, None) => {
            let driver = uplink.driver.as_deref().unwrap_or("unknown");
            (None, format!("the driver ({driver}) is not known to run XDP by itself"))
        }
    }
}
