//! What secrets, configs and references to them must obey, in the words of swarmkit's `manager/controlapi`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::dependency::{DependencyFile, DependencyKind, DependencySpec};

/// Longest name.
const MAX_NAME_LEN: usize = 64;

/// Why a secret, a config, or a reference to one is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DependencyError {
    #[error("name must be provided")]
    NameMissing,
    #[error(
        "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"
    )]
    Name,
    #[error("{} data must be larger than 0 and less than {} bytes", .0.word(), .0.limit_bytes())]
    Size(DependencyKind),
    #[error("malformed {} reference", .0.word())]
    Reference(DependencyKind),
    #[error("malformed file {} reference, invalid target file name provided", .0.word())]
    Target(DependencyKind),
    #[error("{} references '{one}' and '{other}' have a conflicting target: '{target}'", .kind.word())]
    SameTarget { kind: DependencyKind, one: String, other: String, target: String },
    #[error("only updates to Labels are allowed")]
    NotLabels,
}

/// Checks a secret or config by itself.
pub fn validate_dependency(kind: DependencyKind, spec: &DependencySpec) -> Result<(), DependencyError> {
    if spec.name.is_empty() {
        return Err(DependencyError::NameMissing);
    }
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends = [spec.name.bytes().next(), spec.name.bytes().next_back()];
    let is_name = spec.name.len() <= MAX_NAME_LEN
        && spec.name.bytes().all(is_inner)
        && ends.into_iter().flatten().all(|b| b.is_ascii_alphanumeric());
    if !is_name {
        return Err(DependencyError::Name);
    }
    if spec.data.0.is_empty() || spec.data.0.len() >= kind.limit_bytes() {
        return Err(DependencyError::Size(kind));
    }
    Ok(())
}

/// An update may change labels alone. Who leaves the bytes out wants them to stay.
pub fn validate_dependency_update(old: &DependencySpec, new: &DependencySpec) -> Result<(), DependencyError> {
    let is_same = old.name == new.name && (new.data.0.is_empty() || new.data == old.data);
    if is_same { Ok(()) } else { Err(DependencyError::NotLabels) }
}

/// Checks the files of a container: each has a name and a place of its own, which no `..` leads out of.
pub fn validate_dependency_files(files: &[DependencyFile]) -> Result<(), DependencyError> {
    let mut taken: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for file in files {
        let kind = file.kind;
        if file.name.is_empty() {
            return Err(DependencyError::Reference(kind));
        }
        let place = place_of(file).ok_or(DependencyError::Target(kind))?;
        if let Some(one) = taken.insert(place, &file.name) {
            let (one, other, target) = (one.to_owned(), file.name.clone(), file.target.clone());
            return Err(DependencyError::SameTarget { kind, one, other, target });
        }
    }
    Ok(())
}

/// Where in its container a file is; `None` of a target that names no file.
pub fn place_of(file: &DependencyFile) -> Option<PathBuf> {
    let target = Path::new(&file.target);
    target.file_name()?;
    let leads_out = |part| matches!(part, Component::ParentDir);
    // As a whole, without `//` and `/./`: two spellings of one place are one.
    (!target.components().any(leads_out) && !file.target.ends_with('/'))
        .then(|| Path::new(file.kind.default_dir()).join(target).components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dependency::Payload;
    use crate::id::DependencyId;

    fn spec(name: &str, n_bytes: usize) -> DependencySpec {
        DependencySpec { name: name.into(), data: Payload(vec![1; n_bytes]), ..DependencySpec::default() }
    }

    fn file(kind: DependencyKind, name: &str, target: &str) -> DependencyFile {
        let id = DependencyId::from_bits(1);
        DependencyFile { kind, id, name: name.into(), target: target.into(), uid: 0, gid: 0, mode: 0o444 }
    }

    #[test]
    fn names_and_sizes_are_swarmkits() {
        let check = |name: &str, n| {
            validate_dependency(DependencyKind::Secret, &spec(name, n)).map_err(|e| e.to_string())
        };
        for name in ["a", "site.key", "a-b_c.9", &"x".repeat(64)] {
            assert_eq!(check(name, 1), Ok(()), "{name}");
        }
        for name in [".a", "a-", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(check(name, 1).is_err_and(|e| e.starts_with("invalid name, only 64")), "{name}");
        }
        assert_eq!(check("", 1), Err("name must be provided".into()));
        let size = "secret data must be larger than 0 and less than 512000 bytes";
        assert_eq!((check("a", 0), check("a", 512_000)), (Err(size.into()), Err(size.into())));
        assert_eq!(check("a", 511_999), Ok(()));
        let config = validate_dependency(DependencyKind::Config, &spec("a", 1_024_000)).unwrap_err();
        assert_eq!(config.to_string(), "config data must be larger than 0 and less than 1024000 bytes");
    }

    #[test]
    fn labels_alone_are_updated() {
        let old = spec("a", 3);
        let labelled = DependencySpec { labels: [("x".to_owned(), "y".to_owned())].into(), ..old.clone() };
        assert_eq!(validate_dependency_update(&old, &labelled), Ok(()));
        assert_eq!(validate_dependency_update(&old, &spec("a", 0)), Ok(()));
        assert_eq!(validate_dependency_update(&old, &spec("a", 4)), Err(DependencyError::NotLabels));
        assert_eq!(validate_dependency_update(&old, &spec("b", 3)), Err(DependencyError::NotLabels));
    }

    #[test]
    fn files_have_places_of_their_own() {
        use DependencyKind::{Config, Secret};
        let place = |kind, target| place_of(&file(kind, "n", target)).map(|path| path.display().to_string());
        assert_eq!(place(Secret, "key").as_deref(), Some("/run/secrets/key"));
        assert_eq!(place(Secret, "/etc//key").as_deref(), Some("/etc/key"));
        assert_eq!(place(Config, "conf.d/./a").as_deref(), Some("/conf.d/a"));
        for target in ["", "/", ".", "..", "../key", "/etc/../key", "a/"] {
            assert_eq!(place(Secret, target), None, "{target}");
        }
        let two = [file(Secret, "one", "key"), file(Config, "other", "/run/secrets/key")];
        let conflict = validate_dependency_files(&two).unwrap_err().to_string();
        assert_eq!(
            conflict,
            "config references 'one' and 'other' have a conflicting target: '/run/secrets/key'"
        );
        assert_eq!(
            validate_dependency_files(&[file(Secret, "", "key")]),
            Err(DependencyError::Reference(Secret))
        );
        assert_eq!(
            validate_dependency_files(&[file(Secret, "a", "..")]),
            Err(DependencyError::Target(Secret))
        );
    }
}
