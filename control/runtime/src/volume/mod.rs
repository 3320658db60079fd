//! This node's named volumes: directories that outlive containers (moby `volume/local`). One is made when it is first asked for, by
//! a user or a task, and goes when a user says so and no container has it.

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

pub use options::OptionError;

use self::options::Device;
use crate::events::{Events, VolumeChange};
use crate::files::{remove_tree, unique_suffix, write_durably};
use crate::image::sha256_digest;
use crate::unmount::{is_mount_point, unmount_all};

/// Beginning of the name of a directory that is being removed: no volume's.
const REMOVED: &str = ".removed-";

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
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                remove_content(&entry.path())?;
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
        names.iter().map(|name| self.volume(name, &users)).collect()
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
            // Nothing of what is elsewhere is to go with it.
            unmount_all(&volume.mountpoint).map_err(io_at(&volume.mountpoint))?;
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

    /// Fills an empty volume that the task holds: one at a time, and whole or not at all after a crash.
    pub fn fill(
        &self,
        name: &str,
        task: TaskId,
        fill: impl Fn(&Path) -> io::Result<()>,
    ) -> Result<(), VolumeError> {
        let content = self.content(name);
        let _one_at_a_time = self.lock(name)?;
        // What others have open, or is a device's, can be filled and not replaced.
        let is_alone = self.users().get(name).is_some_and(|users| *users == BTreeSet::from([task]));
        let filling = || -> io::Result<()> {
            if std::fs::read_dir(&content)?.next().is_some() {
                return Ok(());
            }
            if !is_alone || is_mount_point(&content)? {
                return fill(&content);
            }
            let partial = self.dir.join(name).join("_partial");
            remove_tree(&partial)?;
            std::fs::create_dir(&partial)?;
            fill(&partial)?;
            nix::unistd::syncfs(&File::open(&partial)?)?;
            std::fs::rename(&partial, &content)
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
        if !is_name(name) {
            return Err(VolumeError::Name(name.to_owned()));
        }
        Device::of(&spec.options).map_err(|error| VolumeError::Options(name.to_owned(), error))?;
        let (dir, content) = (self.dir.join(name), self.content(name));
        if content.is_dir() {
            return Ok(());
        }
        std::fs::create_dir_all(&dir).map_err(io_at(&dir))?;
        let record = Record { spec: spec.clone(), created_at: now() };
        let at = dir.join("volume.json");
        let text = serde_json::to_vec(&record).expect("text and numbers");
        write_durably(&at, &text).map_err(io_at(at))?;
        // It is there from this step on.
        std::fs::create_dir(&content).map_err(io_at(&content))?;
        self.events.volume(VolumeChange::Created, name);
        Ok(())
    }

    /// Where the content of a volume of this name is, once there is one.
    pub fn content_of(&self, name: &str) -> Result<PathBuf, VolumeError> {
        if is_name(name) { Ok(self.content(name)) } else { Err(VolumeError::Name(name.to_owned())) }
    }

    fn content(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("_data")
    }

    fn record(&self, name: &str) -> Result<Record, VolumeError> {
        let at = self.dir.join(name).join("volume.json");
        match std::fs::read(&at) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| io_at(at)(error.into())),
            // Of a daemon that kept none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let there = std::fs::metadata(self.dir.join(name)).map_err(io_at(at))?;
                Ok(Record { spec: VolumeSpec::default(), created_at: Timestamp(modified_ns(&there)) })
            }
            Err(error) => Err(io_at(at)(error)),
        }
    }

    fn volume(&self, name: &str, users: &BTreeMap<String, BTreeSet<TaskId>>) -> Result<Volume, VolumeError> {
        if !is_name(name) || !self.content(name).is_dir() {
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

/// Bytes of a volume's files, links not followed.
pub(crate) fn size_bytes(content: &Path) -> io::Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(content)? {
        let entry = entry?;
        let there = entry.metadata()?;
        size += if there.is_dir() { size_bytes(&entry.path())? } else { there.len() };
    }
    Ok(size)
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
    unmount_all(&dir.join("_data"))?;
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
        for name in ["a", "../x", "a/b", ".hidden", "-x", "a b", "\u{fc}x"] {
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
        let copy = |to: &Path| std::fs::write(to.join("a"), "whole");
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
        assert!(own.contains("nosuid") && own.ends_with("size=1024k,mode=700"), "{own}");
        volumes.release(task(1));
        assert!(is_mounted());
        volumes.release(task(2));
        assert!(!is_mounted());
        volumes.remove("fast").expect("removed");
    }
}
