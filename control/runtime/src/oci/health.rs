//! Health checks: when to probe, and what probes say of a container (moby `daemon/health.go`). Pure.

use std::collections::VecDeque;
use std::time::Duration;

use control_model::Timestamp;
use control_model::object::HealthStatus;
use control_model::spec::HealthConfig;
use serde::{Deserialize, Serialize};

/// Docker's defaults.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 3;
/// Probes that `docker inspect` shows.
const MAX_LOG_LEN: usize = 5;

/// A container's check, with Docker's defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What a probe runs in the container.
    pub(super) arguments: Vec<String>,
    interval: Duration,
    pub(super) timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

/// One run of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub start: Timestamp,
    pub end: Timestamp,
    /// 0 is success; -1: it took too long, or could not be run.
    pub exit_code: i32,
    pub output: String,
}

/// What the probes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub status: HealthStatus,
    /// Failures in a row that count.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: VecDeque<Probe>,
}

/// What a container is to be asked: the service's words, and the image's where the service has none (moby
/// `daemon/commit.go`).
pub(super) fn over_image(service: Option<&HealthConfig>, image: Option<&HealthConfig>) -> HealthConfig {
    let (Some(service), Some(image)) = (service, image) else {
        return service.or(image).cloned().unwrap_or_default();
    };
    let or = |own: Duration, other: Duration| if own.is_zero() { other } else { own };
    HealthConfig {
        test: if service.test.is_empty() { &image.test } else { &service.test }.clone(),
        interval: or(service.interval, image.interval),
        timeout: or(service.timeout, image.timeout),
        start_period: or(service.start_period, image.start_period),
        start_interval: or(service.start_interval, image.start_interval),
        retries: if service.retries == 0 { image.retries } else { service.retries },
    }
}

impl HealthCheck {
    /// `None` if there is nothing to run.
    pub(super) fn of(config: &HealthConfig) -> Option<Self> {
        let or = |span: Duration, default| if span.is_zero() { default } else { span };
        let arguments = match config.test.as_slice() {
            [kind, command] if kind == "CMD-SHELL" => vec!["/bin/sh".into(), "-c".into(), command.clone()],
            [kind, command @ ..] if kind == "CMD" && !command.is_empty() => command.to_vec(),
            _ => return None,
        };
        Some(Self {
            arguments,
            interval: or(config.interval, DEFAULT_INTERVAL),
            timeout: or(config.timeout, DEFAULT_TIMEOUT),
            start_period: config.start_period,
            start_interval: or(config.start_interval, DEFAULT_START_INTERVAL),
            retries: if config.retries == 0 { DEFAULT_RETRIES } else { config.retries },
        })
    }
}

impl Health {
    /// Of a container whose probes so far, if any, said this.
    pub(super) fn new(status: HealthStatus) -> Self {
        Self { status, failing_streak: 0, log: VecDeque::new() }
    }

    /// How long after `now` the next probe is due.
    pub(super) fn wait(&self, check: &HealthCheck, started: Timestamp, now: Timestamp) -> Duration {
        let is_early = self.status == HealthStatus::Starting && now.since(started) < check.start_period;
        if is_early { check.start_interval } else { check.interval }
    }

    pub(super) fn take(&mut self, check: &HealthCheck, started: Timestamp, probe: Probe) {
        let is_early =
            self.status == HealthStatus::Starting && probe.start.since(started) < check.start_period;
        if probe.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if !is_early {
            self.failing_streak += 1;
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        if self.log.len() == MAX_LOG_LEN {
            self.log.pop_front();
        }
        self.log.push_back(probe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        let config = HealthConfig {
            test: ["CMD", "/check", "all"].map(String::from).into(),
            interval: Duration::from_secs(10),
            start_period: Duration::from_mins(1),
            retries: 2,
            ..HealthConfig::default()
        };
        HealthCheck::of(&config).expect("a check")
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(0).after(Duration::from_secs(seconds))
    }

    /// The status after probes at those seconds with those exit codes.
    fn after(probes: &[(u64, i32)]) -> (HealthStatus, u32) {
        let mut health = Health::new(HealthStatus::Starting);
        for &(second, exit_code) in probes {
            let probe = Probe { start: at(second), end: at(second), exit_code, output: String::new() };
            health.take(&check(), at(0), probe);
        }
        assert!(health.log.len() <= MAX_LOG_LEN);
        (health.status, health.failing_streak)
    }

    #[test]
    fn what_is_run() {
        let of = |test: &[&str]| {
            let test = test.iter().map(|&word| word.to_owned()).collect();
            HealthCheck::of(&HealthConfig { test, ..HealthConfig::default() }).map(|check| check.arguments)
        };
        assert_eq!(of(&["CMD-SHELL", "a | b"]).expect("a check"), ["/bin/sh", "-c", "a | b"]);
        assert_eq!(of(&["CMD", "/a", "b c"]).expect("a check"), ["/a", "b c"]);
        for nothing in [&["NONE"][..], &[], &["CMD"]] {
            assert_eq!(of(nothing), None);
        }
    }

    #[test]
    fn a_service_speaks_over_its_image() {
        let seconds = Duration::from_secs;
        let config = |test: &[&str], interval, retries| HealthConfig {
            test: test.iter().map(|&word| word.to_owned()).collect(),
            interval: seconds(interval),
            retries,
            ..HealthConfig::default()
        };
        let image = config(&["CMD", "/image"], 7, 9);
        assert_eq!(over_image(None, None), HealthConfig::default());
        assert_eq!(over_image(None, Some(&image)), image);
        assert_eq!(over_image(Some(&image), None), image);
        // Times alone leave the image's command, `NONE` puts an end to it.
        assert_eq!(over_image(Some(&config(&[], 2, 0)), Some(&image)), config(&["CMD", "/image"], 2, 9));
        let none = over_image(Some(&config(&["NONE"], 0, 0)), Some(&image));
        assert_eq!(HealthCheck::of(&none), None);
    }

    #[test]
    fn failures_count_in_a_row_and_not_while_it_starts() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        assert_eq!(after(&[]), (Starting, 0));
        assert_eq!(after(&[(10, 1), (20, 1), (30, 1)]), (Starting, 0), "it may still start");
        assert_eq!(after(&[(10, 1), (61, 1)]), (Starting, 1));
        assert_eq!(after(&[(61, 1), (71, -1)]), (Unhealthy, 2));
        assert_eq!(after(&[(10, 0)]), (Healthy, 0), "the first success counts at once");
        assert_eq!(after(&[(10, 0), (20, 1), (30, 0), (40, 1)]), (Healthy, 1));
        assert_eq!(after(&[(10, 0), (20, 1), (30, 1)]), (Unhealthy, 2), "it had started");
        assert_eq!(after(&[(61, 1), (71, 1), (81, 0)]), (Healthy, 0), "who recovers is healthy");
        let many: Vec<_> = (0..9).map(|second| (second, 1)).collect();
        assert_eq!(after(&many), (Starting, 0));
    }

    #[test]
    fn probes_are_closer_while_it_starts() {
        let mut health = Health::new(HealthStatus::Starting);
        assert_eq!(health.wait(&check(), at(0), at(1)), DEFAULT_START_INTERVAL);
        assert_eq!(health.wait(&check(), at(0), at(60)), Duration::from_secs(10));
        health.status = HealthStatus::Healthy;
        assert_eq!(health.wait(&check(), at(0), at(1)), Duration::from_secs(10));
    }
}
