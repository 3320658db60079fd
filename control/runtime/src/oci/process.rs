//! What a container's process is: arguments, environment, host name. Docker's rules, without any file.

use control_model::spec::ContainerSpec;
use oci_spec::image::Config;

/// `PATH` of a container whose image sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Digits of a container id that make the default host name.
pub(crate) const SHORT_ID_LEN: usize = 12;

/// The arguments: the spec's command replaces entrypoint and command of the image, its args replace the command alone.
/// `None` if nothing says what to run.
pub(super) fn arguments(spec: &ContainerSpec, image: &Config) -> Option<Vec<String>> {
    let image_entrypoint = image.entrypoint().clone().unwrap_or_default();
    let image_command = image.cmd().clone().unwrap_or_default();
    let mut arguments = if spec.command.is_empty() { image_entrypoint } else { spec.command.clone() };
    let use_image_command = spec.command.is_empty() && spec.args.is_empty();
    arguments.extend(if use_image_command { image_command } else { spec.args.clone() });
    (!arguments.is_empty()).then_some(arguments)
}

/// The environment: defaults, then the image's, then the user's; a user's `KEY` without a value takes the key away.
pub(crate) fn environment(image: &[String], user: &[String], hostname: &str, tty: bool) -> Vec<String> {
    let mut all = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if tty {
        all.push("TERM=xterm".to_owned());
    }
    for entry in image.iter().chain(user) {
        let (key, value) =
            entry.split_once('=').map_or((entry.as_str(), None), |(key, value)| (key, Some(value)));
        let at = all.iter().position(|known| known.split('=').next() == Some(key));
        match (value, at) {
            (Some(_), Some(at)) => all[at].clone_from(entry),
            (Some(_), None) => all.push(entry.clone()),
            (None, Some(at)) => drop(all.remove(at)),
            (None, None) => {}
        }
    }
    all
}

/// A signal's number from its name (`SIGTERM`, `TERM`, `15`); `None` if there is no such signal.
pub(super) fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim();
    if let Ok(number) = name.parse::<i32>() {
        return nix::sys::signal::Signal::try_from(number).ok().map(|signal| signal as i32);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// The command as `docker ps` prints it.
pub(super) fn printed_command(arguments: &[String]) -> String {
    arguments.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(all: &[&str]) -> Vec<String> {
        all.iter().map(|&text| text.to_owned()).collect()
    }

    fn image() -> Config {
        let mut image = Config::default();
        image.set_entrypoint(Some(strings(&["/entry"]))).set_cmd(Some(strings(&["default"])));
        image.set_env(Some(strings(&["A=image", "PATH=/bin"])));
        image
    }

    #[test]
    fn command_and_args_replace_what_docker_replaces() {
        let run = |command: &[&str], args: &[&str]| {
            let spec =
                ContainerSpec { command: strings(command), args: strings(args), ..ContainerSpec::default() };
            arguments(&spec, &image()).expect("something to run").join(" ")
        };
        assert_eq!(run(&[], &[]), "/entry default");
        assert_eq!(run(&[], &["x"]), "/entry x");
        assert_eq!(run(&["/c"], &[]), "/c");
        assert_eq!(run(&["/c"], &["x"]), "/c x");
        assert_eq!(arguments(&ContainerSpec::default(), &Config::default()), None);
    }

    #[test]
    fn users_environment_goes_over_the_images() {
        let all = environment(
            image().env().as_deref().unwrap_or_default(),
            &strings(&["A=user", "B=1", "HOSTNAME"]),
            "h",
            false,
        );
        assert_eq!(all, ["PATH=/bin", "A=user", "B=1"]);
        assert!(
            environment(image().env().as_deref().unwrap_or_default(), &[], "h", true)
                .contains(&"TERM=xterm".to_owned())
        );
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["SIGTERM", "term", "15"] {
            assert_eq!(signal_number(text), Some(15), "{text}");
        }
        assert_eq!(signal_number("SIGNOTHING"), None);
        assert_eq!(signal_number("0"), None);
    }
}
