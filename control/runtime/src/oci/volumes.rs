//! What `docker volume` shows and does: the named ones, and those that go with their containers.

use control_model::spec::ANONYMOUS_VOLUME_LABEL;

use super::Oci;
use super::record::ContainerRecord;
use crate::volume::{Volume, VolumeError, VolumeSpec, size_bytes};

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

    /// Gives the bytes that it had.
    pub fn remove_volume(&self, name: &str) -> Result<u64, VolumeError> {
        let volume = self.volume(name)?;
        if volume.is_anonymous {
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
