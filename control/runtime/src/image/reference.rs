//! Image references: `[domain/]path[:tag][@digest]`, with Docker's familiar short forms (distribution `reference`).

use std::fmt;

/// Domain of names without one.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Namespace of names of the default domain without one.
const OFFICIAL_NAMESPACE: &str = "library";
/// Tag of a name with neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, domain included (distribution `NameTotalLengthMax`).
const NAME_LEN_MAX: usize = 255;
/// Longest tag (distribution's grammar).
const TAG_LEN_MAX: usize = 128;

/// The text is no image reference. The wording is Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
    #[error("repository name must not be more than {NAME_LEN_MAX} characters")]
    TooLong,
}

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    /// `sha256:<64 hex digits>`.
    digest: Option<String>,
}

impl Reference {
    /// Parses a familiar or a full name. Without tag and digest the tag is `latest`.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
            None => (text, None),
        };
        let last_segment = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last_segment..].find(':') {
            Some(colon) => {
                (&rest[..last_segment + colon], Some(checked_tag(&rest[last_segment + colon + 1..])?))
            }
            None => (rest, None),
        };
        let (domain, path) = split_domain(name);
        check_path(&path)?;
        check_domain(&domain)?;
        if domain.len() + 1 + path.len() > NAME_LEN_MAX {
            return Err(ParseReferenceError::TooLong);
        }
        let tag = if tag.is_none() && digest.is_none() { Some(DEFAULT_TAG.to_owned()) } else { tag };
        Ok(Self { domain, path, tag, digest })
    }

    /// `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `nginx`: the repository as Docker prints it.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        self.path.strip_prefix("library/").unwrap_or(&self.path).to_owned()
    }

    /// `nginx:latest`, or `nginx@sha256:…`: as Docker prints it.
    pub fn familiar(&self) -> String {
        self.with_name(self.familiar_repository())
    }

    /// Registry host and port, to compare with the list of insecure registries.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `domain/path@digest`, the name that registries and pulls by digest use.
    #[must_use]
    pub fn at_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.repository())
    }

    /// The reference without its digest: the name that a pull gives the image. `None` if it had no tag.
    #[must_use]
    pub fn tagged(&self) -> Option<Self> {
        self.tag.is_some().then(|| Self { digest: None, ..self.clone() })
    }

    fn with_name(&self, mut text: String) -> String {
        for (sign, part) in [(':', &self.tag), ('@', &self.digest)] {
            if let Some(part) = part {
                text.push(sign);
                text.push_str(part);
            }
        }
        text
    }
}

impl fmt::Display for Reference {
    /// The full form: `docker.io/library/nginx:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_name(self.repository()))
    }
}

/// The first segment is a domain if it looks like one: a dot, a port, `localhost`, or upper case.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first =>
        {
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("{OFFICIAL_NAMESPACE}/{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

fn check_path(path: &str) -> Result<(), ParseReferenceError> {
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(ParseReferenceError::Uppercase);
    }
    let good = path.split('/').all(|segment| {
        let ends = [segment.chars().next(), segment.chars().next_back()];
        ends.iter().all(|end| end.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit()))
            && segment
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
            && !segment.contains("..")
    });
    if good { Ok(()) } else { Err(ParseReferenceError::Format) }
}

fn check_domain(domain: &str) -> Result<(), ParseReferenceError> {
    let (host, port) = domain.rsplit_once(':').unwrap_or((domain, "0"));
    let good_host = !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        });
    if good_host && port.parse::<u16>().is_ok() { Ok(()) } else { Err(ParseReferenceError::Format) }
}

fn checked_tag(tag: &str) -> Result<String, ParseReferenceError> {
    let first_good = tag.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    let all_good = tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if first_good && all_good && tag.len() <= TAG_LEN_MAX {
        Ok(tag.to_owned())
    } else {
        Err(ParseReferenceError::Format)
    }
}

fn checked_digest(digest: &str) -> Result<String, ParseReferenceError> {
    let hex = digest.strip_prefix("sha256:").ok_or(ParseReferenceError::Format)?;
    if is_sha256_hex(hex) { Ok(digest.to_owned()) } else { Err(ParseReferenceError::Format) }
}

/// 64 lower-case hex digits.
pub(crate) fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        Reference::parse(text).map_or_else(|e| format!("error: {e}"), |r| r.to_string())
    }

    #[test]
    fn short_names_are_completed_as_docker_does() {
        assert_eq!(full("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("traefik/whoami:v1"), "docker.io/traefik/whoami:v1");
        assert_eq!(full("localhost/x"), "localhost/x:latest");
        assert_eq!(full("127.0.0.1:5000/a/b:1"), "127.0.0.1:5000/a/b:1");
        assert_eq!(full("index.docker.io/nginx"), "docker.io/library/nginx:latest");
    }

    #[test]
    fn digests_stay_and_bring_no_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(full(&format!("nginx@{digest}")), format!("docker.io/library/nginx@{digest}"));
        let both = Reference::parse(&format!("nginx:1@{digest}")).expect("tag and digest");
        assert_eq!(both.tagged().expect("it has a tag").familiar(), "nginx:1");
        assert_eq!(both.familiar(), format!("nginx:1@{digest}"));
    }

    #[test]
    fn familiar_form_hides_what_is_default() {
        assert_eq!(Reference::parse("docker.io/library/nginx").expect("valid").familiar(), "nginx:latest");
        assert_eq!(Reference::parse("reg.example/n").expect("valid").familiar(), "reg.example/n:latest");
    }

    #[test]
    fn bad_names_get_dockers_words() {
        assert_eq!(
            full("library/Nginx"),
            "error: invalid reference format: repository name must be lowercase"
        );
        for text in ["", "a//b", "a:", "a:b c", "-a", "a@sha256:12", "a/../b", ":5000/a", "a.:x/b", "é"] {
            assert_eq!(full(text), "error: invalid reference format", "{text:?}");
        }
        assert!(full(&"a".repeat(300)).contains("must not be more than 255"));
    }
}
