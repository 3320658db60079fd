//! Asking the kernel what program a filter of a clsact qdisc runs: aya attaches filters and has no such question.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// A place among the filters of an interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct FilterPlace {
    pub ifindex: u32,
    pub is_egress: bool,
    pub priority: u16,
    pub handle: u32,
}

/// The id of the program in the filter at `place`; `None` if there is no such filter, qdisc or interface.
pub(super) fn program_id(place: &FilterPlace) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(question(place)?));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
            Ok(filter.attributes.iter().find_map(id_in))
        }
        NetlinkPayload::Error(error) => absence(error.to_io()),
        other => Err(io::Error::other(format!("no answer about a filter: {other:?}"))),
    }
}

fn question(place: &FilterPlace) -> io::Result<TcMessage> {
    let minor = if place.is_egress { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS };
    let header = TcHeader {
        index: i32::try_from(place.ifindex).map_err(io::Error::other)?,
        handle: place.handle.into(),
        parent: TcHandle { major: TcHandle::CLSACT.major, minor },
        info: u32::from(place.priority) << 16 | u32::from(ALL_PROTOCOLS.to_be()),
        ..TcHeader::default()
    };
    Ok(TcMessage::from_parts(header, vec![]))
}

/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;

fn id_in(attribute: &TcAttribute) -> Option<u32> {
    let TcAttribute::Options(options) = attribute else { return None };
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

/// What the kernel says where there is no such filter, no clsact qdisc, and no such interface.
fn absence(error: io::Error) -> io::Result<Option<u32>> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV) => Ok(None),
        _ => Err(error),
    }
}
