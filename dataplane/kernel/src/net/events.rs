//! News of interfaces and addresses, as the kernel multicasts them (`rtnetlink(7)`): that something changed, not what.

use std::io;

use dataplane_model::kernel_state::LinkName;
use futures::FutureExt as _;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// Of interfaces, of IPv4 addresses, of IPv6 addresses (`enum rtnetlink_groups`; group n is bit n - 1).
const GROUPS: u32 = 1 | 1 << 4 | 1 << 8;

/// Longest message that is read whole, bytes: an interface's takes one or two thousand.
const MESSAGE_BYTES: usize = 32 * 1024;

/// A socket that hears of them.
pub(super) struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    /// In the calling thread's namespace. A tokio runtime must be entered.
    pub(super) fn here() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self { socket, buffer: Vec::with_capacity(MESSAGE_BYTES) })
    }

    /// Returns when something may have changed; all that is known by then counts as one. May be dropped at any time.
    pub(super) async fn next(&mut self) {
        while !self.receive().await {}
        // Each receives what is there already, or nothing.
        while self.receive().now_or_never().is_some() {}
    }

    /// The next message; `true` if it is news.
    async fn receive(&mut self) -> bool {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => is_news(&self.buffer),
            // The kernel had more to say than we took: anything may have changed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => true,
            Err(error) => {
                tracing::warn!(%error, "no news of interfaces any more: they are looked at from time to time");
                std::future::pending().await
            }
        }
    }
}

/// All but what happens at our own ends of sandboxes' links: those change with every task. What makes no sense is news.
fn is_news(message: &[u8]) -> bool {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
    match message.map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        )) => !is_host_end(&link),
        _ => true,
    }
}

fn is_host_end(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => LinkName::new(name).is_some_and(|name| name.is_host_end()),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressMessage;

    use super::*;
    use crate::net::netlink::Netlink;

    fn message(payload: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(name: &str) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link
    }

    #[test]
    fn our_ends_of_sandboxes_links_are_no_news() {
        assert!(is_news(&message(RouteNetlinkMessage::NewLink(link("eth0")))));
        assert!(is_news(&message(RouteNetlinkMessage::DelLink(link("mv0")))));
        assert!(is_news(&message(RouteNetlinkMessage::NewAddress(AddressMessage::default()))));
        assert!(!is_news(&message(RouteNetlinkMessage::NewLink(link("mv0123456789a")))));
    }

    #[test]
    fn any_bytes_are_survived() {
        let whole = message(RouteNetlinkMessage::NewLink(link("mv0123456789a")));
        for n_bytes in 0..whole.len() {
            assert!(is_news(&whole[..n_bytes]), "{n_bytes}");
        }
    }

    /// In a namespace of its own: nobody else makes news there.
    #[test]
    fn more_than_was_taken_is_one_piece_of_news() {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut events = Events::here().unwrap();
                let netlink = Netlink::here().unwrap();
                assert!(events.next().now_or_never().is_none(), "nothing has happened");
                let lo = netlink.link("lo").await.unwrap().unwrap();
                // More messages than the socket's buffer holds, 208 KiB unless the machine says otherwise.
                events.socket.socket_mut().set_rx_buf_sz(4096_i32).unwrap();
                for n in 1..=64 {
                    let address = std::net::Ipv4Addr::new(127, 0, 1, n).into();
                    netlink.handle.address().add(lo.index, address, 32).execute().await.unwrap();
                }
                events.next().await;
                assert!(events.next().now_or_never().is_none(), "all is told");
            });
        });
        thread.join().unwrap();
    }
}
