//! The runtime's words as the API's.

use std::collections::BTreeMap;

use control_api::engine::{
    Container, ContainerChange, CpuUsage, EngineError, EngineEvent, EngineEventKind, Health, HealthProbe,
    Image, ImageChange, ImageConfig, InterfaceUsage, MountPoint, Usage, Volume, VolumeChange,
};
use control_api::standalone::{Own, Place};
use control_model::Timestamp;
use control_runtime::image::{ImageDetails, ImageError, PullError, Reference};
use control_runtime::{
    ContainerChange as container, ContainerInfo, ContainerRecord, ControlError, CopyError,
    ImageChange as image, Phase, Stage, StandaloneError, StandaloneRecord, VolumeChange as volume,
};

pub(super) fn not_done(error: ControlError) -> EngineError {
    match error {
        ControlError::Unknown(_) => EngineError::NotFound(error.to_string()),
        ControlError::NotRunning(_) => EngineError::Conflict(error.to_string()),
        ControlError::Signal(_) | ControlError::Ps(_) => EngineError::Invalid(error.to_string()),
        ControlError::Failed(text) => EngineError::Failed(text),
    }
}

pub(super) fn not_copied(error: &CopyError, container: &str, path: &str) -> EngineError {
    match error {
        CopyError::NotFound => {
            EngineError::NotFound(format!("Could not find the file {path} in container {container}"))
        }
        CopyError::NotADirectory | CopyError::Refused(_) => EngineError::Invalid(error.to_string()),
        CopyError::ReadOnly => EngineError::Forbidden(error.to_string()),
        CopyError::NotMounted => EngineError::Conflict(error.to_string()),
        CopyError::Io(_) => EngineError::Failed(error.to_string()),
    }
}

pub(super) fn to_usage(usage: control_runtime::Usage) -> Usage {
    let cpu = usage.cpu;
    let io = usage.io.into_iter().map(|(device, io)| (device, (io.read_bytes, io.written_bytes)));
    let interface = |one: control_runtime::InterfaceUsage| InterfaceUsage {
        rx_bytes: one.rx_bytes,
        rx_packets: one.rx_packets,
        rx_errors: one.rx_errors,
        rx_dropped: one.rx_dropped,
        tx_bytes: one.tx_bytes,
        tx_packets: one.tx_packets,
        tx_errors: one.tx_errors,
        tx_dropped: one.tx_dropped,
    };
    Usage {
        cpu: CpuUsage {
            total_ns: cpu.total_ns,
            user_ns: cpu.user_ns,
            kernel_ns: cpu.kernel_ns,
            n_periods: cpu.n_periods,
            n_throttled: cpu.n_throttled,
            throttled_ns: cpu.throttled_ns,
            host_ns: cpu.host_ns,
            n_cpus: cpu.n_cpus,
        },
        memory_bytes: usage.memory.bytes,
        memory_limit_bytes: usage.memory.limit_bytes,
        memory_parts: usage.memory.parts,
        n_pids: usage.n_pids,
        pids_limit: usage.pids_limit,
        io: io.collect(),
        interfaces: usage.interfaces.into_iter().map(|(name, one)| (name, interface(one))).collect(),
    }
}

pub(super) fn to_volume(volume: control_runtime::Volume) -> Volume {
    Volume {
        name: volume.name,
        labels: volume.spec.labels,
        options: volume.spec.options,
        created: volume.created_at,
        mountpoint: volume.mountpoint.display().to_string(),
        containers: volume.containers,
    }
}

pub(super) fn to_mount_point(mount: control_runtime::MountPoint) -> MountPoint {
    MountPoint {
        kind: mount.kind,
        name: mount.name,
        source: mount.source.display().to_string(),
        target: mount.target,
        read_only: mount.read_only,
    }
}

pub(super) fn parse(reference: &str) -> Result<Reference, EngineError> {
    Reference::parse(reference).map_err(|error| EngineError::Invalid(error.to_string()))
}

/// The API's error of an image operation's.
pub(super) fn to_error(error: ImageError) -> EngineError {
    let text = error.to_string();
    match error {
        ImageError::NotFound(name) => EngineError::NoSuchImage(name),
        ImageError::Pull(PullError::ManifestUnknown(_) | PullError::Denied(_)) => EngineError::NotFound(text),
        ImageError::Reference(_) | ImageError::Change(_) | ImageError::BadArchive(_) => {
            EngineError::Invalid(text)
        }
        ImageError::SeveralImages => EngineError::Unsupported(text),
        ImageError::Login { .. } => EngineError::Unauthorized(text),
        ImageError::InUse { .. } => EngineError::Conflict(text),
        ImageError::Pull(PullError::Registry { .. })
        | ImageError::Push(_)
        | ImageError::Tool { .. }
        | ImageError::Io { .. }
        | ImageError::Damaged { .. } => EngineError::Failed(text),
    }
}

pub(super) fn to_image(details: ImageDetails) -> Image {
    let ImageDetails { record, names, configuration, health } = details;
    let config = configuration.config().clone().unwrap_or_default();
    Image {
        created: parse_time(&record.created),
        size_bytes: record.size_bytes,
        os: configuration.os().to_string(),
        architecture: configuration.architecture().to_string(),
        layers: configuration.rootfs().diff_ids().clone(),
        config: ImageConfig {
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            command: config.cmd().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            labels: config.labels().clone().unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
            exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().unwrap_or_default(),
            health,
        },
        comment: comment(&configuration),
        tags: names,
        digests: record.repo_digests.iter().map(|digest| familiar(digest)).collect(),
        id: record.id,
    }
}

/// Docker shows the last layer's comment as the image's.
pub(super) fn comment(configuration: &oci_spec::image::ImageConfiguration) -> String {
    let last = configuration.history().as_ref().and_then(|history| history.last());
    last.and_then(|entry| entry.comment().clone()).unwrap_or_default()
}

/// Docker's short form of a full reference.
pub(super) fn familiar(reference: &str) -> String {
    Reference::parse(reference).map_or_else(|_| reference.to_owned(), |reference| reference.familiar())
}

/// RFC 3339; nothing for an image that does not say.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok().map(Timestamp)
}

pub(super) fn to_container(phase: Option<Phase>, info: ContainerInfo) -> Container {
    let mut container = of_record(info.record, info.health);
    if let (Some(own), Some(phase)) = (&mut container.own, phase) {
        own.is_restarting = phase == Phase::Restarting;
        own.is_removing = phase == Phase::Removing;
    }
    container
}

fn to_own(own: StandaloneRecord) -> Own {
    let place = |place: control_runtime::Place| Place {
        address: place.address,
        gateway: place.gateway,
        mac: place.mac,
    };
    Own { spec: own.spec, n_restarts: own.n_restarts, place: own.place.map(place), ..Own::default() }
}

pub(super) fn not_standing(error: StandaloneError) -> EngineError {
    let text = error.to_string();
    match error {
        StandaloneError::Image(ImageError::NotFound(name)) => EngineError::NoSuchImage(familiar(&name)),
        StandaloneError::Image(error) => to_error(error),
        StandaloneError::Refused(_) => EngineError::Invalid(text),
        StandaloneError::Conflict(_) => EngineError::Conflict(text),
        StandaloneError::NoSwarm(_) => EngineError::Busy(text),
        StandaloneError::NoContainer(_) => EngineError::NotFound(text),
        StandaloneError::Failed(_) => EngineError::Failed(text),
    }
}

pub(super) fn of_record(record: ContainerRecord, health: Option<control_runtime::Health>) -> Container {
    let host_ports = record.host_ports().cloned().collect();
    let (pid, started) = match record.stage {
        Stage::Started { pid, at } => (pid, Some(at)),
        Stage::Prepared | Stage::Starting => (0, None),
    };
    Container {
        task: record.task,
        own: record.standalone.map(|own| Box::new(to_own(*own))),
        name: record.name,
        hostname: record.hostname,
        tty: record.tty,
        log: record.log,
        host_ports,
        exposed_ports: record.exposed_ports,
        mounts: record.mounts.into_iter().map(to_mount_point).collect(),
        id: record.container_id,
        image: record.image,
        image_id: record.image_id,
        command: record.command,
        env: record.env,
        user: record.user,
        working_dir: record.working_dir,
        labels: record.labels,
        created: record.created_at,
        started,
        finished: record.ended.map(|ended| ended.at),
        running: started.is_some() && record.ended.is_none(),
        pid,
        exit_code: record.ended.map(|ended| ended.code).unwrap_or_default(),
        out_of_memory: record.ended.is_some_and(|ended| ended.out_of_memory),
        health: health.map(to_health),
    }
}

pub(super) fn to_event(event: control_runtime::Event) -> EngineEvent {
    let kind = match event.kind {
        control_runtime::EventKind::Container { change, record } => EngineEventKind::Container {
            change: match change {
                container::Created => ContainerChange::Created,
                container::Started => ContainerChange::Started,
                container::Signalled(signal) => ContainerChange::Signalled(signal),
                container::OutOfMemory => ContainerChange::OutOfMemory,
                container::Ended => ContainerChange::Ended,
                container::Stopped => ContainerChange::Stopped,
                container::Health(status) => ContainerChange::Health(status),
                container::Removed => ContainerChange::Removed,
            },
            container: Box::new(of_record(*record, None)),
        },
        control_runtime::EventKind::Image { change, id, name } => EngineEventKind::Image {
            change: match change {
                image::Pulled => ImageChange::Pulled,
                image::Loaded => ImageChange::Loaded,
                image::Imported => ImageChange::Imported,
                image::Tagged => ImageChange::Tagged,
                image::Untagged => ImageChange::Untagged,
                image::Deleted => ImageChange::Deleted,
            },
            id,
            name,
        },
        control_runtime::EventKind::Volume { change, name } => EngineEventKind::Volume {
            change: match change {
                volume::Created => VolumeChange::Created,
                volume::Removed => VolumeChange::Removed,
            },
            name,
        },
    };
    EngineEvent { at: event.at, kind }
}

pub(super) fn to_health(health: control_runtime::Health) -> Health {
    let probe = |probe: control_runtime::Probe| HealthProbe {
        start: probe.start,
        end: probe.end,
        exit_code: probe.exit_code,
        output: probe.output,
    };
    Health {
        status: health.status,
        failing_streak: health.failing_streak,
        log: health.log.into_iter().map(probe).collect(),
    }
}
