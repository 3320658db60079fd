//! The driver over a kernel in memory: order, retries, drift, restarts.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dataplane_driver::Driver;
use dataplane_kernel::{FakeKernel, Machine};
use dataplane_model::{DataPlane as _, NodeView, Report, SandboxStatus, change_rows};
use fake::{OWN, PATIENCE, address, id, is_ready, machine, start, until, view};

#[tokio::test]
async fn nothing_is_done_before_the_first_view() {
    let kernel = FakeKernel::new(machine());
    kernel.damage(|state| {
        state.owners.insert(OWN.into(), dataplane_model::kernel_state::Owner::ThisNode);
    });

    drop(start(&kernel));

    assert_eq!(kernel.take_log(), Vec::<String>::new());
    assert_eq!(kernel.state().owners.len(), 1);
}

#[tokio::test]
async fn a_view_is_applied_and_a_restart_finds_nothing_to_do() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(1, 2));
    let report = until(&driver, "applied", |report| report.applied_revision == 1).await;
    assert!(is_ready(&report, 10) && is_ready(&report, 11) && report.errors.is_empty());
    assert_eq!(driver.wanted_state(), kernel.state());
    drop(driver);
    assert!(!kernel.take_log().is_empty());

    let driver = start(&kernel);
    driver.set_view(view(2, 2));
    until(&driver, "applied after a restart", |report| report.applied_revision == 2).await;

    assert_eq!(kernel.take_log(), Vec::<String>::new());
}

#[tokio::test]
async fn an_older_view_is_ignored_and_a_change_costs_what_it_changes() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(5, 1));
    until(&driver, "applied", |report| report.applied_revision == 5).await;
    kernel.take_log();

    driver.set_view(view(4, 3));
    driver.set_view(view(6, 2));
    until(&driver, "applied", |report| report.applied_revision == 6).await;

    let log = kernel.take_log();
    assert!(log.iter().all(|step| !step.contains("task12")), "{log:#?}");
    assert_eq!(log.iter().filter(|step| step.starts_with("+ sandboxes")).count(), 1, "{log:#?}");
    // The sandbox, its endpoint, port, networks, two attachments with a hook each, and the ring.
    assert_eq!(log.len(), 9, "{log:#?}");
}

#[tokio::test]
async fn any_single_failure_heals() {
    let n_steps = {
        let kernel = FakeKernel::new(machine());
        let driver = start(&kernel);
        driver.set_view(view(1, 2));
        until(&driver, "applied", |report| report.applied_revision == 1).await;
        kernel.take_log().len()
    };
    for failing in 0..n_steps {
        let kernel = FakeKernel::new(machine());
        kernel.fail_step(failing);
        let driver = start(&kernel);
        driver.set_view(view(1, 2));

        let is_healed = |report: &Report| report.applied_revision == 1 && report.errors.is_empty();
        until(&driver, "healed", is_healed).await;

        assert_eq!(driver.wanted_state(), kernel.state(), "step {failing}");
    }
}

/// More than a driver tries, again and again, before it is ended.
const MORE_STEPS: usize = 10_000;

/// What a driver is led to; `None` is to take away all that is ours.
type Goal = fn(u64) -> Option<NodeView>;

async fn reach(driver: &Driver, goal: Option<NodeView>) {
    match goal {
        Some(view) => {
            let revision = view.revision;
            driver.set_view(view);
            until(driver, "applied", |report| report.applied_revision == revision).await;
        }
        None => driver.tear_down().await.unwrap(),
    }
}

/// How many steps lead from one goal to another.
async fn n_steps((from, to): (Goal, Goal)) -> usize {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    reach(&driver, from(1)).await;
    kernel.take_log();
    // A driver that has torn down does nothing more.
    reach(&start(&kernel), to(2)).await;
    // Resets are none, see the kernel.
    kernel.take_log().iter().filter(|step| !step.contains("x sockets")).count()
}

/// Where every step fails from one on, as where the process has died, the next driver comes to the same end.
#[tokio::test]
async fn what_ends_at_any_step_ends_as_wanted() {
    let ways: [(Goal, Goal); 3] = [
        (|_| None, |n| Some(view(n, 2))),
        (|n| Some(view(n, 2)), |n| Some(changed(n))),
        (|n| Some(changed(n)), |_| None),
    ];
    for (way, goals) in ways.into_iter().enumerate() {
        let (from, to) = goals;
        let n_steps = n_steps(goals).await;
        assert!(n_steps > 10, "{n_steps}");
        for n_taken in 0..n_steps {
            let kernel = FakeKernel::new(machine());
            reach(&start(&kernel), from(1)).await;
            (n_taken..n_taken + MORE_STEPS).for_each(|n| kernel.fail_step(n));
            let ends = start(&kernel);
            match to(2) {
                Some(view) => {
                    ends.set_view(view);
                    until(&ends, "a step fails", |report| !report.errors.is_empty()).await;
                }
                None => drop(ends.tear_down().await.unwrap_err()),
            }
            drop(ends);
            kernel.heal();

            let driver = start(&kernel);
            reach(&driver, to(3)).await;

            assert_eq!(kernel.state(), driver.wanted_state(), "way {way} after {n_taken} steps");
        }
    }
}

/// [`view`] with another task in the place of the second, another port, and none on the other node.
fn changed(revision: u64) -> NodeView {
    let mut view = without_other(revision, 3);
    view.sandboxes.remove(&id(11));
    change_rows(&mut view.services, |service| {
        service.backends.retain(|(_, at), _| *at != address(11));
        service.ingress_ports[0].published = 8090;
    });
    view
}

#[tokio::test]
async fn a_sandbox_that_fails_for_good_holds_up_nobody_else() {
    let kernel = FakeKernel::new(machine());
    kernel.fail_steps_with("+ sandboxes task10");
    let driver = start(&kernel);
    driver.set_view(view(1, 2));

    let is_failed =
        |report: &Report| matches!(report.sandboxes.get(&id(10)), Some(SandboxStatus::Failed { .. }));
    let report = until(&driver, "failed and ready", |report| is_failed(report) && is_ready(report, 11)).await;
    assert_eq!(report.applied_revision, 1, "nobody waits for it");
    assert!(report.errors.iter().any(|error| error.contains("told to fail")), "{:?}", report.errors);

    kernel.heal();
    until(&driver, "healed", |report| is_ready(report, 10) && report.errors.is_empty()).await;
}

#[tokio::test]
async fn a_node_wide_failure_blames_no_task() {
    let kernel = FakeKernel::new(machine());
    kernel.fail_steps_with("devices mesh-vx");
    let driver = start(&kernel);
    driver.set_view(view(1, 1));

    let report = until(&driver, "reported", |report| !report.errors.is_empty()).await;

    assert_eq!(report.sandboxes, BTreeMap::new());
    kernel.heal();
    until(&driver, "healed", |report| is_ready(report, 10)).await;
}

/// Programs that an older driver has left carry traffic whether or not this one knows what is wanted.
#[tokio::test]
async fn the_programs_clock_goes_on_without_a_view() {
    let kernel = FakeKernel::new(machine());
    let _driver = start(&kernel);

    let waited = tokio::time::timeout(PATIENCE, async {
        while kernel.n_ticks() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("the clock goes on");
    assert_eq!((kernel.n_observed(), kernel.take_log()), (0, vec![]), "and nothing else is done");
}

#[tokio::test]
async fn an_address_that_moves_here_gets_frontends() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(1, 1));
    until(&driver, "applied", |report| report.applied_revision == 1).await;
    let moved = Ipv4Addr::new(198, 18, 0, 50);

    let mut machine = machine();
    machine.uplinks.values_mut().for_each(|uplink| uplink.addresses.push(moved));
    kernel.set_machine(machine);

    let has_frontend = || kernel.state().frontends.keys().any(|key| key.address == moved);
    let waited = tokio::time::timeout(PATIENCE, async {
        while !has_frontend() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("the frontends follow the address");
}

#[tokio::test]
async fn no_uplink_is_said_and_not_fatal() {
    let kernel = FakeKernel::new(Machine { uplinks: BTreeMap::new(), ..machine() });
    let driver = start(&kernel);
    driver.set_view(view(1, 1));

    let report = until(&driver, "reported", |report| !report.errors.is_empty()).await;
    assert!(report.errors[0].contains("198.18.0.11"), "{:?}", report.errors);
    assert_eq!(kernel.take_log(), Vec::<String>::new());

    kernel.set_machine(machine());
    until(&driver, "applied", |report| report.applied_revision == 1).await;
}

#[tokio::test]
async fn a_node_that_leaves_keeps_nothing() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(1, 2));
    until(&driver, "applied", |report| report.applied_revision == 1).await;

    driver.tear_down().await.unwrap();

    assert_eq!(kernel.state(), dataplane_model::KernelState::default());
}

/// The resets among all that was tried until `last` is; they go their own way, so that the driver may report before.
fn resets_until(kernel: &FakeKernel, last: &str) -> Vec<String> {
    let mut resets = Vec::new();
    let started = Instant::now();
    while resets.last().is_none_or(|reset| reset != last) {
        assert!(started.elapsed() < PATIENCE, "{last}: {resets:#?}");
        std::thread::yield_now();
        resets.extend(kernel.take_log().into_iter().filter(|step| step.contains("x sockets")));
    }
    resets
}

/// [`view`] without the task on the other node.
fn without_other(revision: u64, n_here: u8) -> NodeView {
    let mut view = view(revision, n_here);
    view.remote_endpoints.clear();
    change_rows(&mut view.services, |service| service.backends.retain(|(_, at), _| *at != address(200)));
    view
}

#[tokio::test]
async fn sockets_are_reset_for_endpoints_that_go_and_for_no_others() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(1, 2));
    until(&driver, "applied", |report| report.applied_revision == 1).await;
    let mut draining = view(2, 2);
    change_rows(&mut draining.services, |service| {
        service.backends.values_mut().for_each(|backend| backend.ready = backend.vtep == OWN);
    });
    driver.set_view(draining);
    until(&driver, "draining", |report| report.applied_revision == 2).await;

    driver.set_view(without_other(3, 2));
    until(&driver, "gone", |report| report.applied_revision == 3).await;
    driver.set_view(without_other(4, 1));
    until(&driver, "a task here is gone too", |report| report.applied_revision == 4).await;

    // None for the view in which it drained.
    assert_eq!(
        resets_until(&kernel, "x sockets to 10.0.0.11 in node"),
        [
            "x sockets to 10.0.0.200 in task10",
            "x sockets to 10.0.0.200 in task11",
            "x sockets to 10.0.0.200 in node",
            "x sockets to 10.0.0.11 in task10",
            "x sockets to 10.0.0.11 in node",
        ]
    );
}

#[tokio::test]
async fn sockets_are_reset_when_the_row_is_gone_and_not_before() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(1, 1));
    until(&driver, "applied", |report| report.applied_revision == 1).await;
    kernel.fail_steps_with("- endpoints");
    kernel.take_log();

    driver.set_view(without_other(2, 1));
    until(&driver, "it stays", |report| !report.errors.is_empty()).await;
    kernel.heal();
    until(&driver, "gone", |report| report.applied_revision == 2).await;

    let mut log = Vec::new();
    let started = Instant::now();
    while !log.iter().any(|step| step == "x sockets to 10.0.0.200 in node") {
        assert!(started.elapsed() < PATIENCE, "{log:#?}");
        std::thread::yield_now();
        log.extend(kernel.take_log());
    }
    let position =
        |text: &str| log.iter().position(|step| step == text).unwrap_or_else(|| panic!("{log:#?}"));
    let gone = position("- endpoints 4096/10.0.0.200");
    assert!(position("x sockets to 10.0.0.200 in task10") > gone, "{log:#?}");
}

#[tokio::test]
async fn sockets_that_an_older_driver_left_are_found_after_a_restart() {
    let kernel = FakeKernel::new(machine());
    let task = Some(id(10));
    // A living endpoint, one that is gone, and one outside.
    for peer in [address(200), address(77), Ipv4Addr::new(192, 0, 2, 1)] {
        kernel.connect(task.clone(), peer);
        kernel.connect(None, peer);
    }
    let driver = start(&kernel);
    driver.set_view(view(1, 1));
    until(&driver, "applied", |report| report.applied_revision == 1).await;

    let resets = resets_until(&kernel, "x sockets to 10.0.0.77 in task10");
    assert_eq!(resets, ["x sockets to 10.0.0.77 in node", "x sockets to 10.0.0.77 in task10"]);
}

#[tokio::test]
async fn a_reset_that_fails_is_tried_again_and_holds_up_nothing() {
    let kernel = FakeKernel::new(machine());
    let driver = start(&kernel);
    driver.set_view(view(1, 1));
    until(&driver, "applied", |report| report.applied_revision == 1).await;
    kernel.fail_steps_with("x sockets");
    kernel.take_log();

    driver.set_view(without_other(2, 1));
    let is_said = |report: &Report| report.applied_revision == 2 && report.errors.len() == 1;
    let report = until(&driver, "applied, and the failure is said", is_said).await;
    assert!(is_ready(&report, 10) && report.errors[0].contains("told to fail"), "{:?}", report.errors);
    kernel.heal();
    until(&driver, "healed", |report| report.errors.is_empty()).await;

    let log = resets_until(&kernel, "x sockets to 10.0.0.200 in node");
    let failed = &log[..log.len() - 2];
    assert!(!failed.is_empty() && failed.iter().all(|step| step.starts_with("! ")), "{log:#?}");
    assert_eq!(log[log.len() - 2], "x sockets to 10.0.0.200 in task10");
}

#[tokio::test]
async fn a_reset_is_given_up_in_the_end_and_never_tried_on_an_address_that_is_back() {
    for is_back in [false, true] {
        let kernel = FakeKernel::new(machine());
        let driver = start(&kernel);
        driver.set_view(view(1, 1));
        until(&driver, "applied", |report| report.applied_revision == 1).await;
        kernel.fail_steps_with("x sockets");
        driver.set_view(without_other(2, 1));
        until(&driver, "failed", |report| report.applied_revision == 2 && !report.errors.is_empty()).await;
        if is_back {
            driver.set_view(view(3, 1));
            until(&driver, "back", |report| report.applied_revision == 3).await;
            kernel.take_log();
        }

        until(&driver, "given up", |report| report.errors.is_empty()).await;

        let log = kernel.take_log();
        let n_tried = log.iter().filter(|step| step.contains("x sockets")).count();
        // Twice five: in a sandbox and in the node.
        assert_eq!(n_tried, if is_back { 0 } else { 10 }, "{log:#?}");
    }
}

#[tokio::test]
async fn a_kernel_that_can_not_reset_sockets_is_named() {
    let kernel = FakeKernel::new(Machine { has_socket_reset: false, ..machine() });
    let driver = start(&kernel);
    driver.set_view(view(1, 1));

    let report = until(&driver, "applied", |report| report.applied_revision == 1).await;

    assert!(is_ready(&report, 10));
    assert!(report.errors.iter().any(|error| error.contains("CONFIG_INET_DIAG_DESTROY")), "{report:?}");
}
