//! The data plane's facade, the only door that the control plane uses: takes [`NodeView`](dataplane_model::NodeView)s,
//! converges the kernel towards the newest, reports.
//!
//! One thread owns the kernel. It plans, compares with what the kernel holds, takes the steps, tries failed ones again
//! later, and looks for drift now and then. When the driver goes away everything stays as it is: the programs go on with
//! their last state, and the next driver finds it by the names in `docs/design/ownership.md`.
#![forbid(unsafe_code)]

mod backoff;
mod converge;
mod driver;
mod flow_sweeps;
mod names;
mod options;
mod refusals;
mod report;
mod resets;
mod sweep;
mod worker;

pub use driver::{Driver, StartError, TeardownError};
pub use options::DriverOptions;
pub use worker::VerifyError;
