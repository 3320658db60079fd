//! Unlock keys as users have them, `SWMKEY-1-<43 digits of base 64>` (swarmkit `encryption.HumanReadableKey`).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use control_model::authority::UnlockKey;

const PREFIX: &str = "SWMKEY-1-";

/// The text is no unlock key. The words are swarmkit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid key string")]
pub struct InvalidUnlockKey;

/// The key as `docker swarm unlock-key` shows it.
pub fn unlock_key_text(key: &UnlockKey) -> String {
    format!("{PREFIX}{}", BASE64_STANDARD_NO_PAD.encode(key.0))
}

/// The key that `docker swarm unlock` was given. Other lengths than that of a key are none.
pub fn parse_unlock_key(text: &str) -> Result<UnlockKey, InvalidUnlockKey> {
    let digits = text.strip_prefix(PREFIX).ok_or(InvalidUnlockKey)?;
    let bytes = BASE64_STANDARD_NO_PAD.decode(digits).map_err(|_| InvalidUnlockKey)?;
    bytes.try_into().map(UnlockKey).map_err(|_| InvalidUnlockKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 bytes 0 … 31, in base 64 by another program.
    const TEXT: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    #[test]
    fn text_and_key_are_one() {
        let key = UnlockKey(std::array::from_fn(|i| u8::try_from(i).expect("below 32")));
        assert_eq!(unlock_key_text(&key), TEXT);
        assert_eq!(parse_unlock_key(TEXT), Ok(key));
        assert_eq!(format!("{key:?}"), "UnlockKey(..)");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let padded = format!("{TEXT}=");
        let cut = &TEXT[..TEXT.len() - 1];
        for text in ["", "SWMKEY-1-", "SWMKEY-2-AAAA", "SWMTKN-1-a-b", "k", &padded, cut, "SWMKEY-1-é"] {
            assert_eq!(parse_unlock_key(text), Err(InvalidUnlockKey), "{text}");
        }
    }
}
