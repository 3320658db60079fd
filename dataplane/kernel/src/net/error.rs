//! Why the kernel's network could not be read or changed.

use std::io;
use std::path::Path;

use dataplane_model::kernel_state::LinkName;
use ipnetwork::IpNetwork;

/// Why a step failed. What was done before stays; the step can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot {doing}")]
    Netlink {
        doing: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("interface {name} is gone")]
    NoLink { name: LinkName },
    #[error("interface {name} was set up, but carries nothing yet")]
    NoCarrier { name: LinkName },
    #[error("interface {name} exists and is not meshd's: remove it, or leave the software that made it")]
    ForeignLink { name: LinkName },
    #[error(
        "there is a route to {subnet} that is not meshd's: remove it, or give the ingress network another subnet"
    )]
    ForeignRoute { subnet: IpNetwork },
    #[error("nft refused the packet filter: {output}")]
    Filter { output: String },
    #[error("{path} is no network namespace")]
    NoNamespace { path: String },
}

impl NetError {
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source }
    }

    pub(super) fn file(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::io(format!("{doing} {}", path.display()), source)
    }

    pub(super) fn netlink(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Netlink { doing, source }
    }
}

/// The error number in a kernel's answer.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

/// Turns "it is already so" into success.
pub(super) fn unless(result: Result<(), rtnetlink::Error>, fine: &[i32]) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error).is_some_and(|code| fine.contains(&code)) => Ok(()),
        other => other,
    }
}
