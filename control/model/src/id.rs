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

fn format_base36(mut value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; ID_LEN];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(value % 36) as usize];
        value /= 36;
    }
    f.pad(std::str::from_utf8(&text).expect("base-36 digits are ASCII"))
}

fn parse_base36(text: &str) -> Result<u128, ParseIdError> {
    if text.len() != ID_LEN || text.bytes().any(|b| !b.is_ascii_digit() && !b.is_ascii_lowercase()) {
        return Err(ParseIdError);
    }
    u128::from_str_radix(text, 36).map_err(|_| ParseIdError)
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
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
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
