//! A host with Docker Engine drops what it forwards and the engine does not know of. The engine has a chain for exceptions
//! (`DOCKER-USER`), which it leaves alone; there, what leaves a sandbox and what comes to one is let pass.

use std::io;
use std::process::{Command, Output};

use dataplane_model::kernel_state::LinkName;

/// One for each family.
const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];
const CHAIN: &str = "DOCKER-USER";
/// The last comes to stand first. The engine's own networks are its to guard; who may begin to speak with a sandbox is the data
/// plane's own filter's business.
const RULES: [&[&str]; 4] = [
    &["-o", LinkName::GATEWAY_BRIDGE, "-j", "ACCEPT"],
    &["-i", LinkName::GATEWAY_BRIDGE, "-j", "ACCEPT"],
    &["-i", LinkName::GATEWAY_BRIDGE, "-o", "br-+", "-j", "RETURN"],
    &["-i", LinkName::GATEWAY_BRIDGE, "-o", "docker0", "-j", "RETURN"],
];

/// Opens the way out of sandboxes, where the engine has closed it.
pub fn open() {
    for program in PROGRAMS {
        if !succeeds(program, &["-S", CHAIN]) {
            tracing::debug!(program, "Docker Engine filters nothing");
            continue;
        }
        for rule in RULES {
            if !succeeds(program, &[&["-C", CHAIN], rule].concat()) {
                insert(program, rule);
            }
        }
    }
}

/// Takes the exceptions away.
pub fn close() {
    for program in PROGRAMS {
        for rule in RULES {
            // One that was never there is as good.
            succeeds(program, &[&["-D", CHAIN], rule].concat());
        }
    }
}

fn insert(program: &str, rule: &[&str]) {
    match run(program, &[&["-I", CHAIN], rule].concat()) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            tracing::warn!(
                program,
                said = said.trim(),
                "tasks may have no way out: Docker Engine's filter was not opened"
            );
        }
        Err(error) => {
            tracing::warn!(program, %error, "tasks may have no way out: Docker Engine's filter was not opened");
        }
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    run(program, arguments).is_ok_and(|output| output.status.success())
}

/// `-w`: somebody else may be at it.
fn run(program: &str, arguments: &[&str]) -> io::Result<Output> {
    Command::new(program).arg("-w").args(arguments).output()
}
