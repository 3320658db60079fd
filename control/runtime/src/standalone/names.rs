//! Names of containers: those that users give, and those that are drawn. Pure.

const QUALITIES: [&str; 40] = [
    "able", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp",
    "curious", "daring", "deft", "eager", "early", "fair", "famous", "fond", "frank", "fresh", "gentle",
    "glad", "golden", "hearty", "honest", "keen", "kind", "lively", "lucid", "merry", "mild", "neat",
    "noble", "patient", "quiet", "quick", "silver", "steady", "warm",
];
const THINGS: [&str; 40] = [
    "anchor", "arch", "badger", "beacon", "birch", "bridge", "brook", "canyon", "cedar", "comet", "coral",
    "delta", "dune", "eagle", "ember", "falcon", "fern", "fjord", "glacier", "grove", "harbor", "heron",
    "island", "juniper", "lagoon", "lantern", "lynx", "maple", "meadow", "meteor", "orchard", "otter",
    "pebble", "prairie", "raven", "reef", "river", "sparrow", "summit", "willow",
];

/// What a name may be, in Docker's words.
const PATTERN: &str = "[a-zA-Z0-9][a-zA-Z0-9_.-]";

/// The name that a user has given, without the slash that it may begin with.
pub(super) fn given(text: &str) -> Result<&str, String> {
    let name = text.strip_prefix('/').unwrap_or(text);
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_name = name.len() > 1 && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(is_inner);
    if is_name {
        Ok(name)
    } else {
        Err(format!("Invalid container name ({text}), only {PATTERN} are allowed"))
    }
}

/// Two words that `number` chooses, and one of its digits if both are `taken` already.
pub(super) fn drawn(number: u64, taken: impl Fn(&str) -> bool) -> String {
    let at = |divisor: usize| usize::try_from(number % 1600).expect("small") / divisor % 40;
    let name = format!("{}_{}", QUALITIES[at(1)], THINGS[at(40)]);
    if !taken(&name) {
        return name;
    }
    let numbered = (0_u64..).map(|digit| format!("{name}{digit}"));
    let mut free = numbered.filter(|name| !taken(name));
    free.next().expect("there are more numbers than containers")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_have_letters_digits_and_little_else() {
        for (text, name) in [("web", "web"), ("/web-1.a_b", "web-1.a_b"), ("00", "00")] {
            assert_eq!(given(text), Ok(name));
        }
        for text in ["", "a", "/a", "-web", "we b", "wéb", "a/b", "//web"] {
            let words = given(text).expect_err(text);
            assert_eq!(
                words,
                format!("Invalid container name ({text}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
            );
        }
    }

    #[test]
    fn drawn_names_are_names_and_nobody_elses() {
        let mut all = BTreeSet::new();
        for number in 0..3000 {
            let name = drawn(number, |name| all.contains(name));
            assert_eq!(given(&name), Ok(name.as_str()));
            assert!(all.insert(name));
        }
        assert_eq!(drawn(u64::MAX, |_| false).split('_').count(), 2);
    }
}
