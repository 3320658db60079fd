//! Paths with queries.

use std::fmt::Write as _;

/// `path?name=value&…`, the values escaped (RFC 3986 section 2.1): for filters, which are JSON.
pub fn with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (index, (name, value)) in parameters.iter().enumerate() {
        out.push(if index == 0 { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        escape(&mut out, value);
    }
    out
}

fn escape(out: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a string takes all");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        let filters = r#"{"name":["a b"]}"#;
        assert_eq!(
            with_query("/tasks", &[("filters", filters), ("all", "1")]),
            "/tasks?filters=%7B%22name%22%3A%5B%22a%20b%22%5D%7D&all=1"
        );
        assert_eq!(with_query("/info", &[]), "/info");
    }
}
