//! A fingerprint of what a node is assigned: managers and nodes compare it without sending the rows.

use control_model::Assignment;
use control_model::object::{Life, Meta, TaskStatus};
use sha2::{Digest as _, Sha256};

use crate::BodyError;

/// Bytes of the hash that are kept: two different sets never have the same by chance.
const LEN: usize = 16;

/// The fingerprint of these rows, which must come in the order of their keys. What is not sent again when it changes, a
/// task's version and status, is left out.
pub fn digest(rows: impl IntoIterator<Item = Assignment>) -> Result<String, BodyError> {
    let mut hash = Sha256::new();
    for row in rows {
        let bytes = rmp_serde::to_vec_named(&lasting(row))?;
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(&bytes);
    }
    let hash = hash.finalize();
    let kept: [u8; LEN] = std::array::from_fn(|i| hash[i]);
    Ok(format!("{:032x}", u128::from_be_bytes(kept)))
}

fn lasting(row: Assignment) -> Assignment {
    match row {
        Assignment::Task(mut task) => {
            (task.meta, task.status, task.life) = (Meta::default(), TaskStatus::default(), Life::default());
            Assignment::Task(task)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use control_model::NodeId;
    use control_model::assignment::Peer;

    use super::*;

    fn peer(bits: u128, alive: bool) -> Assignment {
        Assignment::Peer(Peer {
            id: NodeId::from_bits(bits),
            hostname: "n".into(),
            vtep: Ipv4Addr::LOCALHOST.into(),
            addresses: vec![],
            addresses_since: 0,
            underlay_mtu_bytes: None,
            gossip: None,
            alive,
        })
    }

    #[test]
    fn each_row_and_each_field_counts() {
        let of = |rows: &[Assignment]| digest(rows.iter().cloned()).expect("they can be encoded");
        let all = of(&[peer(1, true), peer(2, true)]);
        assert_eq!(all.len(), 2 * LEN);
        assert_eq!(all, of(&[peer(1, true), peer(2, true)]));
        for other in [of(&[]), of(&[peer(1, true)]), of(&[peer(1, true), peer(2, false)])] {
            assert_ne!(all, other);
        }
    }
}
