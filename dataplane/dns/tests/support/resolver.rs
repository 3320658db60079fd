//! Resolvers that the DNS process forwards to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record};

use super::{PATIENCE, wait_for};

/// What a [`TestResolver`] does with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Answers(Ipv4Addr),
    /// With the question in lower case, whatever came, behind some forgeries.
    AnswersAfterForgeries(Ipv4Addr),
    /// As soon as it is told to.
    AnswersWhenReleased(Ipv4Addr),
    Fails,
    Silent,
}

/// A resolver that treats everyone alike.
pub struct TestResolver {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Id and client of each query.
    seen: Mutex<Vec<(u16, SocketAddr)>>,
    released: Mutex<bool>,
    release: Condvar,
}

impl TestResolver {
    pub fn start(address: &str, manner: Manner) -> Self {
        let socket = UdpSocket::bind((address, 53)).expect("a free address");
        let shared = Arc::new(Shared::default());
        let shown = shared.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((len, client)) = socket.recv_from(&mut buffer) {
                shown.handle(&socket, &buffer[..len], client, manner);
            }
        });
        Self { shared }
    }

    pub fn seen(&self) -> Vec<(u16, SocketAddr)> {
        self.shared.seen.lock().expect("no panic").clone()
    }

    pub fn release(&self) {
        *self.shared.released.lock().expect("no panic") = true;
        self.shared.release.notify_all();
    }
}

impl Shared {
    fn handle(&self, socket: &UdpSocket, query: &[u8], client: SocketAddr, manner: Manner) {
        let query = Message::from_vec(query).expect("a query");
        self.seen.lock().expect("no panic").push((query.metadata.id, client));
        let mut reply = query;
        reply.metadata.message_type = MessageType::Response;
        let send = |reply: &Message| {
            socket.send_to(&reply.to_vec().expect("a message"), client).expect("loopback");
        };
        match manner {
            Manner::Silent => return,
            Manner::Fails => reply.metadata.response_code = ResponseCode::ServFail,
            Manner::Answers(address) => add_address(&mut reply, address),
            Manner::AnswersWhenReleased(address) => {
                let released = self.released.lock().expect("no panic");
                drop(self.release.wait_while(released, |released| !*released).expect("no panic"));
                add_address(&mut reply, address);
            }
            Manner::AnswersAfterForgeries(address) => {
                forgeries(&reply).iter().for_each(send);
                let name = reply.queries[0].name().to_lowercase();
                reply.queries[0].set_name(name);
                add_address(&mut reply, address);
            }
        }
        send(&reply);
    }
}

fn add_address(reply: &mut Message, address: Ipv4Addr) {
    let name = reply.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(name, 60, RData::A(A(address))));
}

/// Another id, another question.
fn forgeries(reply: &Message) -> [Message; 2] {
    let [mut id, mut question] = [reply.clone(), reply.clone()];
    id.metadata.id = !id.metadata.id;
    question.queries[0].set_name(Name::from_ascii("evil.example.").expect("a name"));
    for forgery in [&mut id, &mut question] {
        add_address(forgery, Ipv4Addr::new(6, 6, 6, 6));
    }
    [id, question]
}

/// A real one, in this namespace.
pub struct Dnsmasq(Child);

impl Dnsmasq {
    /// With these options, at `address`.
    pub fn start(address: IpAddr, options: &[String]) -> Self {
        let child = Command::new("dnsmasq")
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--log-facility=-", "--user=root", "--pid-file="])
            .arg(format!("--listen-address={address}"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq is installed");
        wait_for(PATIENCE, || std::net::TcpStream::connect((address, 53)).is_ok());
        Self(child)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}
