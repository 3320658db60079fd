//! The files about names and addresses that a container finds in `/etc`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};

use control_model::Task;
use control_model::spec::DnsConfig;

/// Address of the service DNS in every sandbox.
const SERVICE_DNS: &str = "127.0.0.11";

const HOSTS_HEAD: &str = "127.0.0.1\tlocalhost\n\
                          ::1\tlocalhost ip6-localhost ip6-loopback\n\
                          fe00::0\tip6-localnet\n\
                          ff00::0\tip6-mcastprefix\n\
                          ff02::1\tip6-allnodes\n\
                          ff02::2\tip6-allrouters\n";

/// `/etc/hosts`: Docker's head, the user's lines, the task's own addresses of both families.
pub(crate) fn hosts(task: &Task, addresses6: &[Ipv6Addr], hostname: &str) -> String {
    let mut text = HOSTS_HEAD.to_owned();
    for line in &task.spec.container.hosts {
        let mut words = line.split_whitespace();
        let address = words.next().unwrap_or_default();
        let names: Vec<&str> = words.collect();
        writeln!(text, "{address}\t{}", names.join(" ")).expect("writing to a string succeeds");
    }
    let addresses = task.attachments.iter().map(|attachment| attachment.address.ip());
    for address in addresses.chain(addresses6.iter().copied().map(IpAddr::V6)) {
        writeln!(text, "{address}\t{hostname}").expect("writing to a string succeeds");
    }
    text
}

/// `/etc/resolv.conf`: always our DNS, which forwards to the user's or the host's servers. The host's search list and
/// options apply where the user gave none, as Docker does it.
pub(crate) fn resolv_conf(dns: &DnsConfig, host_resolv_conf: &str) -> String {
    let host = HostResolvConf::parse(host_resolv_conf);
    let search = if dns.search.is_empty() { host.search } else { dns.search.clone() };
    let mut options = if dns.options.is_empty() { host.options } else { dns.options.clone() };
    // Names of one label are asked for as they are, before any search domain: they are services.
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = format!("nameserver {SERVICE_DNS}\n");
    // A lone dot is Docker's way of saying "no search list at all".
    if !search.is_empty() && search != ["."] {
        writeln!(text, "search {}", search.join(" ")).expect("writing to a string succeeds");
    }
    writeln!(text, "options {}", options.join(" ")).expect("writing to a string succeeds");
    text
}

/// What a container takes over of its host's `resolv.conf(5)`.
#[derive(Default)]
struct HostResolvConf {
    search: Vec<String>,
    options: Vec<String>,
}

impl HostResolvConf {
    /// The last of `search` and `domain` counts; options add up.
    fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let values = words.map(str::to_owned);
            match keyword {
                Some("search") => this.search = values.collect(),
                Some("domain") => this.search = values.take(1).collect(),
                Some("options") => this.options.extend(values),
                _ => (),
            }
        }
        this
    }
}

/// Whether every line of the spec's extra hosts is `IP name…`.
pub(crate) fn hosts_are_valid(lines: &[String]) -> bool {
    lines.iter().all(|line| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|address| address.parse::<IpAddr>().is_ok()) && words.next().is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_model::object::{NetworkAttachment, Slot};
    use control_model::{NetworkId, ServiceId, TaskId};

    #[test]
    fn resolv_conf_names_our_dns_alone() {
        let none = DnsConfig::default();
        assert_eq!(
            resolv_conf(&none, "nameserver 9.9.9.9\nsearch a.example b.example\n"),
            "nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:0\n"
        );
        let own =
            DnsConfig { search: vec![".".into()], options: vec!["ndots:2".into()], ..DnsConfig::default() };
        assert_eq!(resolv_conf(&own, "search x\n"), "nameserver 127.0.0.11\noptions ndots:2\n");
    }

    #[test]
    fn resolv_conf_has_what_the_user_asked_for() {
        let own = DnsConfig {
            nameservers: vec![IpAddr::from([192, 0, 2, 53])],
            search: vec!["a.example".into(), "b.example".into()],
            options: vec!["timeout:1".into(), "use-vc".into()],
        };
        assert_eq!(
            resolv_conf(&own, "search x\noptions edns0\n"),
            "nameserver 127.0.0.11\nsearch a.example b.example\noptions timeout:1 use-vc ndots:0\n",
            "our DNS asks the user's servers"
        );
    }

    #[test]
    fn the_hosts_search_list_and_options_are_taken_over() {
        let host = "# search z\nsearchlist y\nsearch x\ndomain w.example v\noptions edns0 trust-ad\noptions ndots:2\n";
        assert_eq!(
            resolv_conf(&DnsConfig::default(), host),
            "nameserver 127.0.0.11\nsearch w.example\noptions edns0 trust-ad ndots:2\n"
        );
    }

    #[test]
    fn a_task_finds_its_addresses_of_both_families() {
        let attachment = |address: &str| NetworkAttachment {
            network: NetworkId::from_bits(3),
            address: address.parse().expect("an address"),
            aliases: vec![],
        };
        let mut task = Task::new(TaskId::from_bits(1), ServiceId::from_bits(2), Slot::Replica(1));
        task.attachments = vec![attachment("10.0.0.4/24"), attachment("10.0.1.4/24")];
        let text = hosts(&task, &["fd00:1::4".parse().expect("an address")], "web");

        let own = text.strip_prefix(HOSTS_HEAD).expect("Docker's head");
        assert_eq!(own, "10.0.0.4\tweb\n10.0.1.4\tweb\nfd00:1::4\tweb\n");
        assert_eq!(hosts(&task, &[], "web").lines().count(), text.lines().count() - 1);
    }

    #[test]
    fn extra_hosts_need_an_address_and_a_name() {
        assert!(hosts_are_valid(&["10.0.0.1 a b".into(), "::1 c".into()]));
        assert!(!hosts_are_valid(&["10.0.0.1".into()]));
        assert!(!hosts_are_valid(&["a 10.0.0.1".into()]));
    }
}
