use std::net::{IpAddr, Ipv4Addr};

use dataplane_model::inspect::{
    AgentState, GossipAgent, GossipMember, GossipPath, GossipReport, HookRow, LoadBalancerBackend, PathState,
};

use super::*;

#[test]
fn status_lists_node_and_hooks() {
    let hook = |interface: &str, hook: &str| HookRow {
        interface: interface.to_owned(),
        hook: hook.to_owned(),
        program: "uplink".to_owned(),
        reason: "veth: tc is the faster hook".to_owned(),
    };
    let shown = status(&NodeStatus {
        hostname: "lab-m1".to_owned(),
        node_id: "n1".to_owned(),
        cluster_id: String::new(),
        role: "manager (leader)".to_owned(),
        vtep: Some(Ipv4Addr::new(198, 18, 0, 11).into()),
        wanted: Generation { epoch: 2, index: 40 },
        applied: Generation { epoch: 2, index: 39 },
        hooks: vec![hook("eth0", "tcx ingress"), hook("mesh-vx", "tcx egress")],
        errors: vec!["eth0: no such device".to_owned()],
        from_pins: false,
    });
    let expected = "\
Node:                lab-m1
Node ID:             n1
Cluster ID:          -
Role:                manager (leader)
Tunnel end:          198.18.0.11
Generation wanted:   2.40
Generation applied:  2.39 (converging)
Read from:           meshd
Error:               eth0: no such device

INTERFACE   HOOK          PROGRAM   REASON
eth0        tcx ingress   uplink    veth: tc is the faster hook
mesh-vx     tcx egress    uplink    veth: tc is the faster hook
";
    assert_eq!(shown, expected);
}

#[test]
fn pins_know_no_generation() {
    let shown = status(&NodeStatus {
        hostname: "lab-m1".to_owned(),
        node_id: String::new(),
        cluster_id: String::new(),
        role: String::new(),
        vtep: None,
        wanted: Generation::default(),
        applied: Generation::default(),
        hooks: Vec::new(),
        errors: Vec::new(),
        from_pins: true,
    });
    assert!(shown.contains("\nGeneration applied:  -\nRead from:           pins"), "{shown}");
}

#[test]
fn a_frontend_has_a_line_per_backend() {
    let backend = |host, places| LoadBalancerBackend {
        address: Ipv4Addr::new(10, 0, 0, host),
        vtep: Ipv4Addr::new(198, 18, 0, host).into(),
        places,
    };
    let row = |frontend: &str, service: &str, backends| LoadBalancerRow {
        frontend: frontend.to_owned(),
        kind: "ingress".to_owned(),
        vni: 4096,
        service: service.to_owned(),
        dsr: service == "whoami",
        ring_size: 211,
        backends,
    };
    let rows = [
        row("198.18.0.11:8080/tcp", "whoami", vec![backend(5, 106), backend(12, 95)]),
        row("10.0.1.2", "", vec![]),
    ];
    let expected = "\
FRONTEND               KIND           VNI    SERVICE   RING   BACKEND     NODE          PLACES
198.18.0.11:8080/tcp   ingress, dsr   4096   whoami     211   10.0.0.5    198.18.0.5       106
                                                              10.0.0.12   198.18.0.12       95
10.0.1.2               ingress        4096   -          211   -           -             -
";
    assert_eq!(load_balancers(&rows), expected);
}

#[test]
fn endpoints_are_here_or_on_another_node() {
    let row = |host, vtep: Option<IpAddr>, interface: Option<&str>| EndpointRow {
        vni: 4097,
        address: Ipv4Addr::new(10, 0, 1, host),
        mac: "02:42:0a:00:01:05".to_owned(),
        vtep,
        interface: interface.map(str::to_owned),
        weight: vtep.map(|_| 0),
    };
    let rows = [row(5, None, Some("mv0123456789a")), row(6, Some(IpAddr::from([198, 18, 0, 12])), None)];
    let expected = "\
VNI    ADDRESS    MAC                 NODE          INTERFACE       WEIGHT
4097   10.0.1.5   02:42:0a:00:01:05   this node     mv0123456789a   -
4097   10.0.1.6   02:42:0a:00:01:05   198.18.0.12   -                    0
";
    assert_eq!(endpoints(&rows), expected);
}

#[test]
fn gossip_shows_its_own_standing_and_each_node() {
    let member = |node_id: &str, last: u8, agent, path| GossipMember {
        node_id: node_id.to_owned(),
        address: Some(([198, 18, 0, last], 7946).into()),
        data_path: ([198, 18, 0, last], 4789).into(),
        agent,
        path,
    };
    let agent = |incarnation, state, by: &[&str]| {
        let suspected_by = by.iter().map(|by| (*by).to_owned()).collect();
        Some(GossipAgent { incarnation, state, suspected_by })
    };
    let path = |state, n_missed, probed_ms_ago| GossipPath { state, n_missed, probed_ms_ago };
    let outside = member("n4", 14, None, path(PathState::Unknown, 1, None));
    let report = GossipReport {
        incarnation: 3,
        trouble: 1,
        key: Some(7),
        keys: vec![6, 7, 8],
        members: vec![
            member("n2", 12, agent(0, AgentState::Alive, &[]), path(PathState::Answers, 0, Some(120))),
            member(
                "n3",
                13,
                agent(12, AgentState::Suspect, &["n1", "n2"]),
                path(PathState::Silent, 5, Some(40)),
            ),
            GossipMember { address: None, ..outside },
        ],
        ended: vec!["t1".to_owned()],
        n_sent: 10,
        n_received: 8,
        refused: vec![("forged".to_owned(), 2), ("malformed".to_owned(), 0)],
        n_exchanged: 4,
        n_exchanges_failed: 1,
    };
    let expected = "\
Incarnation:  3
Own trouble:  1 of 8
Key in use:   7 (accepted: 6, 7, 8)
Datagrams:    10 sent, 8 taken, 2 refused
Exchanges:    4 done, 1 failed
Ended tasks:  1

NODE   GOSSIP             AGENT            INCARNATION   TUNNEL END         DATA PATH   MISSED   PROBED
n2     198.18.0.12:7946   alive                      0   198.18.0.12:4789   answers          0   120 ms ago
n3     198.18.0.13:7946   suspect, say 2            12   198.18.0.13:4789   silent           5    40 ms ago
n4     -                  takes no part    -             198.18.0.14:4789   unknown          1   -

REFUSED   DATAGRAMS
forged            2
";
    assert_eq!(gossip(&report), expected);
}

#[test]
fn drops_show_sums_reasons_and_what_is_missing() {
    let sound = ProgramCounters {
        program: "uplink".to_owned(),
        received: 10,
        forwarded: 5,
        passed: 2,
        drops: vec![("no_backend".to_owned(), 2), ("ttl_exceeded".to_owned(), 1)],
    };
    let unsound = ProgramCounters {
        program: "overlay".to_owned(),
        received: 4,
        forwarded: 5,
        passed: 0,
        drops: Vec::new(),
    };
    let expected = "\
PROGRAM   RECEIVED   FORWARDED   PASSED   DROPPED   UNACCOUNTED
uplink          10           5        2         3             0
overlay          4           5        0         0            -1

PROGRAM   DROP REASON    PACKETS
uplink    no_backend           2
uplink    ttl_exceeded         1
";
    assert_eq!(drops(&DropsReport { programs: vec![sound, unsound.clone()] }), expected);
    let without = drops(&DropsReport { programs: vec![unsound] });
    assert_eq!(without.lines().count(), 2, "{without}");
}
