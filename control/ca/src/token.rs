//! Join tokens, `SWMTKN-1-<root digest>-<secret>` (swarmkit `ca/config.go`): who holds one may join in its role,
//! and knows which cluster it joins.

use std::fmt;
use std::str::FromStr;

use control_model::spec::Role;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
/// 36^50 > 2^256.
const DIGEST_LEN: usize = 50;
/// 36^25 > 2^128.
const SECRET_LEN: usize = 25;
const BASE: u32 = 36;

/// The text is no join token. The words are swarmkit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid join token")]
pub struct InvalidToken;

/// The root certificate is not the one that the token names. The words are swarmkit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("remote CA does not match fingerprint. Expected: {expected}")]
pub struct WrongRoot {
    /// The token's digest, 64 hex digits.
    pub expected: String,
}

/// The token is none of this cluster's. The words are swarmkit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A valid join token is necessary to join this cluster")]
pub struct TokenRefused;

/// A join token. Print it with `Display`; `Debug` keeps the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    digest: [u8; 32],
    secret: u128,
}

impl JoinToken {
    /// A token for the cluster of this root (PEM) with 128 random bits.
    pub fn new(root_pem: &str, secret: u128) -> Self {
        Self { digest: digest_of(root_pem), secret }
    }

    /// Is this (PEM) the root of the token's cluster? The digest is over the whole text: a second root hidden
    /// behind the right one does not pass.
    pub fn verify_root(&self, root_pem: &str) -> Result<(), WrongRoot> {
        if digest_of(root_pem) == self.digest {
            return Ok(());
        }
        Err(WrongRoot { expected: hex(&self.digest) })
    }
}

/// The role that `token` gives in a cluster with these two tokens. Compares whole texts in constant time.
pub fn role_of_token(token: &str, worker_token: &str, manager_token: &str) -> Result<Role, TokenRefused> {
    let is = |own: &str| bool::from(token.as_bytes().ct_eq(own.as_bytes())) && !own.is_empty();
    let (manager, worker) = (is(manager_token), is(worker_token));
    match (manager, worker) {
        (true, _) => Ok(Role::Manager),
        (false, true) => Ok(Role::Worker),
        (false, false) => Err(TokenRefused),
    }
}

fn digest_of(root_pem: &str) -> [u8; 32] {
    Sha256::digest(root_pem.as_bytes()).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}")).expect("a string takes everything");
        text
    })
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = to_base36::<DIGEST_LEN>(&self.digest);
        let secret = to_base36::<SECRET_LEN>(&self.secret.to_be_bytes());
        write!(f, "{PREFIX}-{VERSION}-{digest}-{secret}")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.split('-');
        let (Some(PREFIX), Some(VERSION), Some(digest), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidToken);
        };
        if digest.len() != DIGEST_LEN || secret.len() != SECRET_LEN {
            return Err(InvalidToken);
        }
        let digest = from_base36(digest).ok_or(InvalidToken)?;
        let secret = from_base36(secret).ok_or(InvalidToken)?;
        Ok(Self { digest, secret: u128::from_be_bytes(secret) })
    }
}

/// A big-endian number as `LEN` base-36 digits.
fn to_base36<const LEN: usize>(number: &[u8]) -> String {
    let mut number = number.to_vec();
    let mut digits: Vec<char> = (0..LEN)
        .map(|_| char::from_digit(divide(&mut number), BASE).expect("a remainder is below the base"))
        .collect();
    digits.reverse();
    digits.into_iter().collect()
}

/// Divides the big-endian number by 36 and returns the remainder.
fn divide(number: &mut [u8]) -> u32 {
    number.iter_mut().fold(0, |remainder, byte| {
        let value = remainder << 8 | u32::from(*byte);
        *byte = u8::try_from(value / BASE).expect("the remainder was below the base");
        value % BASE
    })
}

/// The big-endian number of lower-case base-36 digits, if it fits.
fn from_base36<const BYTES: usize>(digits: &str) -> Option<[u8; BYTES]> {
    let mut number = [0; BYTES];
    for digit in digits.chars() {
        let mut carry = digit.to_digit(BASE).filter(|_| !digit.is_ascii_uppercase())?;
        for byte in number.iter_mut().rev() {
            let [.., high, low] = (u32::from(*byte) * BASE + carry).to_be_bytes();
            (*byte, carry) = (low, u32::from(high));
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Digest of a text, from sha256sum; the rest by an arbitrary-precision calculator.
    const ROOT: &str = "a root\n";
    const HEX: &str = "fd8bff46c1b840374496ef96051645bedcf9e5c8e8f5334a46041d5e3e693b33";
    const TOKEN: &str =
        "SWMTKN-1-6bhx3n62x3lzkdl201y9fiez6m1oyxw4d2xovbk1k20h3z8rar-02fapl4n1azs5kkwzrxa98bn3";

    #[test]
    fn matches_values_calculated_elsewhere() {
        let token = JoinToken::new(ROOT, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(token.to_string(), TOKEN);
        assert_eq!(TOKEN.parse(), Ok(token.clone()));
        assert_eq!(token.verify_root(ROOT), Ok(()));
        let error = token.verify_root("another").unwrap_err();
        assert_eq!(error.to_string(), format!("remote CA does not match fingerprint. Expected: {HEX}"));
    }

    #[test]
    fn refuses_what_swarmkit_refuses() {
        for text in [
            "invalidtoken",
            "",
            "SWMTKN-1-3wkodtpeoipd1u1hi0ykdcdwhw16dk73ulqqtn14b3indz68rf-4myj5xihyto11dg1cn55w8p6",
            "SWMTKN-2-1fhvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-1g3as27iwmko5yqh1byv868hx",
            "SWMTKN-0-1fhvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-1g3as27iwmko5yqh1byv868hx",
            "SWMTKN-1-1fhvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-1g3as27iwmko5yqh1byv868hx-",
            "SWMTKN-1-1FHvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-1g3as27iwmko5yqh1byv868hx",
            "SWMTKN-1-zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-1g3as27iwmko5yqh1byv868hx",
            "SWMTKN-1-1fhvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-zzzzzzzzzzzzzzzzzzzzzzzzz",
            "SWMTKN-1-éhvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-1g3as27iwmko5yqh1byv868hx",
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(InvalidToken), "{text}");
        }
        let good = "SWMTKN-1-1fhvpatk6ms36i3uc64tsv1ybyuxkb899zbjpq4ib64qwbibz4-1g3as27iwmko5yqh1byv868hx";
        assert_eq!(good.parse::<JoinToken>().unwrap().to_string(), good);
    }

    #[test]
    fn a_token_gives_its_role_alone() {
        assert_eq!(role_of_token("w", "w", "m"), Ok(Role::Worker));
        assert_eq!(role_of_token("m", "w", "m"), Ok(Role::Manager));
        for text in ["", "x", "ww", "wm"] {
            assert_eq!(role_of_token(text, "w", "m"), Err(TokenRefused));
        }
        assert_eq!(role_of_token("", "", ""), Err(TokenRefused));
    }

    #[test]
    fn debug_keeps_the_secret() {
        assert_eq!(format!("{:?}", JoinToken::new(ROOT, 5)), "JoinToken { .. }");
    }

    proptest! {
        #[test]
        fn text_and_value_are_one(root in ".*", secret: u128) {
            let token = JoinToken::new(&root, secret);
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_panics(text in "SWMTKN-1-[0-9a-z]{49,51}-.{24,26}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
