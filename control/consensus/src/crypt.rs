//! Encryption at rest.

/// The key that wraps a manager's data key. With autolock it is the user's; without, it lies beside the data.
#[derive(Clone)]
pub struct Kek(pub [u8; 32]);
