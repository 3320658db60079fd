//! Whole plans as text. `UPDATE_GOLDEN=1 cargo test -p dataplane-plan` writes the files again: read the difference.

use std::fmt::Write as _;
use std::path::Path;

use dataplane_model::kernel_state::{Device, LinkName};
use dataplane_model::{KernelState, Op};

use super::fixture::{WEB, facts, sandbox, view};
use crate::{plan, steps};

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "{name} differs: rerun with UPDATE_GOLDEN=1 and read the difference");
}

fn text(ops: &[Op]) -> String {
    ops.iter().fold(String::new(), |mut text, op| {
        writeln!(text, "{op}").unwrap();
        text
    })
}

#[test]
fn a_published_service_on_two_nodes() {
    let planned = plan(&view(), &facts()).unwrap();

    check("published-service.view.txt", &view().to_string());
    let mut text = planned.state.to_string();
    for (hook, reason) in &planned.reasons {
        writeln!(text, "why {hook}: {reason}").unwrap();
    }
    check("published-service.txt", &text);
    assert!(planned.refused.is_empty() && planned.problems.is_empty());
}

#[test]
fn a_task_that_leaves() {
    let before = plan(&view(), &facts()).unwrap();
    let mut left = view();
    let (id, _) = sandbox(5);
    left.sandboxes.remove(&id);
    let web = left.services.get_mut(&WEB).unwrap();
    web.backends.retain(|_, backend| backend.vtep != left.vtep);
    let after = plan(&left, &facts()).unwrap();

    check("task-leaves.txt", &text(&steps(&before.state, &after.state)));
}

#[test]
fn from_nothing_and_back() {
    let planned = plan(&view(), &facts()).unwrap();
    let empty = KernelState::default();

    check("first-view.txt", &text(&steps(&empty, &planned.state)));
    check("teardown.txt", &text(&steps(&planned.state, &empty)));
}

#[test]
fn a_sandbox_made_anew_takes_its_rows_along() {
    let planned = plan(&view(), &facts()).unwrap();
    let mut held = planned.state.clone();
    let (id, _) = sandbox(5);
    held.sandboxes.get_mut(&id).unwrap().legs[0].mtu_bytes = 9000;

    check("sandbox-anew.txt", &text(&steps(&held, &planned.state)));
}

#[test]
fn a_device_made_anew_takes_its_rows_along() {
    let planned = plan(&view(), &facts()).unwrap();
    let mut held = planned.state.clone();
    held.devices.insert(LinkName::vxlan(), Device::Vxlan { port: 4790, mtu_bytes: 1450, over_ipv6: false });

    check("device-anew.txt", &text(&steps(&held, &planned.state)));
}
