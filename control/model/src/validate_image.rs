//! Image references: `[domain/]path[:tag][@digest]` (distribution `reference/reference.go`, the grammar at its top).

/// Longest name (domain and path) in bytes.
const MAX_NAME_LEN: usize = 255;
/// Longest tag in bytes.
const MAX_TAG_LEN: usize = 128;
/// Fewest hexadecimal digits of a digest.
const MIN_DIGEST_LEN: usize = 32;
/// A name of this many hexadecimal digits would be taken for an id.
const ID_DIGITS: usize = 64;

/// The parts of a reference, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageReference<'a> {
    /// Domain and path.
    pub name: &'a str,
    pub tag: Option<&'a str>,
    /// `sha256:…`.
    pub digest: Option<&'a str>,
}

/// The parts of `text`, or `None` if it is no image reference.
pub fn parse_image_reference(text: &str) -> Option<ImageReference<'_>> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_start..].find(':') {
        Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
        None => (rest, None),
    };
    let valid = is_name(name) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest);
    valid.then_some(ImageReference { name, tag, digest })
}

fn is_name(name: &str) -> bool {
    let bare_id = name.len() == ID_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit());
    if name.is_empty() || name.len() > MAX_NAME_LEN || bare_id {
        return false;
    }
    let path = match name.split_once('/') {
        Some((domain, path)) if looks_like_domain(domain) => {
            if !is_domain(domain) {
                return false;
            }
            path
        }
        _ => name,
    };
    path.split('/').all(is_path_component)
}

fn looks_like_domain(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost" || text.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_domain(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port_fits;
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    host.split('.').all(is_domain_component) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_domain_component(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Lower-case runs joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = text.split(alphanumeric);
    let (first, last) = (text.chars().next(), text.chars().next_back());
    let ends_fit = first.is_some_and(alphanumeric) && last.is_some_and(alphanumeric);
    ends_fit && separators.all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty()
        && text.len() <= MAX_TAG_LEN
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let algorithm_fits = algorithm.split(['-', '_', '+', '.']).all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    });
    algorithm_fits && hex.len() >= MIN_DIGEST_LEN && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_apart_what_docker_takes() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = format!("reg.example:5000/team/app:1.0@{digest}");
        let parts = parse_image_reference(&pinned).expect("a reference");
        assert_eq!((parts.name, parts.tag), ("reg.example:5000/team/app", Some("1.0")));
        assert_eq!(parts.digest, Some(digest.as_str()));
        for text in
            ["nginx", "nginx:latest", "localhost/x", "localhost:5000/x", "a__b/c-d/e.f", "[::1]:5000/x:y"]
        {
            assert!(parse_image_reference(text).is_some(), "{text}");
        }
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let long = "a".repeat(256);
        let id = "a".repeat(64);
        for text in [
            "",
            "UPPER",
            "a//b",
            "-a",
            "a:",
            "a:b c",
            "a@sha256:12",
            "/a",
            "a/",
            "a___b",
            "a..b",
            "x y",
            &long,
            &id,
        ] {
            assert!(parse_image_reference(text).is_none(), "{text}");
        }
    }
}
