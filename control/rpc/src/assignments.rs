//! The assignments stream: updates that may be long, in pieces that are not.

use control_model::AssignmentUpdate;

use crate::body::{BodyError, decode_assignments, encode_assignments};
use crate::{ASSIGNMENT_PIECE_BYTES, MAX_ASSIGNMENTS_BYTES, pb};

/// `update` as it is sent, a piece when it is taken.
pub fn assignment_pieces(
    update: &AssignmentUpdate,
) -> Result<impl Iterator<Item = pb::AssignmentPiece> + Send + use<>, BodyError> {
    let body = encode_assignments(update)?;
    let starts = (0..body.len()).step_by(ASSIGNMENT_PIECE_BYTES);
    Ok(starts.map(move |start| {
        let rest = &body[start..];
        let piece = &rest[..rest.len().min(ASSIGNMENT_PIECE_BYTES)];
        pb::AssignmentPiece { body: piece.to_vec(), more: piece.len() < rest.len() }
    }))
}

/// Puts pieces together.
#[derive(Debug, Default)]
pub struct AssignmentPieces(Vec<u8>);

impl AssignmentPieces {
    /// Takes the next piece; the update, if it was its last.
    pub fn take(&mut self, piece: &pb::AssignmentPiece) -> Result<Option<AssignmentUpdate>, BodyError> {
        let bytes = self.0.len().saturating_add(piece.body.len());
        if bytes > MAX_ASSIGNMENTS_BYTES {
            return Err(BodyError::TooLarge { bytes, limit: MAX_ASSIGNMENTS_BYTES });
        }
        self.0.extend_from_slice(&piece.body);
        if piece.more {
            return Ok(None);
        }
        decode_assignments(&std::mem::take(&mut self.0)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use control_model::dependency::{DependencySpec, Payload};
    use control_model::{Assignment, Dependency, DependencyId, DependencyKind, Generation};

    use super::*;

    fn configs(n: u128) -> AssignmentUpdate {
        let config = |id| {
            let spec = DependencySpec { data: Payload(vec![7; 1000 << 10]), ..DependencySpec::default() };
            let config = Dependency::new(DependencyId::from_bits(id), DependencyKind::Config, spec);
            Assignment::Dependency(Box::new(config))
        };
        AssignmentUpdate::Complete { generation: Generation::default(), set: (0..n).map(config).collect() }
    }

    #[test]
    fn many_large_configs_come_whole_and_in_pieces() {
        let mut received = AssignmentPieces::default();
        for (n, n_pieces) in [(0, 1), (100, 6251), (1, 63)] {
            let sent: Vec<_> = assignment_pieces(&configs(n)).unwrap().collect();
            assert_eq!(sent.len(), n_pieces, "{n}");
            assert!(sent.iter().all(|piece| piece.body.len() <= ASSIGNMENT_PIECE_BYTES));
            let taken = sent.iter().filter_map(|piece| received.take(piece).unwrap()).collect::<Vec<_>>();
            assert!(taken == [configs(n)], "{n}");
        }
    }

    #[test]
    fn what_has_no_end_is_given_up() {
        let mut received = AssignmentPieces(vec![0; MAX_ASSIGNMENTS_BYTES]);
        let piece = pb::AssignmentPiece { body: vec![0], more: true };
        assert!(matches!(received.take(&piece), Err(BodyError::TooLarge { .. })));
    }
}
