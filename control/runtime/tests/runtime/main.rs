//! Containers and images with the real programs. Needs root, runc, conmon, skopeo, umoci and docker-registry.

mod common;
mod containers;
mod control;
mod events;
mod exec;
mod image_health;
mod images;
mod logging;
mod standalone;
mod volumes;
