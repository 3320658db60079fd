//! Generic resources: what a node has beside CPUs and memory, so many of a kind or named ones, and what tasks reserve of it
//! (swarmkit `api/genericresource`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Before a kind's name in the environment of a container that has some of it (moby `cluster/executor/container`).
const ENV_PREFIX: &str = "DOCKER_RESOURCE_";

/// How many of each kind a task asks for.
pub type GenericRequests = BTreeMap<String, u64>;

/// What there is of each kind: on a node, or given to a task.
pub type GenericResources = BTreeMap<String, GenericAmount>;

/// Of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GenericAmount {
    /// One is like the other.
    Count(u64),
    /// Each has a name, which the task is told.
    Named(BTreeSet<String>),
}

/// Why a list of `kind=value` is none, in swarmkit's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenericError {
    #[error("could not parse GenericResource: incorrect term {0}, missing '=' or malformed expression")]
    Term(String),
    #[error("could not parse GenericResource: cannot ask for negative resource {0}")]
    Negative(String),
    #[error("could not parse GenericResource: mixed discrete and named resources in expression '{0}={1:?}'")]
    Mixed(String, Vec<String>),
}

/// What a node is said to have: `ssd=3` are so many, `gpu=UUID1`, `gpu=UUID2` are named ones.
pub fn parse_resources(terms: &[String]) -> Result<GenericResources, GenericError> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for term in terms {
        match term.split('=').map(str::trim).collect::<Vec<_>>().as_slice() {
            [kind, value] if !kind.is_empty() && !value.is_empty() => {
                values.entry((*kind).to_owned()).or_default().push((*value).to_owned());
            }
            _ => return Err(GenericError::Term(term.clone())),
        }
    }
    values.into_iter().map(|(kind, values)| Ok((kind.clone(), amount(&kind, values)?))).collect()
}

fn amount(kind: &str, values: Vec<String>) -> Result<GenericAmount, GenericError> {
    let numbers: Vec<i64> = values.iter().filter_map(|value| value.parse().ok()).collect();
    match (numbers.as_slice(), values.len()) {
        ([], _) => Ok(GenericAmount::Named(values.into_iter().collect())),
        ([number], 1) => u64::try_from(*number)
            .map(GenericAmount::Count)
            .map_err(|_| GenericError::Negative(kind.to_owned())),
        _ => Err(GenericError::Mixed(kind.to_owned(), values)),
    }
}

/// What a task gets that asks for `asked` on a node that has `all`, of which others hold `held`. `None`: there is not enough.
pub fn claim(
    asked: &GenericRequests,
    all: &GenericResources,
    held: &[&GenericResources],
) -> Option<GenericResources> {
    let asked = asked.iter().filter(|(_, count)| **count > 0);
    asked
        .map(|(kind, count)| {
            let held = held.iter().filter_map(|held| held.get(kind));
            Some((kind.clone(), claim_one(*count, all.get(kind)?, held)?))
        })
        .collect()
}

fn claim_one<'a>(
    count: u64,
    all: &GenericAmount,
    held: impl Iterator<Item = &'a GenericAmount>,
) -> Option<GenericAmount> {
    match all {
        GenericAmount::Count(all) => {
            let held = held.map(GenericAmount::count).fold(0, u64::saturating_add);
            (all.saturating_sub(held) >= count).then_some(GenericAmount::Count(count))
        }
        GenericAmount::Named(all) => {
            let held: BTreeSet<&String> = held.flat_map(GenericAmount::names).collect();
            let wanted = usize::try_from(count).ok()?;
            let free: BTreeSet<String> =
                all.iter().filter(|name| !held.contains(name)).take(wanted).cloned().collect();
            (free.len() == wanted).then_some(GenericAmount::Named(free))
        }
    }
}

impl GenericAmount {
    fn count(&self) -> u64 {
        match self {
            Self::Count(count) => *count,
            Self::Named(names) => names.len() as u64,
        }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::Count(_) => None,
            Self::Named(names) => Some(names),
        }
        .into_iter()
        .flatten()
    }
}

/// What the container of a task is told: `DOCKER_RESOURCE_GPU=UUID1,UUID2`.
pub fn environment(given: &GenericResources) -> Vec<String> {
    let variable = |(kind, amount): (&String, &GenericAmount)| {
        let value = match amount {
            GenericAmount::Count(count) => count.to_string(),
            GenericAmount::Named(names) => names.iter().map(String::as_str).collect::<Vec<_>>().join(","),
        };
        format!("{ENV_PREFIX}{}={value}", kind.to_uppercase())
    };
    given.iter().map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(terms: &[&str]) -> Result<GenericResources, String> {
        let terms: Vec<String> = terms.iter().map(|&term| term.to_owned()).collect();
        parse_resources(&terms).map_err(|error| error.to_string())
    }

    fn node() -> GenericResources {
        parsed(&["ssd=3", "gpu=b", "gpu=a", "gpu=c"]).expect("a node's")
    }

    fn asked(kind: &str, count: u64) -> GenericRequests {
        BTreeMap::from([(kind.to_owned(), count)])
    }

    #[test]
    fn are_read_as_docker_reads_them() {
        assert_eq!(node()["ssd"], GenericAmount::Count(3));
        assert_eq!(environment(&node()), ["DOCKER_RESOURCE_GPU=a,b,c", "DOCKER_RESOURCE_SSD=3"]);
        for (terms, error) in [
            (&["gpu"][..], "incorrect term gpu, missing '=' or malformed expression"),
            (&["a=b=c"], "incorrect term a=b=c, missing '=' or malformed expression"),
            (&["=b"], "incorrect term =b, missing '=' or malformed expression"),
            (&["ssd=-1"], "cannot ask for negative resource ssd"),
            (&["x=1", "x=a"], "mixed discrete and named resources in expression 'x=[\"1\", \"a\"]'"),
            (&["x=1", "x=2"], "mixed discrete and named resources in expression 'x=[\"1\", \"2\"]'"),
        ] {
            assert_eq!(parsed(terms), Err(format!("could not parse GenericResource: {error}")));
        }
    }

    #[test]
    fn are_given_once() {
        let first = claim(&asked("gpu", 2), &node(), &[]).expect("there are three");
        assert_eq!(first, parsed(&["gpu=a", "gpu=b"]).expect("two"));
        let second = claim(&asked("gpu", 1), &node(), &[&first]).expect("one is left");
        assert_eq!(second, parsed(&["gpu=c"]).expect("one"));
        assert_eq!(claim(&asked("gpu", 2), &node(), &[&first]), None);
        let two = parsed(&["ssd=2"]).expect("two");
        assert_eq!(claim(&asked("ssd", 2), &node(), &[]), Some(two.clone()));
        assert_eq!(claim(&asked("ssd", 2), &node(), &[&two]), None);
        assert_eq!(claim(&asked("fpga", 1), &node(), &[]), None);
        assert_eq!(claim(&asked("fpga", 0), &node(), &[]), Some(GenericResources::new()));
        // A node that was said to have more: what is held beyond it counts all the same.
        let seven = parsed(&["ssd=7"]).expect("seven");
        assert_eq!(claim(&asked("ssd", 1), &node(), &[&seven]), None);
    }
}
