//! Real sockets on the loopback interface.

use control_model::TaskId;
use control_model::gossip::Contact;
use tokio::net::UdpSocket;

use super::*;
use crate::core::view::AgentState;

/// Longest time that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A node's gossip, and what feeds it.
struct Node {
    said: watch::Sender<Arc<Said>>,
    opinion: watch::Receiver<Arc<Opinion>>,
    gossip: Gossip,
    _keys: watch::Sender<GossipKeys>,
    /// What answers probes, as BPF does.
    data_path: Option<JoinSet<()>>,
}

fn id(n: usize) -> NodeId {
    NodeId::from_bits(n as u128 + 1)
}

async fn echo(socket: UdpSocket) {
    let mut buffer = [0; 100];
    loop {
        if let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..len], from).await.expect("loopback takes all");
        }
    }
}

/// Nodes that know each other; the last one has another ring than the others.
async fn nodes(n: usize) -> Vec<Node> {
    let mut made = Vec::new();
    for _ in 0..n {
        let sockets = Sockets::bind(([127, 0, 0, 1], 0).into()).expect("free ports");
        let data_path = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let contact = Contact {
            gossip: Some(sockets.local_addr().expect("bound")),
            data_path: data_path.local_addr().expect("bound"),
        };
        made.push((sockets, data_path, contact));
    }
    let contacts: Vec<Contact> = made.iter().map(|(_, _, contact)| *contact).collect();
    let start = |(at, (sockets, data_path, _)): (usize, (Sockets, UdpSocket, Contact))| {
        let others = contacts.iter().enumerate().filter(|(other, _)| *other != at);
        let others = others.map(|(other, contact)| (id(other), *contact)).collect();
        let said = Said { contacts: Arc::new(others), ..Said::default() };
        let draw = if at + 1 < n { [7; 32] } else { [8; 32] };
        let keys = watch::Sender::new(GossipKeys::default().rotated(|| draw, Timestamp(0)));
        let said = watch::Sender::new(Arc::new(said));
        let (sender, opinion) = watch::channel(Arc::default());
        let options = Options { me: id(at), sockets, said: said.subscribe(), keys: keys.subscribe() };
        let gossip = Gossip::start(options, sender).expect("sockets for probes");
        let mut answering = JoinSet::new();
        answering.spawn(echo(data_path));
        Node { said, opinion, gossip, _keys: keys, data_path: Some(answering) }
    };
    made.into_iter().enumerate().map(start).collect()
}

async fn wait_for(node: &mut Node, what: &str, holds: impl Fn(&Opinion) -> bool) {
    let waiting = node.opinion.wait_for(|opinion| holds(opinion));
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("in vain: {what}"))
        .expect("it runs");
}

#[tokio::test]
async fn what_has_ended_is_told_and_a_silent_data_path_is_found_and_given_back() {
    let mut nodes = nodes(3).await;
    let task = TaskId::from_bits(99);
    nodes[0].said.send_modify(|said| {
        *said = Arc::new(Said { ended: [task].into(), ..(**said).clone() });
    });
    wait_for(&mut nodes[1], "the task", |opinion| *opinion.ended == [task].into()).await;
    // The third one seals with other keys: nobody hears it, though its data path lives.
    wait_for(&mut nodes[0], "no word from the third", |o| o.silent_agents == [id(2)].into()).await;
    assert!(nodes[2].opinion.borrow().ended.is_empty());
    assert!(nodes[0].opinion.borrow().silent_paths.is_empty());
    let refused: BTreeMap<Refusal, u64> = nodes[2].gossip.inspector().counters().refused().collect();
    assert!(refused[&Refusal::Forged] > 0, "{refused:?}");

    nodes[1].data_path = None;
    wait_for(&mut nodes[0], "the second's path", |o| o.silent_paths == [id(1)].into()).await;
    let inspector = nodes[0].gossip.inspector();
    let view = inspector.view();
    let seen = |n: usize| view.members.iter().find(|member| member.id == id(n)).expect("a member");
    let agent = |n: usize| seen(n).agent.as_ref().map(|agent| agent.state.clone());
    assert_eq!((agent(1), agent(2)), (Some(AgentState::Alive), Some(AgentState::Silent)));
    assert!(seen(1).path.is_silent && seen(1).path.n_missed > 0, "{:?}", seen(1));
    assert!(seen(2).path.has_answered && !seen(2).path.is_silent, "{:?}", seen(2));
    assert_eq!(inspector.keys(), (vec![1, 2], Some(1)));
    let contact = nodes[0].said.borrow().contacts[&id(1)];
    let again = UdpSocket::bind(contact.data_path).await.expect("its port is free");
    let mut answering = JoinSet::new();
    answering.spawn(echo(again));
    wait_for(&mut nodes[0], "the path is back", |o| o.silent_paths.is_empty()).await;
}

#[tokio::test]
async fn streams_of_strangers_end_and_change_nothing() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut nodes = nodes(2).await;
    let addr = nodes[1].said.borrow().contacts[&id(0)].gossip.expect("it listens");
    for bytes in [vec![0; 200], b"mgx1".repeat(50), vec![b'G'; 2000]] {
        let mut stream = tokio::net::TcpStream::connect(addr).await.expect("it listens");
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("it ends");
        assert!(answer.len() <= 16, "a number at most");
    }
    assert!(nodes[0].gossip.inspector().counters().exchanges_failed.load(Ordering::Relaxed) >= 3);
    // The port is free when it has ended.
    let first = nodes.remove(0);
    first.gossip.stop().await;
    drop(Sockets::bind(addr).expect("free again"));
}
