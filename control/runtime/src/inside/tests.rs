use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use tar::{Builder, EntryType, Header};

use super::*;

/// A root with a link that leads out of it, and a file outside that nobody may touch.
fn root(dir: &Path) -> Root {
    let inside = dir.join("root");
    fs::create_dir_all(inside.join("data/deep")).unwrap();
    fs::write(dir.join("outside"), "mine").unwrap();
    fs::write(inside.join("data/one"), "1").unwrap();
    fs::write(inside.join("data/deep/two"), "22").unwrap();
    fs::hard_link(inside.join("data/one"), inside.join("data/same")).unwrap();
    symlink("../../../../outside", inside.join("data/out")).unwrap();
    symlink("/", inside.join("up")).unwrap();
    Root::open(&inside).unwrap()
}

/// `<kind> <name> [-> link] <size>` of each entry.
fn listed(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let link = entry.link_name_bytes().map(|link| format!(" -> {}", String::from_utf8_lossy(&link)));
        let kind = char::from(entry.header().entry_type().as_byte());
        format!("{kind} {name}{} {}", link.unwrap_or_default(), entry.size())
    });
    entries.collect()
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o640);
        header.set_uid(nix::unistd::getuid().as_raw().into());
        header.set_gid(nix::unistd::getgid().as_raw().into());
        header.set_mtime(1_000);
        let field = &mut header.as_gnu_mut().unwrap().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        let content = match kind {
            EntryType::Regular => text.as_bytes(),
            EntryType::Symlink | EntryType::Link => {
                header.set_link_name_literal(text).unwrap();
                b""
            }
            _ => b"",
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn names_in_an_archive_are_those_that_the_cli_expects() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let packed = |path: &str| listed(&root.pack(path, Vec::new()).unwrap());
    assert_eq!(packed("/data/one"), ["0 one 1"]);
    assert_eq!(packed("data/out"), ["2 out -> ../../../../outside 0"]);
    assert_eq!(
        packed("/data"),
        [
            "5 data/ 0",
            "0 data/one 1",
            "2 data/out -> ../../../../outside 0",
            "1 data/same -> data/one 0",
            "5 data/deep/ 0",
            "0 data/deep/two 2"
        ]
    );
    assert_eq!(packed("/data/deep/."), ["5 ./ 0", "0 two 2"]);
    assert_eq!(packed("/up/data/deep"), ["5 deep/ 0", "0 deep/two 2"]);
    let whole = packed("/");
    assert!(whole[0] == "5 / 0" && whole.contains(&"0 /data/one 1".to_owned()), "{whole:?}");
    assert!(matches!(root.pack("/nothing", Vec::new()), Err(CopyError::NotFound)));
    assert!(matches!(root.find("/data/one/"), Err(CopyError::NotFound)));
}

#[test]
fn long_names_and_links_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let (long, far) = ("n".repeat(200), "f".repeat(150));
    fs::write(dir.path().join("root/data/deep").join(&long), "x").unwrap();
    symlink(&far, dir.path().join("root/data/deep/link")).unwrap();
    let packed = root.pack("/data/deep", Vec::new()).unwrap();
    let names = listed(&packed);
    assert_eq!(names[1..3], [format!("2 deep/link -> {far} 0"), format!("0 deep/{long} 1")]);
    root.unpack("/up", Owner::Archives, Overwriting::SameKind, &packed[..]).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("root/deep").join(&long)).unwrap(), "x");
}

#[test]
fn what_a_path_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let link = root.stat("/data/out").unwrap();
    assert_eq!((link.name.as_str(), link.link_target.as_str()), ("out", "/outside"));
    assert_eq!(root.stat("/up").unwrap().link_target, "/");
    let file = root.stat("/up/data/deep/two").unwrap();
    assert_eq!((file.name.as_str(), file.size_bytes, file.mode & 0o170_000), ("two", 2, 0o100_000));
    symlink("circle", dir.path().join("root/circle")).unwrap();
    assert!(matches!(root.stat("/circle"), Err(CopyError::Io(_))));
}

#[test]
fn nothing_is_put_outside() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let put = |to: &str, entries: &[(EntryType, &str, &str)]| {
        root.unpack(to, Owner::Archives, Overwriting::SameKind, &archive(entries)[..])
    };
    put("/data", &[(EntryType::Regular, "./new", "n"), (EntryType::Directory, "a/b/", "")]).unwrap();
    let made = fs::metadata(dir.path().join("root/data/new")).unwrap();
    assert_eq!((made.permissions().mode() & 0o7777, made.mtime()), (0o640, 1_000));
    // Through links of the container's, and of the archive's own.
    let up = "../../../../..";
    let entries = [
        (EntryType::Symlink, "away", dir.path().to_str().unwrap()),
        (EntryType::Symlink, "above", up),
        (EntryType::Regular, "above/outside", "theirs"),
    ];
    put("/data", &entries).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("root/outside")).unwrap(), "theirs");
    for kind in [EntryType::Regular, EntryType::Directory] {
        assert!(matches!(put("/data", &[(kind, "away/outside", "theirs")]), Err(CopyError::NotFound)));
    }
    assert!(matches!(put("/data", &[(EntryType::Regular, "../outside", "x")]), Err(CopyError::Refused(_))));
    assert!(matches!(put("/data", &[(EntryType::Link, "stolen", "away/outside")]), Err(CopyError::NotFound)));
    put("/data", &[(EntryType::Link, "again", "out")]).unwrap();
    assert!(
        fs::symlink_metadata(dir.path().join("root/data/again")).unwrap().is_symlink(),
        "the link itself"
    );
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "mine");
    // A link at its end is replaced, and not written through.
    put("/data", &[(EntryType::Regular, "out", "file")]).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("root/data/out")).unwrap(), "file");
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "mine");
    assert!(matches!(put("/data/one", &[]), Err(CopyError::NotADirectory)));
    assert!(matches!(put("/nothing", &[]), Err(CopyError::NotFound)));
}

#[test]
fn kinds_are_not_changed_unless_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    let put = |overwriting, kind, name, text| {
        root.unpack("/data", Owner::Archives, overwriting, &archive(&[(kind, name, text)])[..])
    };
    let refused = put(Overwriting::SameKind, EntryType::Regular, "deep", "x").unwrap_err().to_string();
    assert_eq!(refused, "cannot overwrite directory \"deep\" with non-directory \"deep\"");
    let refused = put(Overwriting::SameKind, EntryType::Directory, "one/", "").unwrap_err().to_string();
    assert_eq!(refused, "cannot overwrite non-directory \"one\" with directory \"one\"");
    put(Overwriting::AnyKind, EntryType::Directory, "one/", "").unwrap();
    assert!(dir.path().join("root/data/one").is_dir());
    // Nothing is lost with it.
    assert!(put(Overwriting::AnyKind, EntryType::Regular, "deep", "x").is_err());
    assert!(dir.path().join("root/data/deep/two").exists());
}
