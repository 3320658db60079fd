//! The steps from what the kernel holds to what it should hold.

use dataplane_model::{KernelState, Op};

/// Ordered steps: what is referred to is made first, what is gone is removed last. Where a sandbox or device is made
/// anew, all rows that are bound to its links follow, though they read the same: its links have other indexes now.
pub fn steps(held: &KernelState, wanted: &KernelState) -> Vec<Op> {
    let mut held_after = held.clone();
    for (id, sandbox) in &wanted.sandboxes {
        if held.sandboxes.get(id) != Some(sandbox) {
            held_after.forget_dependents_of_sandbox(id);
            for leg in &sandbox.legs {
                held_after.forget_dependents_of_link(&leg.host);
                if let Some(endpoint) = wanted.endpoint_behind(&leg.host) {
                    held_after.endpoints.remove(&endpoint);
                }
            }
        }
        // A stray host end with a wanted name goes when the sandbox's link is made; deleting it last would hit the new one.
        for leg in &sandbox.legs {
            held_after.devices.remove(&leg.host);
        }
    }
    for (name, device) in &wanted.devices {
        if held.devices.get(name) != Some(device) {
            held_after.forget_dependents_of_link(name);
        }
    }
    held_after.ops_to(wanted)
}
