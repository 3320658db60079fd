//! The only crate that touches the kernel's network: netlink, nftables, BPF programs and maps.

pub mod bpf;
pub mod fake;
pub mod inspect;
pub mod linux;
pub mod net;
pub mod seam;

pub use fake::FakeKernel;
pub use linux::{LinuxKernel, LinuxOptions};
pub use net::Machine;
pub use seam::{Kernel, KernelError, Pause, Sockets, Sweeper};
