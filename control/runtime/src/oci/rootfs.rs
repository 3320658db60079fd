//! A container's root file system: an overlay of the image and the container's own changes, and safe looks into it.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use crate::inside::patiently;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};

use super::paths::{TaskPaths, fits_overlay_options};

/// A passwd or group file larger than this is not read: images come from outside.
const ACCOUNT_FILE_LEN_MAX: u64 = 1 << 20;

/// Mounts the overlay over `image_rootfs`. The caller has made the directories.
pub(super) fn mount_overlay(paths: &TaskPaths, image_rootfs: &Path) -> io::Result<()> {
    let (lower, upper, work) = (image_rootfs, paths.upper(), paths.work());
    for dir in [lower, &upper, &work] {
        if !fits_overlay_options(dir) {
            let text =
                format!("{}: overlay directories can't have ':', ',' or '\\' in their path", dir.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &paths.rootfs(), Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(
        |errno| match errno {
            Errno::EINVAL => io::Error::other(format!(
                "overlay in {}: {errno} (the state directory must be on a file system that can hold an overlay's \
                 changes: not on an overlay itself)",
                paths.dir.display()
            )),
            other => other.into(),
        },
    )
}

/// The text of a file of the image (`etc/passwd`); empty if there is none. Links can't lead out of the image.
pub(super) fn read_inside(rootfs: &Path, file: &str) -> io::Result<String> {
    let fd = match open_inside(rootfs, file, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(errno.into()),
    };
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(ACCOUNT_FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Copies what the image has at `path` into the empty directory `target`, owners and modes included. False of an image without
/// that directory.
pub(super) fn copy_out(rootfs: &Path, path: &str, target: &Path) -> io::Result<bool> {
    let source = match open_inside(rootfs, path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    let through_fd = format!("/proc/{}/fd/{}/.", std::process::id(), source.as_raw_fd());
    let output = Command::new("cp").args(["-a", "--", &through_fd]).arg(target).output()?;
    if output.status.success() {
        return Ok(true);
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn open_inside(rootfs: &Path, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let root =
        std::fs::File::open(rootfs).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    patiently(|| openat2(&root, path, how))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_an_image_stay_inside() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("etc")).expect("made");
        std::fs::write(dir.path().join("etc/real"), "inside").expect("written");
        std::os::unix::fs::symlink("/etc/real", dir.path().join("etc/passwd")).expect("linked");
        assert_eq!(read_inside(dir.path(), "etc/passwd").expect("readable"), "inside");
        assert_eq!(read_inside(dir.path(), "etc/group").expect("absent is empty"), "");
        std::os::unix::fs::symlink("../../../../etc/hostname", dir.path().join("etc/out")).expect("linked");
        assert_eq!(read_inside(dir.path(), "etc/out").expect("stays inside"), "");
    }

    #[test]
    fn volumes_start_with_the_images_content() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("root/data/sub")).expect("made");
        std::fs::write(dir.path().join("root/data/sub/file"), "x").expect("written");
        let target = dir.path().join("volume");
        std::fs::create_dir(&target).expect("made");
        assert!(copy_out(&dir.path().join("root"), "/data", &target).expect("copied"));
        assert_eq!(std::fs::read_to_string(target.join("sub/file")).expect("copied"), "x");
        assert!(!copy_out(&dir.path().join("root"), "/none", &target).expect("absent is fine"));
    }
}
