//! Reading a packet, wherever its bytes are.

/// The packet ends before the bytes asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

/// A packet's bytes: a slice on the host, a socket buffer or an XDP frame in the kernel.
pub trait Bytes {
    /// Whether a header behind IPv4 options can be read: XDP reads at offsets known at compile time only.
    const VARIABLE_OFFSETS: bool;

    /// `N` bytes from `offset`, counted from the Ethernet header.
    fn load<const N: usize>(&self, offset: usize) -> Result<[u8; N], Truncated>;

    /// The same, put where they are to be.
    #[inline]
    fn load_into<const N: usize>(&self, offset: usize, to: &mut [u8; N]) -> Result<(), Truncated> {
        *to = self.load(offset)?;
        Ok(())
    }
}

impl Bytes for &[u8] {
    const VARIABLE_OFFSETS: bool = true;

    fn load<const N: usize>(&self, offset: usize) -> Result<[u8; N], Truncated> {
        let end = offset.checked_add(N).ok_or(Truncated)?;
        self.get(offset..end).and_then(|bytes| bytes.try_into().ok()).ok_or(Truncated)
    }
}
