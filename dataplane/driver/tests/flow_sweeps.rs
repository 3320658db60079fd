//! Ended flows are collected beside everything else, over a kernel in memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "others use the rest")]
mod fake;

use dataplane_kernel::FakeKernel;
use dataplane_model::DataPlane as _;
use fake::{PATIENCE, machine, start, until, view};

async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_sweep_that_lasts_holds_up_neither_views_nor_the_clock_nor_the_end() {
    let kernel = FakeKernel::new(machine());
    kernel.let_sweeps_last();
    let driver = start(&kernel);
    wait_until("a sweep begins before there is a view", || kernel.n_sweeps() == (1, 0)).await;

    driver.set_view(view(1, 1));
    until(&driver, "applied", |report| report.applied_revision == 1).await;
    driver.set_view(view(2, 2));
    until(&driver, "applied", |report| report.applied_revision == 2).await;
    wait_until("the clock goes on", || kernel.n_ticks() > 0).await;
    assert_eq!(kernel.n_sweeps(), (1, 0), "it is the same sweep");

    drop(driver);
    assert_eq!(kernel.n_sweeps(), (1, 1), "it is told to end, and waited for");
}

#[tokio::test]
async fn who_leaves_lets_go_of_the_tables_first() {
    let kernel = FakeKernel::new(machine());
    kernel.let_sweeps_last();
    let driver = start(&kernel);
    driver.set_view(view(1, 1));
    until(&driver, "applied", |report| report.applied_revision == 1).await;

    driver.tear_down().await.unwrap();

    let (n_begun, n_ended) = kernel.n_sweeps();
    assert_eq!(n_begun, n_ended);
}
