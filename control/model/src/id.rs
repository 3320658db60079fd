//! Object ids: 128 random bits, written as 25 base-36 digits (swarmkit `identity/randomid.go`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Digits of a printed id: `36^25 > 2^128`.
pub const ID_LEN: usize = 25;

/// The text is not 25 lower-case base-36 digits below 2^128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an object id: expected 25 base-36 digits")]
pub struct ParseIdError;

/// Digits that a 64-bit number holds, whatever they are; dividing one is much quicker than dividing one of 128 bits.
const CHUNK_LEN: usize = 12;
const CHUNK: u128 = 36_u128.pow(12);

fn format_base36(mut value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; ID_LEN];
    for chunk in text.rchunks_mut(CHUNK_LEN) {
        let mut low = (value % CHUNK) as u64;
        value /= CHUNK;
        for digit in chunk.iter_mut().rev() {
            *digit = DIGITS[(low % 36) as usize];
            low /= 36;
        }
    }
    f.pad(std::str::from_utf8(&text).expect("base-36 digits are ASCII"))
}

fn parse_base36(text: &str) -> Result<u128, ParseIdError> {
    if text.len() != ID_LEN || text.bytes().any(|b| !b.is_ascii_digit() && !b.is_ascii_lowercase()) {
        return Err(ParseIdError);
    }
    u128::from_str_radix(text, 36).map_err(|_| ParseIdError)
}

/// Reads the text, and the 16 bytes that stand for it where no human reads.
struct IdVisitor;

impl serde::de::Visitor<'_> for IdVisitor {
    type Value = u128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object id")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u128, E> {
        parse_base36(text).map_err(E::custom)
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<u128, E> {
        bytes.try_into().map(u128::from_be_bytes).map_err(|_| E::custom(ParseIdError))
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// The id made of these 128 (random) bits.
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// The 128 bits of the id.
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                format_base36(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                format_base36(self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_base36(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    s.serialize_bytes(&self.0.to_be_bytes())
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() { d.deserialize_str(IdVisitor) } else { d.deserialize_any(IdVisitor) }
                    .map(Self)
            }
        }
    };
}

id_type!(
    /// A cluster.
    ClusterId
);
id_type!(
    /// A node, and the common name of its certificate.
    NodeId
);
id_type!(
    /// A service.
    ServiceId
);
id_type!(
    /// A task. Its container and its sandbox carry the same id.
    TaskId
);
id_type!(
    /// A network.
    NetworkId
);
id_type!(
    /// A secret or a config.
    DependencyId
);

impl TaskId {
    /// The id of the task's container: 64 hex digits as Docker's, the first 32 of them the task's own bits, the others
    /// their complement, so that either id gives the other and the short form (12 digits) is random.
    pub fn container_id(self) -> String {
        format!("{:032x}{:032x}", self.bits(), !self.bits())
    }

    /// The task whose container has this id; `None` if it is the id of no task.
    pub fn of_container(container_id: &str) -> Option<Self> {
        let task = Self::from_bits(u128::from_str_radix(container_id.get(..32)?, 16).ok()?);
        (task.container_id() == container_id).then_some(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_25_digits_and_parses_back() {
        for bits in [0, 1, 35, 36, u128::MAX] {
            let id = NodeId::from_bits(bits);
            assert_eq!(id.to_string().len(), ID_LEN);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert_eq!(NodeId::from_bits(37).to_string(), "0000000000000000000000011");
    }

    #[test]
    fn all_bits_count() {
        for shift in 0..128 {
            let id = TaskId::from_bits(u128::MAX >> shift);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn bytes_stand_for_an_id_where_no_human_reads_and_its_text_is_read_too() {
        let id = TaskId::from_bits(7 << 90);
        let bytes = rmp_serde::to_vec_named(&id).expect("encodable");
        assert_eq!(bytes.len(), 18);
        assert_eq!(rmp_serde::from_slice::<TaskId>(&bytes).expect("readable"), id);
        let text = rmp_serde::to_vec_named(&id.to_string()).expect("encodable");
        assert_eq!(rmp_serde::from_slice::<TaskId>(&text).expect("readable"), id);
        for other in [rmp_serde::to_vec(&[0_u8; 4][..]), rmp_serde::to_vec("x"), rmp_serde::to_vec(&7_u8)] {
            assert!(rmp_serde::from_slice::<TaskId>(&other.expect("encodable")).is_err());
        }
    }

    #[test]
    fn task_and_container_ids_give_each_other() {
        let task = TaskId::from_bits(0x1234);
        assert_eq!(task.container_id().len(), 64);
        assert_eq!(TaskId::of_container(&task.container_id()), Some(task));
        for text in ["", "12", &"0".repeat(64), &"é".repeat(32)] {
            assert_eq!(TaskId::of_container(text), None, "{text}");
        }
    }

    #[test]
    fn order_of_ids_is_order_of_texts() {
        let (low, high) = (NodeId::from_bits(35), NodeId::from_bits(36 * 36));
        assert!(low < high && low.to_string() < high.to_string());
    }

    #[test]
    fn refuses_what_is_no_id() {
        for text in
            ["", "x", "zzzzzzzzzzzzzzzzzzzzzzzzz", "A000000000000000000000000", "+000000000000000000000000"]
        {
            assert_eq!(text.parse::<TaskId>(), Err(ParseIdError), "{text}");
        }
    }
}
