//! `whoami`: a small HTTP server that says who it is and who asked, and the few clients that a container without any
//! other program needs. Linked statically, so that it runs in an empty root file system.

mod client;
mod dns;
mod drain;
mod http;
mod identity;
mod server;
mod stream;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
whoami: says who it is and who asked

  whoami [serve] [--port 80] [--version TEXT] [--drain SECONDS]
                                                HTTP server; SIGTERM ends it when open requests are answered, or
                                                after 8 seconds; /stream?seconds=S&rate=BYTES_PER_S answers slowly
  whoami any WORD…                              the same server, whatever the words: in any program's place
  whoami get URL [-n N] [--only NAME] [--timeout MS] [--resolve NAME=ADDRESS]
                                                N requests, each on a new connection
  whoami healthcheck [URL | --file PATH]        0 if the server answers well, or if there is such a file
  whoami resolve NAME [--server 127.0.0.11]     addresses of a name, one a line
  whoami listen-udp PORT                        answers datagrams with their sender and text
  whoami count                                  a numbered line twenty times a second, for ten minutes
  whoami copy                                   what comes in goes out
  whoami exit CODE                              ends with it
  whoami udp ADDRESS:PORT TEXT                  sends a datagram, prints the answer

An answer has a line `key: value` each for hostname, task, node, service, version, ip (one per address), local, peer
and request; task, node, service and version are those of the environment (TASK, NODE, SERVICE, VERSION).
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["get", options @ ..] => client::get(options),
        ["healthcheck", options @ ..] => client::health_check(options),
        ["resolve", options @ ..] => dns::resolve_command(options),
        ["listen-udp", port] => udp::listen(port),
        ["count"] => {
            count();
            Ok(())
        }
        ["copy"] => copy(),
        ["exit", code] => match code.parse() {
            Ok(code) => std::process::exit(code),
            Err(error) => Err(format!("{code}: {error}")),
        },
        ["any", ..] => server::serve(&[]),
        ["udp", target, text] => udp::ask(target, text),
        ["help" | "--help" | "-h", ..] => {
            print!("{USAGE}");
            Ok(())
        }
        ["serve", options @ ..] | options => server::serve(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("whoami: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count() {
    for number in 0..12_000 {
        println!("count {number}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn copy() -> Result<(), String> {
    let copied = std::io::copy(&mut std::io::stdin(), &mut std::io::stdout());
    copied.map(drop).map_err(|error| error.to_string())
}

/// The value of `name` among `--name value` options; an unknown option is an error of the caller's.
fn option<'a>(options: &[&'a str], name: &str) -> Option<&'a str> {
    options.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1])
}

/// Refuses options that are not in `known` (each takes a value) and gives the other words.
fn positional<'a>(options: &[&'a str], known: &[&str]) -> Result<Vec<&'a str>, String> {
    let mut rest = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        if known.contains(word) {
            words.next().ok_or_else(|| format!("{word} needs a value"))?;
        } else if word.starts_with('-') {
            return Err(format!("unknown option {word}; see whoami --help"));
        } else {
            rest.push(*word);
        }
    }
    Ok(rest)
}

/// What servers listen on: all addresses, of both families where the kernel has both, or of IPv4 alone where the environment
/// says so.
fn any() -> IpAddr {
    let has_ipv6 = Path::new("/proc/net/if_inet6").exists();
    let is_asked_for = std::env::var_os("LISTEN").is_none_or(|family| family != "ipv4");
    if has_ipv6 && is_asked_for { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// As a socket of its own family has it: IPv4 addresses are not shown mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Why a command failed, for people.
type CommandResult = Result<(), String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_and_unknown_ones_refused() {
        let words = ["http://x/", "-n", "3"];
        assert_eq!(option(&words, "-n"), Some("3"));
        assert_eq!(positional(&words, &["-n"]), Ok(vec!["http://x/"]));
        assert!(positional(&words, &[]).is_err());
        assert!(positional(&["-n"], &["-n"]).is_err());
    }
}
