//! A netlink socket in one namespace, and the links, addresses, routes and rules read through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use ipnetwork::Ipv4Network;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, State,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, TokioSocket};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::NetError;
use super::error::unless;
use super::namespace::Namespace;

/// A socket and the task that reads from it.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    reader: tokio::task::JoinHandle<()>,
}

/// A network interface, as far as we look at it.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mtu_bytes: u32,
    pub mac: Vec<u8>,
    pub is_up: bool,
    /// RFC 2863 `ifOperStatus`: up once the kernel has noticed the carrier; before, it drops what it should send.
    pub state: Option<State>,
    pub has_arp: bool,
    pub controller: Option<u32>,
    /// The other end's index, in its own namespace.
    pub peer: Option<u32>,
    pub kind: Option<InfoKind>,
    pub alias: Option<String>,
    /// Port and whether it takes the tunnel's ends from metadata.
    pub vxlan: Option<(u16, bool)>,
    pub is_isolated: bool,
}

/// An IPv4 route.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub table: u32,
    pub destination: Ipv4Network,
    pub gateway: Option<Ipv4Addr>,
    pub source: Option<Ipv4Addr>,
    pub device: Option<u32>,
    pub protocol: RouteProtocol,
    pub message: RouteMessage,
}

/// An IPv4 rule that looks at the source.
#[derive(Debug, Clone)]
pub(super) struct SourceRule {
    pub source: Ipv4Network,
    pub table: u32,
    pub message: RuleMessage,
}

impl Netlink {
    /// In the calling thread's namespace. A tokio runtime must be entered.
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self::from_socket(TokioSocket::new(NETLINK_ROUTE)?))
    }

    /// In another namespace. Close it soon: the socket keeps the namespace alive.
    pub(super) fn inside(namespace: &Namespace) -> Result<Self, NetError> {
        let runtime = tokio::runtime::Handle::current();
        let socket = namespace.run(|| {
            let _entered = runtime.enter();
            TokioSocket::new(NETLINK_ROUTE).map_err(|error| NetError::io("open a netlink socket", error))
        })?;
        Ok(Self::from_socket(socket))
    }

    fn from_socket(socket: TokioSocket) -> Self {
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        Self { handle, reader: tokio::spawn(connection) }
    }

    /// Closes the socket before it returns.
    pub(super) async fn close(self) {
        self.reader.abort();
        // The task's end is what closes the socket; that it was aborted is no news.
        let _aborted = self.reader.await;
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, NetError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list interfaces"))?;
        Ok(messages.iter().map(Link::from).collect())
    }

    /// `None` if there is none with the name.
    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        let mut found = Box::pin(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(Link::from)),
            Err(error) if super::error::errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(NetError::netlink(format!("look for interface {name}"))(error)),
        }
    }

    /// Deleting what is absent is success.
    pub(super) async fn delete_link(&self, index: u32) -> Result<(), NetError> {
        unless(self.handle.link().del(index).execute().await, &[libc::ENODEV])
            .map_err(NetError::netlink(format!("delete interface {index}")))
    }

    pub(super) async fn set_link(&self, doing: &str, message: LinkMessage) -> Result<(), NetError> {
        self.handle.link().set(message).execute().await.map_err(NetError::netlink(doing))
    }

    /// IPv4 addresses with their interfaces' indexes.
    pub(super) async fn addresses(&self) -> Result<Vec<(u32, Ipv4Network)>, NetError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list addresses"))?;
        let address = |message: &netlink_packet_route::address::AddressMessage| {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Some((message.header.index, Ipv4Network::new(local, message.header.prefix_len).ok()?))
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Gives the interface this address and no other.
    pub(super) async fn set_only_address(&self, index: u32, address: Ipv4Network) -> Result<(), NetError> {
        for (_, old) in
            self.addresses().await?.into_iter().filter(|(at, old)| *at == index && *old != address)
        {
            let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
                .index(index)
                .address(old.ip(), old.prefix())
                .build();
            unless(self.handle.address().del(message).execute().await, &[libc::EADDRNOTAVAIL])
                .map_err(NetError::netlink(format!("remove address {old}")))?;
        }
        let added =
            self.handle.address().add(index, IpAddr::V4(address.ip()), address.prefix()).execute().await;
        unless(added, &[libc::EEXIST]).map_err(NetError::netlink(format!("add address {address}")))
    }

    pub(super) async fn routes(&self) -> Result<Vec<Route>, NetError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages: Vec<RouteMessage> = self
            .handle
            .route()
            .get(query)
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list routes"))?;
        Ok(messages.into_iter().filter_map(Route::new).collect())
    }

    pub(super) async fn put_route(&self, message: RouteMessage) -> Result<(), NetError> {
        self.handle.route().add(message).replace().execute().await.map_err(NetError::netlink("set a route"))
    }

    pub(super) async fn delete_route(&self, message: RouteMessage) -> Result<(), NetError> {
        unless(self.handle.route().del(message).execute().await, &[libc::ESRCH])
            .map_err(NetError::netlink("delete a route"))
    }

    pub(super) async fn source_rules(&self) -> Result<Vec<SourceRule>, NetError> {
        let messages: Vec<RuleMessage> = self
            .handle
            .rule()
            .get(IpVersion::V4)
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list rules"))?;
        Ok(messages.into_iter().filter_map(SourceRule::new).collect())
    }

    pub(super) async fn add_source_rule(
        &self,
        source: Ipv4Addr,
        table: u32,
        priority: u32,
    ) -> Result<(), NetError> {
        let mut request =
            self.handle.rule().add().v4().source_prefix(source, 32).table_id(table).priority(priority);
        request.message_mut().header.action = netlink_packet_route::rule::RuleAction::ToTable;
        unless(request.execute().await, &[libc::EEXIST])
            .map_err(NetError::netlink(format!("add the rule for packets from {source}")))
    }

    pub(super) async fn delete_rule(&self, message: RuleMessage) -> Result<(), NetError> {
        unless(self.handle.rule().del(message).execute().await, &[libc::ENOENT])
            .map_err(NetError::netlink("delete a rule"))
    }
}

impl Link {
    pub(super) fn is_veth(&self) -> bool {
        self.kind == Some(InfoKind::Veth)
    }
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            is_up: message.header.flags.contains(LinkFlags::Up),
            has_arp: !message.header.flags.contains(LinkFlags::Noarp),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu_bytes) => link.mtu_bytes = *mtu_bytes,
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::OperState(state) => link.state = Some(*state),
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.note(info)),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn note(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.clone()),
            LinkInfo::Data(InfoData::Vxlan(infos)) => {
                let port = infos.iter().find_map(|info| match info {
                    InfoVxlan::Port(port) => Some(*port),
                    _ => None,
                });
                let collects = infos.iter().any(|info| matches!(info, InfoVxlan::CollectMetadata(true)));
                self.vxlan = port.map(|port| (port, collects));
            }
            LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
                self.is_isolated = infos.iter().any(|info| matches!(info, InfoBridgePort::Isolated(true)));
            }
            _ => {}
        }
    }
}

impl Route {
    fn new(message: RouteMessage) -> Option<Self> {
        if message.header.address_family != AddressFamily::Inet {
            return None;
        }
        let v4 = |address: &RouteAddress| match address {
            RouteAddress::Inet(address) => Some(*address),
            _ => None,
        };
        let mut route = Self {
            table: u32::from(message.header.table),
            destination: Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok()?,
            gateway: None,
            source: None,
            device: None,
            protocol: message.header.protocol,
            message: RouteMessage::default(),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Destination(address) => {
                    route.destination =
                        Ipv4Network::new(v4(address)?, message.header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => route.gateway = v4(address),
                RouteAttribute::PrefSource(address) => route.source = v4(address),
                RouteAttribute::Oif(index) => route.device = Some(*index),
                _ => {}
            }
        }
        route.message = message;
        Some(route)
    }

    pub(super) fn is_default(&self) -> bool {
        self.destination.prefix() == 0
    }

    pub(super) fn is_main(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }
}

impl SourceRule {
    fn new(message: RuleMessage) -> Option<Self> {
        let mut source = None;
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Source(IpAddr::V4(address)) => {
                    source = Ipv4Network::new(*address, message.header.src_len).ok();
                }
                RuleAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        Some(Self { source: source?, table, message })
    }
}
