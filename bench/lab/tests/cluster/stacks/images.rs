//! The images of the stacks: Debian's Redis and PostgreSQL, and small servers in the places of others' applications.

use std::time::Instant;

use anyhow::Context as _;

use crate::registry::Registry;
use crate::support::{Bench, Outcome};

/// An archive of a root file system, the name that it gets in a registry, and the instructions over it.
pub struct Image {
    archive: &'static str,
    name: &'static str,
    changes: &'static [&'static str],
}

const fn app(name: &'static str, changes: &'static [&'static str]) -> Image {
    Image { archive: "apps.tar", name, changes }
}

const REDIS: Image = Image {
    archive: "redis.tar",
    name: "redis:7",
    changes: &[
        "ENTRYPOINT [\"/entrypoint.sh\"]",
        // Debian's own configuration would have it listen on localhost alone; Docker's image has this built in.
        "CMD [\"redis-server\", \"--protected-mode\", \"no\"]",
        "ENV PATH=/bin:/usr/bin",
        "EXPOSE 6379",
        "VOLUME /data",
        "WORKDIR /data",
    ],
};

const POSTGRES: Image = Image {
    archive: "postgres.tar",
    name: "postgres:15",
    changes: &[
        "ENTRYPOINT [\"/entrypoint.sh\"]",
        "CMD [\"postgres\"]",
        "ENV PATH=/bin:/usr/lib/postgresql/15/bin PGDATA=/var/lib/postgresql/data",
        "EXPOSE 5432",
        "VOLUME /var/lib/postgresql/data",
    ],
};

pub const VOTING: &[Image] = &[
    REDIS,
    POSTGRES,
    app("dockersamples/examplevotingapp_vote:before", &["ENTRYPOINT [\"/apps\", \"vote\"]", "EXPOSE 80"]),
    app(
        "dockersamples/examplevotingapp_vote:after",
        &["ENTRYPOINT [\"/apps\", \"vote\"]", "EXPOSE 80", "ENV OPTION_A=Tea OPTION_B=Coffee"],
    ),
    app("dockersamples/examplevotingapp_result:before", &["ENTRYPOINT [\"/apps\", \"result\"]", "EXPOSE 80"]),
    app(
        "dockersamples/examplevotingapp_result:after",
        &["ENTRYPOINT [\"/apps\", \"result\"]", "EXPOSE 80", "ENV OPTION_A=Tea OPTION_B=Coffee"],
    ),
    app("dockersamples/examplevotingapp_worker:latest", &["ENTRYPOINT [\"/apps\", \"worker\"]"]),
    app(
        "dockersamples/visualizer:stable",
        &["ENTRYPOINT [\"/apps\", \"visualizer\"]", "EXPOSE 8080", "ENV PORT=8080"],
    ),
];

pub const WORDPRESS: &[Image] = &[
    app("wordpress:latest", &["ENTRYPOINT [\"/apps\"]", "CMD [\"wordpress\"]", "EXPOSE 80"]),
    app(
        "mysql:5.7",
        &["ENTRYPOINT [\"/apps\"]", "CMD [\"mysql\"]", "EXPOSE 3306 33060", "VOLUME /var/lib/mysql"],
    ),
];

pub const VISITS: &[Image] =
    &[REDIS, app("visits:1", &["ENTRYPOINT [\"/apps\"]", "CMD [\"visits\"]", "EXPOSE 80"])];

/// Into the registry, by a manager's `docker import` and `docker push`. From there on every node pulls what it runs.
pub fn push(bench: &Bench, registry: &Registry, images: &[Image]) -> Outcome {
    let manager = bench.live_manager()?;
    let start = Instant::now();
    for image in images {
        let tag = format!("{}/{}", registry.name(), image.name);
        bench.import_archive(&manager, &bench.archive(image.archive), &tag, image.changes)?;
        bench.lab.docker(&manager, &["push", &tag]).with_context(|| image.name)?;
    }
    println!("  {} images were in the registry after {:.1} s", images.len(), start.elapsed().as_secs_f64());
    Ok(())
}
