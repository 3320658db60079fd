//! Base 64, one way.

/// RFC 4648 section 4.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |group: u32, place: u32| char::from(DIGITS[(group >> (18 - 6 * place) & 63) as usize]);
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let joined = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte));
        let group = joined << (8 * (3 - chunk.len()));
        let n_digits = u32::try_from(chunk.len()).unwrap_or(3) + 1;
        text.extend((0..4).map(|place| if place < n_digits { digit(group, place) } else { '=' }));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }
}
