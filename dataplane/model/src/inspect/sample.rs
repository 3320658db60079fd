//! What `meshctl flows` shows: single packets, before and after a program.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The most packets that one answer tells of: some hundred kilobytes.
pub const MAX_SAMPLES: usize = 2_000;

/// `meshctl flows`: what was told within about a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSamples {
    /// One of so many packets was told of, by each program.
    pub every: u32,
    /// In order of time.
    pub samples: Vec<FlowSample>,
    /// How many more there were.
    pub n_left_off: u64,
    /// Events that found no room in the kernel's buffer: two are one packet.
    pub n_lost: u64,
}

/// One packet at one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSample {
    /// Since the machine was started, ns.
    pub at_ns: u64,
    pub program: String,
    pub interface: String,
    /// `passed`, `forwarded` or `dropped`.
    pub verdict: String,
    /// Why it was dropped.
    pub reason: Option<String>,
    /// Of the frame, bytes, as it came.
    pub len: u32,
    /// The tunnel that it came by.
    pub tunnel: Option<SampledTunnel>,
    pub before: SampledPacket,
    pub after: SampledPacket,
}

/// A tunnel, from its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledTunnel {
    pub from: IpAddr,
    pub vni: u32,
}

/// A frame's headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledPacket {
    pub destination_mac: String,
    /// `tcp`, `udp`, `icmp`, `arp`, … or a number.
    pub protocol: String,
    /// Address, with a port where there are any; empty for what has no addresses.
    pub source: String,
    pub destination: String,
    /// Of TCP: `S`, `SA`, `A`, `FA`, `R`, …
    pub flags: String,
    /// The packet in a tunnel's, which this is.
    pub inner: Option<Box<SampledPacket>>,
}

impl SampledPacket {
    /// Without a tunnel's headers.
    pub fn innermost(&self) -> &Self {
        self.inner.as_deref().unwrap_or(self)
    }
}
