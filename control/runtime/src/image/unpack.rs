//! Unpacks an image's layers, once, into a directory that is only ever read.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::MediaType;

use super::build::descriptor;
use super::content::{Content, hex_of};
use super::error::ImageError;
use super::index::ImageRecord;
use crate::files::{remove_tree, unique_suffix};

/// The image's flattened root file system under `rootfs_dir`, unpacked now if it was not. The rename at the end makes
/// it whole or absent after a crash; the lock keeps a second process from unpacking the same image.
pub(super) async fn unpacked(
    content: &Content,
    image: &ImageRecord,
    rootfs_dir: &Path,
) -> Result<PathBuf, ImageError> {
    let target = rootfs_dir.join(hex_of(&image.id)?);
    if target.is_dir() {
        return Ok(target);
    }
    let lock_path = target.with_extension("lock");
    let lock =
        tokio::task::spawn_blocking(move || lock(&lock_path)).await.expect("locking does not panic")?;
    if !target.is_dir() {
        let partial = target.with_extension(unique_suffix());
        let result = unpack(content, image, &partial).await;
        let result = result
            .and_then(|()| sync(&partial))
            .and_then(|()| std::fs::rename(&partial, &target).map_err(ImageError::io(&target)));
        if result.is_err() {
            let _ = remove_tree(&partial);
        }
        result?;
    }
    drop(lock);
    Ok(target)
}

fn lock(path: &Path) -> Result<Flock<std::fs::File>, ImageError> {
    let file = std::fs::File::create(path).map_err(ImageError::io(path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| ImageError::io(path)(errno.into()))
}

/// Writes the directory's file system out: a rename may reach the disk before the files' content does.
fn sync(dir: &Path) -> Result<(), ImageError> {
    let opened = std::fs::File::open(dir).map_err(ImageError::io(dir))?;
    nix::unistd::syncfs(&opened).map_err(|errno| ImageError::io(dir)(errno.into()))
}

async fn unpack(content: &Content, image: &ImageRecord, target: &Path) -> Result<(), ImageError> {
    let size = content.manifest_len(&image.manifest)?;
    let manifest = descriptor(MediaType::ImageManifest, &image.manifest, size)?;
    let work = content.work_layout(Some(&manifest))?;
    let mut command = tokio::process::Command::new("umoci");
    command.args(["raw", "unpack", "--image", &work.image_name()]).arg(target);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(ImageError::io("umoci"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ImageError::Tool { program: "umoci", verb: format!("unpack of {}", image.id), output: stderr })
}
