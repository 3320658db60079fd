//! An image's HEALTHCHECK: Docker's key `config.Healthcheck` of an image's configuration. The OCI image format does not name
//! it, and what converts to that format drops it; the store keeps it under that key, where the OCI images of `BuildKit` have it too.

use std::time::Duration;

use control_model::spec::HealthConfig;
use serde::Deserialize;
use serde_json::Value;

use super::error::ChangeError;

const CONFIG_KEY: &str = "config";
const HEALTH_KEY: &str = "Healthcheck";

/// Docker's shape of it; times are nanoseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct DockerHealth {
    test: Option<Vec<String>>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

/// The check that an image's configuration has. What makes no sense is no check: the image runs without.
pub(super) fn health_of(configuration: &[u8]) -> Option<HealthConfig> {
    let given: DockerHealth = serde_json::from_value(health_value(configuration)?).ok()?;
    // What is negative says nothing.
    let time = |nanoseconds: i64| Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    Some(HealthConfig {
        test: given.test.unwrap_or_default(),
        interval: time(given.interval),
        timeout: time(given.timeout),
        start_period: time(given.start_period),
        start_interval: time(given.start_interval),
        retries: u32::try_from(given.retries).unwrap_or(0),
    })
}

/// The check as the configuration has it, for another one.
pub(super) fn health_value(configuration: &[u8]) -> Option<Value> {
    let mut configuration: Value = serde_json::from_slice(configuration).ok()?;
    Some(configuration.get_mut(CONFIG_KEY)?.get_mut(HEALTH_KEY)?.take()).filter(Value::is_object)
}

/// `configuration` with this check; `None` if it is no configuration, or has the check already.
pub(super) fn with_health(configuration: &[u8], health: &Value) -> Option<Vec<u8>> {
    let mut configuration: Value = serde_json::from_slice(configuration).ok()?;
    let run =
        configuration.as_object_mut()?.entry(CONFIG_KEY).or_insert_with(|| Value::Object(<_>::default()));
    let before = run.as_object_mut()?.insert(HEALTH_KEY.to_owned(), health.clone());
    (before.as_ref() != Some(health))
        .then(|| serde_json::to_vec(&configuration).expect("it has text keys only"))
}

/// A Dockerfile's `HEALTHCHECK`, without the word: `NONE`, or options and `CMD …`.
pub(super) fn parse_instruction(text: &str) -> Result<Value, ChangeError> {
    let mut health = serde_json::Map::new();
    let mut rest = text.trim();
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let (key, value) =
            parse_option(key, value).ok_or_else(|| ChangeError::Healthcheck(option.to_owned()))?;
        health.insert(key.to_owned(), value.into());
        rest = after.trim_start();
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    let test: Vec<String> = match (kind.to_ascii_uppercase().as_str(), command) {
        ("NONE", "") => vec!["NONE".into()],
        ("CMD", "") => {
            return Err(ChangeError::Arguments { instruction: "HEALTHCHECK CMD".into(), needs: "a command" });
        }
        ("CMD", command) => match serde_json::from_str::<Vec<String>>(command) {
            Ok(arguments) => std::iter::once("CMD".to_owned()).chain(arguments).collect(),
            Err(_) => vec!["CMD-SHELL".into(), command.to_owned()],
        },
        _ => return Err(ChangeError::Healthcheck(rest.to_owned())),
    };
    health.insert("Test".to_owned(), test.into());
    Ok(Value::Object(health))
}

fn parse_option(key: &str, value: &str) -> Option<(&'static str, i64)> {
    let key = match key {
        "interval" => "Interval",
        "timeout" => "Timeout",
        "start-period" => "StartPeriod",
        "start-interval" => "StartInterval",
        "retries" => return value.parse::<u32>().ok().map(|retries| ("Retries", retries.into())),
        _ => return None,
    };
    Some((key, nanoseconds(value)?))
}

/// `1m30s`, `300ms`: whole numbers, each with its unit.
fn nanoseconds(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 6] = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (mut rest, mut total) = (text, 0_i64);
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count());
        let (unit, tail) = tail.split_at(tail.bytes().take_while(u8::is_ascii_lowercase).count());
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(*length)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = br#"{"os":"linux","config":{"Cmd":["/x"]}}"#;
    const CHECKED: &[u8] =
        br#"{"config":{"Healthcheck":{"Test":["CMD","/x"],"Interval":300000000,"Retries":2,"Timeout":-1}}}"#;

    #[test]
    fn is_read_as_docker_writes_it() {
        let health = health_of(CHECKED).expect("a check");
        assert_eq!((health.test.join(" ").as_str(), health.retries), ("CMD /x", 2));
        assert_eq!((health.interval, health.timeout), (Duration::from_millis(300), Duration::ZERO));
        for none in [
            PLAIN,
            b"",
            b"[]",
            br#"{"config":null}"#,
            br#"{"config":{"Healthcheck":null}}"#,
            br#"{"config":{"Healthcheck":{"Test":7}}}"#,
        ] {
            assert_eq!(health_of(none), None, "{}", String::from_utf8_lossy(none));
        }
    }

    #[test]
    fn is_carried_into_a_configuration_that_lost_it() {
        let health = health_value(CHECKED).expect("a check");
        for lost in [PLAIN, b"{}"] {
            let kept = with_health(lost, &health).expect("it had none");
            assert_eq!(health_of(&kept), health_of(CHECKED));
            assert_eq!(with_health(&kept, &health), None, "nothing new");
        }
        for bad in [&b"7"[..], b"", br#"{"config":7}"#] {
            assert_eq!(with_health(bad, &health), None);
        }
    }

    #[test]
    fn instructions_are_dockers() {
        let parsed = |text: &str| parse_instruction(text).map(|value| value.to_string());
        assert_eq!(parsed("NONE").expect("none"), r#"{"Test":["NONE"]}"#);
        assert_eq!(
            parsed(r#"--interval=1m30s --retries=4 CMD ["/x", "y z"]"#).expect("a check"),
            r#"{"Interval":90000000000,"Retries":4,"Test":["CMD","/x","y z"]}"#
        );
        assert_eq!(parsed("cmd a | b").expect("a check"), r#"{"Test":["CMD-SHELL","a | b"]}"#);
        for bad in
            ["CMD", "", "RUN x", "--interval=5 CMD x", "--colour=1s CMD x", "--retries=-1 CMD x", "NONE x"]
        {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
