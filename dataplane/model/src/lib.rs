//! The vocabulary of the data plane: what is wanted ([`NodeView`]), what that makes of the kernel ([`KernelState`]), what
//! was done ([`Report`]), what can be asked ([`inspect`]), and the one door that the control plane uses ([`DataPlane`]).
#![forbid(unsafe_code)]

pub mod inspect;
pub mod kernel_state;
pub mod report;
mod table;
pub mod view;
mod view_text;

pub use kernel_state::{KernelState, Op};
pub use report::{DataPlane, Report, SandboxStatus};
pub use table::{Table, change_rows, changed, put, remove_rows};
pub use view::{
    Attachment, Backend, FULL_WEIGHT, Generation, Mac, Network, NetworkKey, NodeView, Peer, ProtocolNumber,
    PublishedPort, RemoteEndpoint, Sandbox, SandboxId, Service, ServiceKey, ServicePort, Vni, address6_of,
    endpoint_of,
};
