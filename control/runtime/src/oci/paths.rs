//! Where one daemon's and one task's files are.

use std::path::{Path, PathBuf};

use control_model::TaskId;

/// Directories of one executor.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

impl Layout {
    pub fn tasks(&self) -> PathBuf {
        self.state_dir.join("tasks")
    }

    pub fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    pub fn volumes(&self) -> PathBuf {
        self.state_dir.join("volumes")
    }

    /// The OCI runtime's own state; gone after a reboot, as the containers are.
    pub fn runtime_root(&self) -> PathBuf {
        self.run_dir.join("oci")
    }

    pub fn task(&self, id: TaskId) -> TaskPaths {
        TaskPaths {
            dir: self.tasks().join(id.to_string()),
            run: self.run_dir.join("tasks").join(id.to_string()),
            container_id: id.container_id(),
        }
    }
}

/// Directories of one task.
#[derive(Debug, Clone)]
pub(super) struct TaskPaths {
    /// Survives a reboot.
    pub dir: PathBuf,
    /// Does not: process ids, sockets.
    pub run: PathBuf,
    pub container_id: String,
}

impl TaskPaths {
    pub fn record(&self) -> PathBuf {
        self.dir.join("task.json")
    }

    /// The OCI bundle: `config.json`.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Mount point of the overlay.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Content of the task's volumes that have no name.
    pub fn anonymous_volume(&self, number: usize) -> PathBuf {
        self.dir.join("volumes").join(number.to_string())
    }

    /// `hosts`, `hostname` and `resolv.conf`.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.dir.join("etc").join(name)
    }

    /// The container's output: conmon's `k8s-file` lines.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Where conmon writes [`Self::exit_code`].
    pub fn exit_dir(&self) -> PathBuf {
        self.dir.join("exit")
    }

    pub fn exit_code(&self) -> PathBuf {
        self.exit_dir().join(&self.container_id)
    }

    /// Mount point of the secrets' and configs' files.
    pub fn dependencies(&self) -> PathBuf {
        self.run.join("dependencies")
    }

    pub fn conmon_pid(&self) -> PathBuf {
        self.run.join("conmon.pid")
    }

    pub fn container_pid(&self) -> PathBuf {
        self.run.join("container.pid")
    }

    /// The process that a health probe is, as the runtime wants it described.
    pub fn probe_process(&self) -> PathBuf {
        self.bundle().join("probe.json")
    }

    pub fn probe_pid(&self) -> PathBuf {
        self.run.join("probe.pid")
    }

    /// All directories that must exist before the container does.
    pub fn directories(&self) -> [PathBuf; 7] {
        [
            self.bundle(),
            self.rootfs(),
            self.upper(),
            self.work(),
            self.dir.join("etc"),
            self.exit_dir(),
            self.run.clone(),
        ]
    }
}

/// Whether the path is safe to be named in an overlay's mount options.
pub(super) fn fits_overlay_options(path: &Path) -> bool {
    !path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b':' | b',' | b'\\'))
}
