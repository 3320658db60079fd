use control_ca::{NodeKey, RootCa};
use control_manager::clock;
use control_model::{ClusterId, NodeId, PeerIdentity};

use super::*;

const LIFE: std::time::Duration = std::time::Duration::from_hours(24);

/// A manager's directory with a data key that lies open, as it is after `swarm init`.
struct Disk {
    _tmp: tempfile::TempDir,
    dir: SwarmDir,
    pem: IdentityPem,
}

impl Disk {
    fn new() -> (Self, Kek) {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = SwarmDir::new(tmp.path().join("swarm"));
        let disk = Self { _tmp: tmp, dir, pem: pem(Role::Manager) };
        let kek = new_kek(&disk.dir, None, 0).expect("written");
        disk.write_data_key(&kek);
        store_identity(&disk.dir, &disk.pem, Some(&kek)).expect("written");
        (disk, kek)
    }

    /// The file alone: no Raft is needed to lock it.
    fn write_data_key(&self, kek: &Kek) {
        std::fs::create_dir_all(self.dir.raft()).expect("made");
        DataKey::create(&self.dir.raft(), 7, kek).expect("written");
    }

    fn rewrap(&self, now: &Kek, cluster: &Cluster) -> Option<Kek> {
        rewrap(&self.dir, &self.pem, now, cluster).expect("written")
    }

    /// All that is on the disk.
    fn bytes(&self) -> Vec<u8> {
        let read = |path: std::path::PathBuf| std::fs::read(path).unwrap_or_default();
        let root = self.dir.raft().with_file_name("");
        ["node.pem", "root.pem", "raft.key", "raft/data.key"]
            .into_iter()
            .flat_map(|n| read(root.join(n)))
            .collect()
    }

    fn has(&self, secret: &[u8]) -> bool {
        self.bytes().windows(secret.len()).any(|window| window == secret)
    }
}

fn pem(role: Role) -> IdentityPem {
    let root = RootCa::generate(clock::now()).expect("made");
    let key = NodeKey::generate().expect("made");
    let identity = PeerIdentity { node_id: NodeId::from_bits(1), role, cluster_id: ClusterId::from_bits(2) };
    let certificate = root.issue(&key.csr_pem, identity, clock::now(), LIFE).expect("signed");
    IdentityPem { certificate, key: key.key_pem, roots: root.cert_pem().to_owned() }
}

fn cluster(version: u64, key: Option<u8>) -> Cluster {
    let mut cluster = Cluster::new(ClusterId::from_bits(2));
    cluster.meta.version = version;
    cluster.ca.unlock_key = key.map(|byte| UnlockKey([byte; 32]));
    cluster
}

fn opens(disk: &Disk, key: Option<u8>) -> Result<String, LockError> {
    let given = key.map(|byte| UnlockKey([byte; 32]));
    open(&disk.dir, given.as_ref()).map(|opened| opened.pem.key.trim().to_owned())
}

#[test]
fn a_lock_is_put_on_changed_and_taken_off() {
    let (disk, kek) = Disk::new();
    let own = disk.pem.key.trim().to_owned();
    let secret = own.lines().nth(1).expect("a key").as_bytes().to_vec();
    assert_eq!(opens(&disk, None).expect("open"), own);
    assert!(disk.has(&secret));

    let kek = disk.rewrap(&kek, &cluster(10, Some(1))).expect("locked");
    assert!(!disk.has(&secret) && !disk.has(&[1; 32]), "nothing that opens it lies on the disk");
    assert!(matches!(opens(&disk, None), Err(LockError::Locked)));
    assert!(matches!(opens(&disk, Some(2)), Err(LockError::WrongKey)));
    assert_eq!(opens(&disk, Some(1)).expect("unlocked"), own);
    assert_eq!(disk.rewrap(&kek, &cluster(11, Some(1))), None, "the same key is not written again");

    let kek = disk.rewrap(&kek, &cluster(20, Some(2))).expect("rotated");
    assert!(matches!(opens(&disk, Some(1)), Err(LockError::WrongKey)));
    assert_eq!(opens(&disk, Some(2)).expect("unlocked"), own);

    assert!(disk.rewrap(&kek, &cluster(30, None)).is_some_and(|kek| !kek.wrapping().is_locked));
    assert_eq!(opens(&disk, None).expect("open"), own);
}

#[test]
fn an_older_picture_of_the_cluster_changes_nothing() {
    let (disk, kek) = Disk::new();
    let kek = disk.rewrap(&kek, &cluster(20, Some(2))).expect("locked");
    // As a replica sees it that applies its log anew after a restart.
    for older in [cluster(10, None), cluster(15, Some(1))] {
        assert_eq!(disk.rewrap(&kek, &older), None);
    }
    let opened = open(&disk.dir, Some(&UnlockKey([2; 32]))).expect("unlocked").kek.expect("a manager");
    assert_eq!(opened.wrapping().version, 20, "the disk remembers it");
    assert!(opens(&disk, Some(2)).is_ok());
}

#[test]
fn a_crash_at_any_write_leaves_one_key_that_opens_the_disk() {
    let (disk, kek) = Disk::new();
    let own = disk.pem.key.trim().to_owned();
    let data_key = DataKey::open(&disk.dir.raft(), &kek).expect("open");
    // On the way to the lock: the node's key is sealed, the data key is not yet locked.
    disk.dir
        .store_identity(&disk.pem, Some(&data_key.seal(NODE_KEY, disk.pem.key.as_bytes())))
        .expect("written");
    assert_eq!(opens(&disk, None).expect("open"), own);
    // The data key is locked, the one beside it is not yet removed.
    data_key.wrap(&Kek::with([1; 32], Wrapping { is_locked: true, version: 5 })).expect("written");
    assert!(matches!(opens(&disk, None), Err(LockError::Locked)));
    assert_eq!(opens(&disk, Some(1)).expect("unlocked"), own);
    // On the way back: a key lies there, the data key is still locked.
    disk.dir.store_raft_key(&[9; 32]).expect("written");
    assert!(matches!(opens(&disk, None), Err(LockError::Locked)));
    assert_eq!(opens(&disk, Some(1)).expect("unlocked"), own);
    // The data key is open, the node's key still sealed.
    data_key.wrap(&Kek::with([9; 32], Wrapping { is_locked: false, version: 6 })).expect("written");
    assert_eq!(opens(&disk, None).expect("open"), own);
}

#[test]
fn a_rotation_that_was_cut_leaves_the_key_before_it_or_the_one_after() {
    let (disk, kek) = Disk::new();
    let own = disk.pem.key.trim().to_owned();
    let kek = disk.rewrap(&kek, &cluster(10, Some(1))).expect("locked");
    // The cluster has the new key: this manager is killed before it writes anything, and after it sealed the node's key.
    let data_key = DataKey::open(&disk.dir.raft(), &kek).expect("open");
    for sealed in [None, Some(data_key.seal(NODE_KEY, disk.pem.key.as_bytes()))] {
        if let Some(sealed) = sealed {
            disk.dir.store_identity(&disk.pem, Some(&sealed)).expect("written");
        }
        assert!(matches!(opens(&disk, Some(2)), Err(LockError::WrongKey)));
        assert_eq!(opens(&disk, Some(1)).expect("unlocked"), own);
    }
    // A half-written file of the new key lies beside it.
    std::fs::write(disk.dir.raft().join("data.tmp"), [0; 7]).expect("written");
    let opened = open(&disk.dir, Some(&UnlockKey([1; 32]))).expect("unlocked").kek.expect("a manager");
    // It runs again, and does what was left to do.
    disk.rewrap(&opened, &cluster(20, Some(2))).expect("rotated");
    assert!(matches!(opens(&disk, Some(1)), Err(LockError::WrongKey)));
    assert_eq!(opens(&disk, Some(2)).expect("unlocked"), own);
}

#[test]
fn a_worker_is_never_locked() {
    let (disk, kek) = Disk::new();
    let kek = disk.rewrap(&kek, &cluster(10, Some(1))).expect("locked");
    // It was demoted, and crashed before its Raft data was removed.
    let worker = pem(Role::Worker);
    store_identity(&disk.dir, &worker, Some(&kek)).expect("written");
    let opened = open(&disk.dir, None).expect("open");
    assert_eq!((opened.pem.key.trim(), opened.kek), (worker.key.trim(), None));
}
