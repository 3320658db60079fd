//! A netlink socket in one namespace, and the links, addresses, routes and rules read through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
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

/// How a VXLAN device was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct VxlanMode {
    pub port: u16,
    /// It takes the tunnel's ends from metadata.
    pub collects: bool,
    /// It takes UDP over IPv6 without checksums.
    pub over_ipv6: bool,
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
    /// The id of that namespace in this one. The kernel gives one when it is first asked of the link.
    pub peer_namespace: Option<u32>,
    pub kind: Option<InfoKind>,
    pub alias: Option<String>,
    /// 0 of a link that was put into none.
    pub group: u32,
    pub vxlan: Option<VxlanMode>,
    pub is_isolated: bool,
    pub ipv6: Ipv6Mode,
}

/// What an interface does about IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Ipv6Mode {
    #[default]
    Off,
    /// It has the addresses that it is given, and no other: it makes none, and takes nothing from routers.
    Given,
    Other,
}

/// An address of an interface, with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub device: u32,
    pub network: IpNetwork,
    /// Neither temporary (RFC 8981) nor deprecated, nor still to be told from others' (RFC 4862).
    pub is_lasting: bool,
}

/// A route of either family.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub table: u32,
    pub destination: IpNetwork,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub device: Option<u32>,
    pub protocol: RouteProtocol,
    pub message: RouteMessage,
}

/// A rule that looks at the source.
#[derive(Debug, Clone)]
pub(super) struct SourceRule {
    pub source: IpNetwork,
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

    pub(super) async fn addresses(&self) -> Result<Vec<Address>, NetError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(NetError::netlink("list addresses"))?;
        Ok(messages.iter().filter_map(Address::new).collect())
    }

    /// Gives the interface these addresses, and no other of their families.
    pub(super) async fn set_only_addresses(&self, index: u32, wanted: &[IpNetwork]) -> Result<(), NetError> {
        let is_stale = |address: &Address| {
            address.device == index
                && wanted.iter().any(|wanted| wanted.is_ipv4() == address.network.is_ipv4())
                && !wanted.contains(&address.network)
        };
        for old in self.addresses().await?.into_iter().filter(is_stale) {
            let deleted = self.handle.address().del(address_message(index, old.network)).execute().await;
            unless(deleted, &[libc::EADDRNOTAVAIL])
                .map_err(NetError::netlink(format!("remove address {}", old.network)))?;
        }
        for address in wanted {
            self.add_address(index, *address).await?;
        }
        Ok(())
    }

    async fn add_address(&self, index: u32, wanted: IpNetwork) -> Result<(), NetError> {
        let mut request = self.handle.address().add(index, wanted.ip(), wanted.prefix());
        if wanted.is_ipv6() {
            // Addresses are the allocator's: nobody else can have it, so it may be used at once (RFC 4862 section 5.4).
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        unless(request.execute().await, &[libc::EEXIST])
            .map_err(NetError::netlink(format!("add address {wanted}")))
    }

    /// Of both families.
    pub(super) async fn routes(&self) -> Result<Vec<Route>, NetError> {
        self.routes_like(RouteMessageBuilder::<IpAddr>::new().build()).await
    }

    /// Of IPv6 alone.
    pub(super) async fn routes6(&self) -> Result<Vec<Route>, NetError> {
        self.routes_like(RouteMessageBuilder::<Ipv6Addr>::new().build()).await
    }

    async fn routes_like(&self, query: RouteMessage) -> Result<Vec<Route>, NetError> {
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

    /// Of both families, as far as the kernel has them.
    pub(super) async fn source_rules(&self) -> Result<Vec<SourceRule>, NetError> {
        let mut rules = Vec::new();
        for family in [IpVersion::V4, IpVersion::V6] {
            let listed: Result<Vec<RuleMessage>, _> =
                self.handle.rule().get(family).execute().try_collect().await;
            match listed {
                Ok(messages) => rules.extend(messages.into_iter().filter_map(SourceRule::new)),
                Err(error) if super::error::errno(&error) == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => return Err(NetError::netlink("list rules")(error)),
            }
        }
        Ok(rules)
    }

    pub(super) async fn add_source_rule(
        &self,
        source: IpAddr,
        table: u32,
        priority: u32,
    ) -> Result<(), NetError> {
        let request = self.handle.rule().add().table_id(table).priority(priority).action(RuleAction::ToTable);
        let added = match source {
            IpAddr::V4(source) => request.v4().source_prefix(source, 32).execute().await,
            IpAddr::V6(source) => request.v6().source_prefix(source, 128).execute().await,
        };
        unless(added, &[libc::EEXIST])
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
                LinkAttribute::LinkNetNsId(id) => link.peer_namespace = u32::try_from(*id).ok(),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::OperState(state) => link.state = Some(*state),
                LinkAttribute::AfSpecUnspec(families) => link.ipv6 = ipv6_mode(families),
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
                let over_ipv6 = infos.iter().any(|info| matches!(info, InfoVxlan::UDPZeroCsumRX(true)));
                self.vxlan = port.map(|port| VxlanMode { port, collects, over_ipv6 });
            }
            LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
                self.is_isolated = infos.iter().any(|info| matches!(info, InfoBridgePort::Isolated(true)));
            }
            _ => {}
        }
    }
}

impl Address {
    fn new(message: &AddressMessage) -> Option<Self> {
        // Of IPv6 `Address`, of IPv4 `Local`: its `Address` is that of the other end, if the link has one.
        let own = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address @ IpAddr::V4(_))
            | AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(*address),
            _ => None,
        })?;
        let fleeting = AddressFlags::Secondary
            | AddressFlags::Deprecated
            | AddressFlags::Tentative
            | AddressFlags::Dadfailed;
        let flags = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        let is_lasting = !flags.unwrap_or(AddressFlags::empty()).intersects(fleeting);
        let network = IpNetwork::new(own, message.header.prefix_len).ok()?;
        Some(Self { device: message.header.index, network, is_lasting })
    }
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    match address {
        IpNetwork::V4(address) => {
            let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new().index(index);
            message.address(address.ip(), address.prefix()).build()
        }
        IpNetwork::V6(address) => {
            let message = rtnetlink::AddressMessageBuilder::<Ipv6Addr>::new().index(index);
            message.address(address.ip(), address.prefix()).build()
        }
    }
}

fn ipv6_mode(families: &[AfSpecUnspec]) -> Ipv6Mode {
    let attributes = families.iter().flat_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => attributes.as_slice(),
        _ => &[],
    });
    let (mut is_off, mut makes_none, mut learns_none) = (true, false, false);
    for attribute in attributes {
        match attribute {
            AfSpecInet6::DevConf(settings) => {
                is_off = settings.disable_ipv6 != 0;
                learns_none = settings.accept_ra == 0;
            }
            AfSpecInet6::AddrGenMode(mode) => makes_none = *mode == In6AddrGenMode::None,
            _ => {}
        }
    }
    match (is_off, makes_none && learns_none) {
        (true, _) => Ipv6Mode::Off,
        (false, true) => Ipv6Mode::Given,
        (false, false) => Ipv6Mode::Other,
    }
}

impl Route {
    fn new(message: RouteMessage) -> Option<Self> {
        let everywhere: IpAddr = match message.header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
            RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
            _ => None,
        };
        let mut route = Self {
            table: u32::from(message.header.table),
            destination: IpNetwork::new(everywhere, 0).ok()?,
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
                        IpNetwork::new(ip(address)?, message.header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => route.gateway = ip(address),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
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

    /// Packets go on, and are not refused.
    pub(super) fn is_unicast(&self) -> bool {
        self.message.header.kind == RouteType::Unicast
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
                RuleAttribute::Source(address) => {
                    source = IpNetwork::new(*address, message.header.src_len).ok();
                }
                RuleAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        Some(Self { source: source?, table, message })
    }
}
