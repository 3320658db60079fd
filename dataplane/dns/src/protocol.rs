//! What meshd and the DNS process say to each other over a unix socket: frames of a length (32 bits, big-endian) and a
//! MessagePack value.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use dataplane_model::SandboxId;
use dataplane_model::inspect::DnsWay;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::zones::{Forwarding, NetworkZone, TtlPolicy, Zones};

/// Raised with every change of the messages. A meshd that finds another number replaces the process.
pub const PROTOCOL_VERSION: u32 = 3;

/// Longest frame, bytes: a hundred thousand names are some ten megabytes.
const MAX_FRAME_LEN: u32 = 64 << 20;

/// From meshd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Serve these zones from now on, and nothing else. Answered by an [`Ack`].
    SetZones(Zones),
    /// Tell what is served: to this sandbox, or to all. Answered by [`Shown`].
    Show(Option<SandboxId>),
    /// Answer as to this sandbox. Answered by an [`Asked`], or by why there is none.
    Query(Query),
    /// Close all sockets and end. Answered by the end of the connection.
    Shutdown,
}

/// From the DNS process: once when a connection begins, then after every [`Command::SetZones`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// [`PROTOCOL_VERSION`] of the process.
    pub protocol: u32,
    /// Of the zones that are served.
    pub revision: u64,
    pub served: BTreeSet<SandboxId>,
    /// Sandboxes whose sockets could not be opened, and why.
    pub failed: BTreeMap<SandboxId, String>,
}

/// A question that is asked on a sandbox's behalf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    pub sandbox: SandboxId,
    /// A DNS message.
    pub message: Vec<u8>,
}

/// What is served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Of the zones.
    pub revision: u64,
    pub sandboxes: BTreeMap<SandboxId, ShownSandbox>,
    /// The networks of these sandboxes, by name.
    pub networks: BTreeMap<String, NetworkZone>,
}

/// One sandbox that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownSandbox {
    /// Names, in the order in which they are asked.
    pub networks: Vec<String>,
    pub forwarding: Forwarding,
    pub keeps_short_names: bool,
    pub ttl: TtlPolicy,
}

/// An answer, and how it was come by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// A DNS message; empty for what the sandbox would get no answer to.
    pub reply: Vec<u8>,
    pub way: DnsWay,
    pub took_us: u64,
}

/// A frame could not be read or written; the connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("connection of the DNS process broke")]
    Io(#[from] io::Error),
    #[error("a frame of {0} bytes is longer than the limit of {MAX_FRAME_LEN}")]
    TooLong(usize),
    #[error("a frame can't be decoded; is the DNS process of another version?")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("a frame can't be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// The next frame; `None` when the other end closed the connection between two.
pub async fn read_frame<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<T>, FrameError> {
    let len = match from.read_u32().await {
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if len > MAX_FRAME_LEN {
        return Err(FrameError::TooLong(usize::try_from(len).unwrap_or(usize::MAX)));
    }
    let mut body = Vec::new();
    let n_read = from.take(u64::from(len)).read_to_end(&mut body).await?;
    if n_read < usize::try_from(len).unwrap_or(usize::MAX) {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(rmp_serde::from_slice(&body)?))
}

/// Sends one frame.
pub async fn write_frame<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> Result<(), FrameError> {
    let body = rmp_serde::to_vec_named(value)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_FRAME_LEN);
    let len = len.ok_or(FrameError::TooLong(body.len()))?;
    to.write_u32(len).await?;
    to.write_all(&body).await?;
    to.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<Command>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { read_frame(&mut &bytes[..]).await })
    }

    #[test]
    fn a_frame_too_long_is_refused_before_it_is_read() {
        assert!(matches!(read(&[0xff; 4]), Err(FrameError::TooLong(_))));
        assert!(matches!(read(&[0, 0, 0, 9, 1]), Err(FrameError::Io(_))), "cut off");
        assert!(matches!(read(&[]), Ok(None)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is at the other end: nothing panics.
        #[test]
        fn any_frame_is_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let len = u32::try_from(body.len()).unwrap().to_be_bytes();
            let _ = read(&[&len[..], &body].concat());
        }
    }
}
