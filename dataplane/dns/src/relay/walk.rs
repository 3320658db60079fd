//! Goes through a message without understanding its records (RFC 1035 section 4.1). No bytes make it panic.

/// Labels of a name: more don't fit into its 255 bytes.
const MAX_LABELS: usize = 128;

/// A place in a message.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One record, as far as a relay has to know it.
pub(super) struct Record {
    pub(super) kind: u16,
    pub(super) ttl_s: u32,
    /// Where its time stands.
    pub(super) ttl_at: usize,
    /// Behind its last byte.
    pub(super) end: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next `len` bytes; `None` if there are fewer.
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(bytes)
    }

    fn take_u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The next record; `None` if it is broken or not all there.
    pub(super) fn record(&mut self) -> Option<Record> {
        self.skip_name()?;
        let kind = self.take_u16()?;
        let _class = self.take_u16()?;
        let ttl_at = self.at;
        let ttl = self.take(4)?;
        let ttl_s = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]);
        let data_len = self.take_u16()?;
        self.take(usize::from(data_len))?;
        Some(Record { kind, ttl_s, ttl_at, end: self.at })
    }

    /// A pointer must point backwards: where it leads to is left to who reads the name.
    fn skip_name(&mut self) -> Option<()> {
        let start = self.at;
        for _ in 0..MAX_LABELS {
            let len = self.take(1)?[0];
            match len >> 6 {
                0 if len == 0 => return Some(()),
                0 => self.take(usize::from(len)).map(|_| ())?,
                3 => {
                    let target = (usize::from(len & 0x3f) << 8) | usize::from(self.take(1)?[0]);
                    return (target < start).then_some(());
                }
                _ => return None,
            }
        }
        None
    }
}
