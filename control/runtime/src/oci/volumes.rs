//! What `docker volume` shows and does: the named ones, and those that go with their containers.

use std::collections::BTreeMap;

use control_model::spec::ANONYMOUS_VOLUME_LABEL;

use super::Oci;
use super::record::ContainerRecord;
use crate::volume::{Volume, VolumeError, VolumeSpec, size_bytes};

/// Bytes on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Of volumes, by name.
    pub volumes: BTreeMap<String, u64>,
    /// What containers have changed of their images, by id.
    pub containers: BTreeMap<String, u64>,
}

impl Oci {
    /// All of them, by name. Blocks, as everything here does.
    pub fn volumes(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut all = self.0.volumes.list()?;
        all.extend(self.list_containers().iter().flat_map(|container| anonymous(&container.record)));
        all.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    pub fn volume(&self, name: &str) -> Result<Volume, VolumeError> {
        let containers = self.list_containers();
        let found = containers.iter().flat_map(|one| anonymous(&one.record)).find(|one| one.name == name);
        found.map_or_else(|| self.0.volumes.get(name), Ok)
    }

    /// One that is there already is left as it is; an empty name draws one.
    pub fn create_volume(&self, name: &str, spec: &VolumeSpec) -> Result<Volume, VolumeError> {
        self.0.volumes.create(name, spec)
    }

    /// What is elsewhere is not counted, nor what can't be read: it may go meanwhile.
    pub fn disk_use(&self) -> Result<DiskUse, VolumeError> {
        let own = self.volumes()?.into_iter().filter(|volume| volume.spec.options.is_empty());
        let volumes = own.filter_map(|volume| Some((volume.name, size_bytes(&volume.mountpoint).ok()?)));
        let containers = self.containers().values().cloned().collect::<Vec<_>>();
        let containers = containers.into_iter().filter_map(|container| {
            Some((container.paths.container_id.clone(), size_bytes(&container.paths.upper()).ok()?))
        });
        Ok(DiskUse { volumes: volumes.collect(), containers: containers.collect() })
    }

    /// Gives the bytes that it had.
    pub fn remove_volume(&self, name: &str) -> Result<u64, VolumeError> {
        let volume = self.volume(name)?;
        if !volume.containers.is_empty() {
            return Err(VolumeError::InUse(name.to_owned(), volume.containers.join(", ")));
        }
        // Of what is elsewhere nothing goes.
        let size =
            if volume.spec.options.is_empty() { size_bytes(&volume.mountpoint).unwrap_or(0) } else { 0 };
        self.0.volumes.remove(name)?;
        Ok(size)
    }
}

fn anonymous(record: &ContainerRecord) -> impl Iterator<Item = Volume> {
    record.mounts.iter().filter(|mount| mount.is_anonymous).map(|mount| Volume {
        name: mount.name.clone(),
        spec: VolumeSpec {
            labels: [(ANONYMOUS_VOLUME_LABEL.to_owned(), String::new())].into(),
            ..VolumeSpec::default()
        },
        created_at: record.created_at,
        mountpoint: mount.source.clone(),
        is_anonymous: true,
        containers: vec![record.container_id.clone()],
    })
}
