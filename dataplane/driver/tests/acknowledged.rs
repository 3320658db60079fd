//! What holds up the acknowledgement of a view, and a driver that refuses XDP, over a kernel in memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake;

use dataplane_driver::Driver;
use dataplane_kernel::{FakeKernel, Machine};
use dataplane_model::{DataPlane as _, NodeView, Report, change_rows, remove_rows};
use dataplane_plan::IngressHook;
use fake::{OWN, address, is_ready, machine, start, start_with, until, view};

/// [`view`] in which the task on the other node drains.
fn draining(revision: u64) -> NodeView {
    let mut view = view(revision, 1);
    change_rows(&mut view.services, |service| {
        service.backends.values_mut().for_each(|backend| backend.ready = backend.vtep == OWN);
    });
    view
}

fn is_acknowledged(report: &Report, revision: u64) -> bool {
    (report.applied_revision, report.applied.index) == (revision, revision)
}

#[tokio::test]
async fn steps_that_lead_nobody_away_hold_up_no_drain() {
    for failing in
        ["+ hooks mesh_xdp", "+ sandboxes task10", "+ devices docker_gwbridge", "+ attachments", "+ cookies"]
    {
        let kernel = FakeKernel::new(machine());
        kernel.fail_steps_with(failing);
        let driver = start_with(&kernel, |options| options.ingress_hook = IngressHook::Xdp);
        driver.set_view(view(1, 1));
        until(&driver, failing, |report| is_acknowledged(report, 1) && !report.errors.is_empty()).await;

        driver.set_view(draining(2));
        let report = until(&driver, failing, |report| is_acknowledged(report, 2)).await;

        assert!(report.errors.iter().any(|error| error.contains(failing)), "{failing}: {:?}", report.errors);
        assert!(
            kernel.state().endpoints.iter().all(|(key, row)| row.serves == (key.address != address(200)))
        );
    }
}

#[tokio::test]
async fn steps_that_lead_away_hold_up_the_drain_that_they_are_of() {
    // The ring and the endpoint of a task that drains; the frontend of a service that is gone.
    for failing in ["+ rings", "+ endpoints 4096/10.0.0.200", "- frontends"] {
        let kernel = FakeKernel::new(machine());
        let driver = start(&kernel);
        driver.set_view(view(1, 1));
        until(&driver, "applied", |report| is_acknowledged(report, 1)).await;
        kernel.fail_steps_with(failing);

        let mut next = draining(2);
        if failing == "- frontends" {
            remove_rows(&mut next.services, |_, _| true);
        }
        driver.set_view(next);
        let report = until(&driver, failing, |report| !report.errors.is_empty()).await;

        assert!(is_acknowledged(&report, 1), "{failing}: {report:?}");
        kernel.heal();
        until(&driver, failing, |report| is_acknowledged(report, 2) && report.errors.is_empty()).await;
    }
}

/// A NIC whose driver is known to have XDP.
fn nic(mtu_bytes: u32) -> Machine {
    let mut machine = machine();
    for uplink in machine.uplinks.values_mut() {
        uplink.kind = None;
        uplink.driver = Some("ena".into());
        uplink.has_native_xdp = true;
        uplink.mtu_bytes = mtu_bytes;
    }
    machine
}

/// The programs on the uplink, and why they hang there as they do.
fn on_uplink(driver: &Driver) -> Vec<(String, String)> {
    let rows = driver.hooks().into_iter().filter(|row| row.interface == "up0");
    rows.map(|row| (row.program, row.reason)).collect()
}

fn n_tries(log: &[String]) -> usize {
    log.iter().filter(|step| step.contains("hooks mesh_xdp")).count()
}

#[tokio::test]
async fn a_driver_that_refuses_xdp_is_left_to_tc_until_it_is_another() {
    let kernel = FakeKernel::new(nic(9001));
    kernel.fail_steps_with("hooks mesh_xdp");
    let driver = start(&kernel);
    driver.set_view(view(1, 1));
    let has_given_up = |driver: &Driver| {
        let rows = on_uplink(driver);
        rows.len() == 1
            && rows[0].0 == "mesh_uplink"
            && rows[0].1.contains("the ena driver has XDP, but refused it: told to fail")
    };

    until(&driver, "applied", |report| is_acknowledged(report, 1) && is_ready(report, 10)).await;
    driver.set_view(view(2, 1));
    let report = until(&driver, "applied again", |report| is_acknowledged(report, 2)).await;
    assert!(has_given_up(&driver), "{:?}", on_uplink(&driver));
    assert_eq!(report.errors, Vec::<String>::new());
    assert_eq!(driver.wanted_state(), kernel.state());
    assert_eq!(n_tries(&kernel.take_log()), 1, "not again while nothing has changed");

    // Refused again, and then not.
    kernel.set_machine(nic(4000));
    until_log(&kernel, 1).await;
    kernel.heal();
    kernel.set_machine(nic(1500));
    until_log(&kernel, 1).await;
    driver.set_view(view(3, 1));
    until(&driver, "applied", |report| is_acknowledged(report, 3)).await;
    assert_eq!(on_uplink(&driver).len(), 2, "{:?}", on_uplink(&driver));
}

/// Waits until XDP was tried `n` times, and no more, since the log was last taken.
async fn until_log(kernel: &FakeKernel, n: usize) {
    let mut log = Vec::new();
    let waited = tokio::time::timeout(fake::PATIENCE, async {
        while n_tries(&log) < n {
            log.extend(kernel.take_log());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("XDP is not tried: {log:#?}"));
    assert_eq!(n_tries(&log), n, "{log:#?}");
}

#[tokio::test]
async fn xdp_that_was_asked_for_says_that_it_fails() {
    let kernel = FakeKernel::new(nic(9001));
    kernel.fail_steps_with("hooks mesh_xdp");
    let driver = start_with(&kernel, |options| options.ingress_hook = IngressHook::Xdp);
    driver.set_view(view(1, 1));

    let is_said = |report: &Report| report.errors.iter().any(|error| error.contains("mesh_xdp on up0"));
    let report = until(&driver, "said", |report| is_said(report) && is_ready(report, 10)).await;

    assert!(is_acknowledged(&report, 1), "{report:?}");
}
