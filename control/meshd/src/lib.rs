//! The node daemon: composes the control plane, the data plane, the containers and the API of one node.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod checks;
pub mod config;
pub mod daemon;
pub mod data_plane;
pub mod disk;
mod distribution;
mod engine;
mod forwarding;
pub mod host;
pub mod lock;
pub mod node;
pub mod notify;
mod remote;
pub mod teardown;

#[cfg(test)]
mod tests {
    /// Control and data plane share no crate that could hold the number once.
    #[test]
    fn both_sides_agree_on_the_probe() {
        assert_eq!(control_model::probe::PROBE_VNI, ebpf_abi::limits::PROBE_VNI);
    }
}
