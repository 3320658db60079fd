//! This node's named volumes: directories that outlive containers (moby `volume/local`). One is made when it is first asked for, by
//! a user or a task, and goes when a user says so and no container has it.

mod content;
mod options;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use control_model::spec::ANONYMOUS_VOLUME_LABEL;
use control_model::{TaskId, Timestamp};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

pub(crate) use content::size_bytes;
pub use options::OptionError;

use self::content::move_entries;
use self::options::Device;
use crate::events::{Events, VolumeChange};
use crate::files::{remove_tree, unique_suffix, write_durably};
use crate::image::sha256_digest;
use crate::unmount::{is_mount_point, unmount_all};

/// Beginning of the name of a directory that is being removed: no volume's.
const REMOVED: &str = ".removed-";
const CONTENT: &str = "_data";
/// Who has one is a volume, whatever became of its content: that may be another file system, whose server is gone.
const RECORD: &str = "volume.json";

/// What a volume is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub labels: BTreeMap<String, String>,
    /// Of Docker's driver `local`: `type`, `o`, `device`. Without them it is a directory of this node.
    pub options: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub spec: VolumeSpec,
    pub created_at: Timestamp,
    /// Its content.
    pub mountpoint: PathBuf,
    /// Goes with its container.
    pub is_anonymous: bool,
    /// Ids of the containers that have it.
    pub containers: Vec<String>,
}

/// Why nothing came of it. `Display` is Docker's sentence.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(
        "create {0}: \"{0}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
         allowed. If you intended to pass a host directory, use absolute path"
    )]
    Name(String),
    #[error("create {0}: volume name is too short, names should be at least two alphanumeric characters")]
    ShortName(String),
    #[error("create {0}: {1}")]
    Options(String, OptionError),
    #[error("get {0}: no such volume")]
    Unknown(String),
    #[error("remove {0}: volume is in use - [{1}]")]
    InUse(String, String),
    #[error("error while mounting volume '{}': {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// All named volumes.
#[derive(Debug)]
pub(crate) struct Volumes {
    dir: PathBuf,
    events: Events,
    /// Who has each.
    users: Mutex<BTreeMap<String, BTreeSet<TaskId>>>,
}

/// What is kept of a volume beside its content.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    spec: VolumeSpec,
    created_at: Timestamp,
}

impl Volumes {
    /// Those in `dir`, and who has them. Removals that were cut off are done. Blocks, as everything here does.
    pub fn open(
        dir: PathBuf,
        users: impl Iterator<Item = (String, TaskId)>,
        events: Events,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let (name, at) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let mended =
                if name.starts_with(REMOVED) { remove_content(&at) } else { with_record(&name, &at) };
            // What is wrong with one is no reason to keep a node from its work.
            if let Err(error) = mended {
                tracing::warn!(path = %at.display(), %error, "a volume is not in order");
            }
        }
        let mut held: BTreeMap<String, BTreeSet<TaskId>> = BTreeMap::new();
        for (name, task) in users {
            held.entry(name).or_default().insert(task);
        }
        Ok(Self { dir, events, users: Mutex::new(held) })
    }

    /// Makes one, if there is none of that name yet; without a name, one whose name nobody has.
    pub fn create(&self, name: &str, spec: &VolumeSpec) -> Result<Volume, VolumeError> {
        let users = self.users();
        if !name.is_empty() {
            self.make(name, spec)?;
            return self.volume(name, &users);
        }
        let (name, mut spec) = (unique_name(), spec.clone());
        spec.labels.insert(ANONYMOUS_VOLUME_LABEL.to_owned(), String::new());
        self.make(&name, &spec)?;
        self.volume(&name, &users)
    }

    /// All, by name.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let users = self.users();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io_at(&self.dir))? {
            let name = entry.map_err(io_at(&self.dir))?.file_name();
            names.extend(name.to_str().filter(|name| is_name(name)).map(str::to_owned));
        }
        names.sort_unstable();
        let known = names.iter().filter_map(|name| match self.volume(name, &users) {
            Ok(volume) => Some(volume),
            Err(VolumeError::Unknown(_)) => None,
            // It hides no other.
            Err(error) => {
                tracing::warn!(name, %error, "a volume can't be read");
                None
            }
        });
        Ok(known.collect())
    }

    pub fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        self.volume(name, &self.users())
    }

    /// Removes one that no container has.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let gone = self.dir.join(format!("{REMOVED}{}", unique_suffix()));
        {
            let users = self.users();
            let volume = self.volume(name, &users)?;
            if !volume.containers.is_empty() {
                return Err(VolumeError::InUse(name.to_owned(), volume.containers.join(", ")));
            }
            let dir = self.dir.join(name);
            std::fs::rename(&dir, &gone).map_err(io_at(&dir))?;
        }
        self.events.volume(VolumeChange::Removed, name);
        remove_content(&gone).map_err(io_at(&gone))
    }

    /// The content of a volume for a task, which has it from now on. Made if there is none.
    pub fn hold(&self, name: &str, spec: &VolumeSpec, task: TaskId) -> Result<PathBuf, VolumeError> {
        {
            let mut users = self.users();
            self.make(name, spec)?;
            users.entry(name.to_owned()).or_default().insert(task);
        }
        let content = self.content(name);
        // What is made of devices may hang: that holds up those alone who want the same.
        let _one_at_a_time = self.lock(name)?;
        let spec = self.record(name)?.spec;
        let device =
            Device::of(&spec.options).map_err(|error| VolumeError::Options(name.to_owned(), error))?;
        if let Some(device) = device
            && !is_mount_point(&content).map_err(io_at(&content))?
        {
            device.mount(&content).map_err(|source| VolumeError::Mount { path: content.clone(), source })?;
        }
        Ok(content)
    }

    /// Fills an empty volume that the task holds: one at a time, and whole or not at all after a crash. `fill` says whether there
    /// was anything to fill it with; else it stays as it is.
    pub fn fill(
        &self,
        name: &str,
        task: TaskId,
        fill: impl Fn(&Path) -> io::Result<bool>,
    ) -> Result<(), VolumeError> {
        let content = self.content(name);
        let _one_at_a_time = self.lock(name)?;
        let is_alone = self.users().get(name).is_some_and(|users| *users == BTreeSet::from([task]));
        let filling = || -> io::Result<()> {
            if std::fs::read_dir(&content)?.next().is_some() {
                return Ok(());
            }
            if is_mount_point(&content)? {
                // What is copied to a device can't be moved there; others may change it meanwhile.
                return if is_alone { fill(&content).map(drop) } else { Ok(()) };
            }
            let partial = self.dir.join(name).join("_partial");
            remove_tree(&partial)?;
            std::fs::create_dir(&partial)?;
            if fill(&partial)? {
                nix::unistd::syncfs(&File::open(&partial)?)?;
                if is_alone {
                    return std::fs::rename(&partial, &content);
                }
                // What others have open can be filled and not replaced; nobody but us reaches what is moved.
                move_entries(&partial, &content)?;
            }
            remove_tree(&partial)
        };
        filling().map_err(io_at(&content))
    }

    /// A task has none any more.
    pub fn release(&self, task: TaskId) {
        let idle: Vec<String> = {
            let mut users = self.users();
            let had = users
                .iter_mut()
                .filter_map(|(name, tasks)| (tasks.remove(&task) && tasks.is_empty()).then(|| name.clone()));
            let idle = had.collect();
            users.retain(|_, tasks| !tasks.is_empty());
            idle
        };
        for name in idle {
            if let Err(error) = self.let_go(&name) {
                tracing::warn!(name, %error, "a volume's device stays mounted");
            }
        }
    }

    /// Unmounts its device, unless somebody has come meanwhile.
    fn let_go(&self, name: &str) -> Result<(), VolumeError> {
        if self.record(name)?.spec.options.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.lock(name)?;
        if self.users().contains_key(name) {
            return Ok(());
        }
        let content = self.content(name);
        unmount_all(&content).map_err(io_at(&content))
    }

    /// One that is there already stays as it is.
    fn make(&self, name: &str, spec: &VolumeSpec) -> Result<(), VolumeError> {
        if name.len() == 1 {
            return Err(VolumeError::ShortName(name.to_owned()));
        }
        if !is_name(name) {
            return Err(VolumeError::Name(name.to_owned()));
        }
        Device::of(&spec.options).map_err(|error| VolumeError::Options(name.to_owned(), error))?;
        let (content, at) = (self.content(name), self.dir.join(name).join(RECORD));
        if at.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&content).map_err(io_at(&content))?;
        // It is there from this step on.
        write_record(&at, &Record { spec: spec.clone(), created_at: now() }).map_err(io_at(at))?;
        self.events.volume(VolumeChange::Created, name);
        Ok(())
    }

    /// Where the content of a volume of this name is, once there is one.
    pub fn content_of(&self, name: &str) -> Result<PathBuf, VolumeError> {
        if is_name(name) { Ok(self.content(name)) } else { Err(VolumeError::Name(name.to_owned())) }
    }

    fn content(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(CONTENT)
    }

    fn record(&self, name: &str) -> Result<Record, VolumeError> {
        let at = self.dir.join(name).join(RECORD);
        match std::fs::read(&at) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| io_at(at)(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(VolumeError::Unknown(name.to_owned()))
            }
            Err(error) => Err(io_at(at)(error)),
        }
    }

    fn volume(&self, name: &str, users: &BTreeMap<String, BTreeSet<TaskId>>) -> Result<Volume, VolumeError> {
        if !is_name(name) {
            return Err(VolumeError::Unknown(name.to_owned()));
        }
        let Record { spec, created_at } = self.record(name)?;
        Ok(Volume {
            name: name.to_owned(),
            spec,
            created_at,
            mountpoint: self.content(name),
            is_anonymous: false,
            containers: users.get(name).into_iter().flatten().map(|task| task.container_id()).collect(),
        })
    }

    fn lock(&self, name: &str) -> Result<Flock<File>, VolumeError> {
        let at = self.dir.join(name).join("lock");
        let locked = || {
            let file = File::create(&at)?;
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))
        };
        locked().map_err(io_at(&at))
    }

    fn users(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<TaskId>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_record(at: &Path, record: &Record) -> io::Result<()> {
    write_durably(at, &serde_json::to_vec(record).expect("text and numbers"))
}

/// A volume of a daemon that kept no record gets one.
fn with_record(name: &str, dir: &Path) -> io::Result<()> {
    let at = dir.join(RECORD);
    if !is_name(name) || at.exists() {
        return Ok(());
    }
    let entries = std::fs::read_dir(dir)?.flatten();
    // Looked for by its name: it may be another file system's, whose server is gone.
    if !entries.map(|entry| entry.file_name()).any(|name| name == CONTENT) {
        return Ok(());
    }
    let created_at = Timestamp(modified_ns(&std::fs::metadata(dir)?));
    write_record(&at, &Record { spec: VolumeSpec::default(), created_at })
}

/// Docker wants two characters at least.
fn is_name(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins_well = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    begins_well && name.len() > 1 && name.chars().all(is_good)
}

/// A name that nobody has.
fn unique_name() -> String {
    drawn_name(&format!("{} {}", now().0, unique_suffix()))
}

/// The name of a volume that goes with its task: its `number`th.
pub(crate) fn anonymous_name(task: TaskId, number: usize) -> String {
    drawn_name(&format!("{task} {number}"))
}

fn drawn_name(from: &str) -> String {
    sha256_digest(from.as_bytes()).trim_start_matches("sha256:").to_owned()
}

/// Whatever is mounted below is unmounted first: it is not ours.
fn remove_content(dir: &Path) -> io::Result<()> {
    unmount_all(&dir.join(CONTENT))?;
    remove_tree(dir)
}

fn io_at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.into();
    move |source| VolumeError::Io { path, source }
}

fn modified_ns(there: &Metadata) -> i64 {
    there.mtime() * 1_000_000_000 + there.mtime_nsec()
}

fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMON: fn(&Path, &[(&str, u128)]) -> Volumes = |dir, users| {
        let users = users.iter().map(|(name, task)| ((*name).to_owned(), TaskId::from_bits(*task)));
        Volumes::open(dir.join("volumes"), users, Events::default()).expect("opened")
    };

    fn task(number: u128) -> TaskId {
        TaskId::from_bits(number)
    }

    fn labelled(value: &str) -> VolumeSpec {
        VolumeSpec { labels: BTreeMap::from([("a".into(), value.into())]), ..VolumeSpec::default() }
    }

    #[test]
    fn a_volume_stays_as_it_was_made_until_nobody_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = DAEMON(dir.path(), &[]);
        let made = volumes.create("data", &labelled("first")).expect("made");
        assert!(made.mountpoint.is_dir());
        let again = volumes.create("data", &labelled("second")).expect("it is there");
        assert_eq!(again, made);
        let content = volumes.hold("data", &VolumeSpec::default(), task(1)).expect("held");
        std::fs::write(content.join("a"), "kept").expect("written");
        volumes.hold("other", &labelled("x"), task(1)).expect("made by a task");
        let in_use = volumes.remove("data").expect_err("in use").to_string();
        assert_eq!(in_use, format!("remove data: volume is in use - [{}]", task(1).container_id()));
        // Who has it is known from the containers.
        let volumes = DAEMON(dir.path(), &[("data", 1)]);
        assert_eq!(volumes.list().expect("listed").len(), 2);
        assert_eq!(volumes.get("data").expect("there").spec, labelled("first"));
        volumes.remove("data").expect_err("in use still");
        volumes.release(task(1));
        volumes.remove("data").expect("removed");
        let gone = volumes.remove("data").expect_err("gone").to_string();
        assert_eq!(gone, "get data: no such volume");
        volumes.remove("other").expect("removed");
        assert_eq!(std::fs::read_dir(dir.path().join("volumes")).expect("there").count(), 0);
    }

    #[test]
    fn names_are_dockers() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = DAEMON(dir.path(), &[]);
        let short = volumes.create("a", &VolumeSpec::default()).expect_err("short").to_string();
        assert!(
            short.ends_with("volume name is too short, names should be at least two alphanumeric characters")
        );
        for name in ["../x", "a/b", ".hidden", "-x", "a b", "\u{fc}x"] {
            let error = volumes.create(name, &VolumeSpec::default()).expect_err(name).to_string();
            assert!(error.contains("includes invalid characters for a local volume name"), "{error}");
            assert!(volumes.get(name).is_err() && volumes.remove(name).is_err());
        }
        let drawn = volumes.create("", &VolumeSpec::default()).expect("made").name;
        assert_eq!(drawn.len(), 64);
        assert_eq!(anonymous_name(task(1), 1).len(), 64);
        assert_ne!(anonymous_name(task(1), 1), anonymous_name(task(1), 2));
    }

    #[test]
    fn a_copy_that_was_cut_off_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = DAEMON(dir.path(), &[]);
        let content = volumes.hold("data", &VolumeSpec::default(), task(1)).expect("held");
        let partial = dir.path().join("volumes/data/_partial");
        std::fs::create_dir(&partial).expect("made");
        std::fs::write(partial.join("torn"), "").expect("written");
        let copy = |to: &Path| std::fs::write(to.join("a"), "whole").map(|()| true);
        volumes.fill("data", task(1), copy).expect("filled");
        assert_eq!(std::fs::read_to_string(content.join("a")).expect("copied"), "whole");
        assert!(!content.join("torn").exists() && !partial.exists());
        std::fs::write(content.join("a"), "own").expect("written");
        volumes.fill("data", task(1), copy).expect("nothing to do");
        assert_eq!(std::fs::read_to_string(content.join("a")).expect("kept"), "own");
        assert_eq!(size_bytes(&content).expect("readable"), 3);
    }

    #[test]
    fn a_removal_that_was_cut_off_is_done_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a directory");
        DAEMON(dir.path(), &[]).create("data", &VolumeSpec::default()).expect("made");
        let volumes = dir.path().join("volumes");
        std::fs::rename(volumes.join("data"), volumes.join(".removed-x")).expect("renamed");
        assert_eq!(DAEMON(dir.path(), &[]).list().expect("listed"), []);
        assert_eq!(std::fs::read_dir(&volumes).expect("there").count(), 0);
    }

    #[test]
    fn what_is_wrong_with_one_hides_no_other_and_keeps_nobody_from_starting() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = dir.path().join("volumes");
        DAEMON(dir.path(), &[]).create("good", &VolumeSpec::default()).expect("made");
        for (name, file) in [("half", None), ("torn", Some(RECORD)), (".removed-y", None), ("former", None)] {
            std::fs::create_dir(volumes.join(name)).expect("made");
            if let Some(file) = file {
                std::fs::write(volumes.join(name).join(file), "{").expect("written");
            }
        }
        std::fs::create_dir(volumes.join("former").join(CONTENT)).expect("made");
        let daemon = DAEMON(dir.path(), &[]);
        let names: Vec<String> = daemon.list().expect("listed").into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["former", "good"], "one of a daemon that kept no record is a volume");
        daemon.create("half", &VolumeSpec::default()).expect("made whole");
        assert_eq!(daemon.list().expect("listed").len(), 3);
    }

    /// A container can make them deeper than a process may open directories.
    #[test]
    fn a_deep_volume_is_counted_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = DAEMON(dir.path(), &[]);
        let mut deep = volumes.create("deep", &VolumeSpec::default()).expect("made").mountpoint;
        let top = deep.clone();
        for _ in 0..1500 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).expect("made");
        std::fs::write(deep.join("f"), "1234").expect("written");
        assert_eq!(size_bytes(&top).expect("counted"), 4);
        volumes.remove("deep").expect("removed");
        assert_eq!(std::fs::read_dir(dir.path().join("volumes")).expect("there").count(), 0);
    }

    #[test]
    fn an_empty_volume_keeps_its_owner_unless_an_image_has_something_for_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = DAEMON(dir.path(), &[]);
        let content = volumes.hold("data", &VolumeSpec::default(), task(1)).expect("held");
        std::fs::set_permissions(&content, std::fs::Permissions::from_mode(0o705)).expect("changed");
        volumes.fill("data", task(1), |_| Ok(false)).expect("nothing to do");
        assert_eq!(std::fs::metadata(&content).expect("there").mode() & 0o777, 0o705);
        // Another has it too: it is filled where it is.
        volumes.hold("data", &VolumeSpec::default(), task(2)).expect("held");
        let inode = std::fs::metadata(&content).expect("there").ino();
        let copy = |to: &Path| std::fs::create_dir(to.join("sub")).map(|()| true);
        volumes.fill("data", task(2), copy).expect("filled");
        let after = std::fs::metadata(&content).expect("there");
        assert!(content.join("sub").is_dir() && after.ino() == inode && after.mode() & 0o777 == 0o705);
    }

    #[test]
    fn a_directory_that_is_bound_read_only_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("source");
        std::fs::create_dir(&source).expect("made");
        let volumes = DAEMON(dir.path(), &[]);
        let options = [("type", "none"), ("device", source.to_str().expect("text")), ("o", "bind,ro,nosuid")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let spec = VolumeSpec { options, ..VolumeSpec::default() };
        let content = volumes.hold("bound", &spec, task(1)).expect("held");
        let refused = std::fs::write(content.join("x"), "").map_err(|error| error.kind());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        volumes.release(task(1));
        assert_eq!(refused, Err(io::ErrorKind::ReadOnlyFilesystem));
        let own =
            mounts.lines().find(|line| line.contains(content.to_str().expect("text"))).expect("mounted");
        assert!(own.contains(" ro,nosuid"), "{own}");
        volumes.remove("bound").expect("removed");
        assert!(source.is_dir());
    }

    #[test]
    fn a_device_is_mounted_while_somebody_has_the_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volumes = DAEMON(dir.path(), &[]);
        let options = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,nosuid,mode=700")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let spec = VolumeSpec { options, ..VolumeSpec::default() };
        let content = volumes.create("fast", &spec).expect("made").mountpoint;
        let is_mounted = || is_mount_point(&content).expect("readable");
        assert!(!is_mounted());
        for number in [1, 2] {
            volumes.hold("fast", &VolumeSpec::default(), task(number)).expect("held");
            assert!(is_mounted());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let own =
            mounts.lines().find(|line| line.contains(content.to_str().expect("text"))).expect("mounted");
        assert!(own.contains("nosuid") && own.contains("size=1024k,mode=700"), "{own}");
        volumes.release(task(1));
        assert!(is_mounted());
        volumes.release(task(2));
        assert!(!is_mounted());
        volumes.remove("fast").expect("removed");
    }
}
