//! From outcomes to verdicts. Every program's packets are accounted for here and nowhere else.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use ebpf_abi::DropReason;

use crate::account::Account;
use crate::path::{self, Sender};
use crate::skb::Skb;
use crate::{errors, tunnel};

/// What a program decided.
pub enum Verdict {
    /// The kernel's own stack, or the next program on the hook, may have it.
    Pass,
    /// Sent on; the value is the hook's own action code, or a turn from [`NEXT_PART`] on.
    Forward(i32),
}

impl Verdict {
    /// Through the tunnel that [`crate::scratch::aim`] was told. Of tc alone, and done at the program's end. No variant of its own: one
    /// without a value beside one with it makes the compiler copy what is not there, which the verifier refuses.
    pub const TUNNEL: Self = Self::Forward(INTO_TUNNEL);
    /// The same, for a packet that is at the kernel's device already.
    pub const BY_DEVICE: Self = Self::Forward(BY_DEVICE);
    /// An ICMP error about a backend's answer, which a part of its own delivers.
    pub const ERROR: Self = Self::Forward(ERROR);
    /// Sent by IPv6 out of its network, or to a virtual address that nobody serves, which a part of its own refuses.
    pub const REFUSED: Self = Self::Forward(REFUSED);
    /// Taken out of the tunnel that [`crate::scratch`] keeps.
    pub const ARRIVED: Self = Self::Forward(ARRIVED);
    /// To a virtual address, which [`crate::vips`] finds a backend for.
    pub const TO_VIP: Self = Self::Forward(TO_VIP);
    /// The same, if it is no flow's: it may be an ICMP error about an answer.
    pub const VIP_ERROR: Self = Self::Forward(VIP_ERROR);
    /// To the gateway, perhaps as the answer of a task to itself.
    pub const TO_GATEWAY: Self = Self::Forward(TO_GATEWAY);
    /// To a task of this node, perhaps as the answer of a virtual address.
    pub const FOR_TASK: Self = Self::Forward(FOR_TASK);
    /// A node's own process asks an endpoint of this node, which has to be remembered for the answer; the flow is in [`crate::scratch`].
    pub const FROM_PROCESS: Self = Self::Forward(FROM_PROCESS);
    /// To the client that it answers, which a part of its own finds the way to.
    pub const ANSWER: Self = Self::Forward(ANSWER);
    /// By a task's way out, and no answer to a client: [`crate::way_out`] looks whose address it has.
    pub const WAY_OUT: Self = Self::Forward(WAY_OUT);
    /// A client's IPv6 packet, as [`crate::scratch`] has it, for a task that may listen on IPv4 alone.
    pub const FAMILY: Self = Self::Forward(FAMILY);
    /// A client's packet, as [`crate::scratch`] has it, for a task of this node.
    pub const HAND_OVER: Self = Self::Forward(HAND_OVER);
    /// The same for an ICMP error about the task's answers.
    pub const HAND_OVER_ERROR: Self = Self::Forward(HAND_OVER_ERROR);
    /// Becomes a packet of the other version.
    pub const TRANSLATE: Self = Self::Forward(TRANSLATE);
    /// Becomes an ICMP error of the other version.
    pub const TRANSLATE_ERROR: Self = Self::Forward(TRANSLATE_ERROR);
}

pub type Outcome = Result<Verdict, DropReason>;

/// What a part of a tc program returns beside the actions of the hook: the next part's turn, and the tunnel's. A program is
/// made of parts that are functions of their own, one after the other, so that their stacks, which kernel 6.1 counts to the
/// byte, don't add up. Outcomes don't fit between functions: the verifier wants all of their bytes written.
pub const NEXT_PART: i32 = 100;
const INTO_TUNNEL: i32 = 101;
/// The same by the kernel's device, if its sender need not be told that it is too long.
pub const BY_DEVICE: i32 = 102;
pub const ERROR: i32 = 103;
pub const ARRIVED: i32 = 104;
pub const REFUSED: i32 = 105;
pub const ANSWER: i32 = 106;
pub const FAMILY: i32 = 107;
pub const TRANSLATE: i32 = 108;
pub const TRANSLATE_ERROR: i32 = 109;
pub const HAND_OVER: i32 = 110;
pub const HAND_OVER_ERROR: i32 = 111;
pub const TO_VIP: i32 = 112;
pub const VIP_ERROR: i32 = 113;
pub const FOR_TASK: i32 = 114;
pub const TO_GATEWAY: i32 = 115;
pub const FROM_PROCESS: i32 = 116;
pub const WAY_OUT: i32 = 117;

/// Ends a part; `None` leaves the packet to the next.
#[inline(always)]
pub fn part(account: &Account, outcome: &Option<Outcome>) -> i32 {
    match outcome {
        None => NEXT_PART,
        Some(Ok(Verdict::Forward(turn @ NEXT_PART..))) => *turn,
        Some(Ok(Verdict::Forward(action))) => {
            account.forwarded();
            *action
        }
        Some(Ok(Verdict::Pass)) => {
            account.passed();
            TC_ACT_UNSPEC
        }
        Some(Err(reason)) => {
            account.dropped(*reason);
            TC_ACT_SHOT
        }
    }
}

/// Ends a tc program whose last part has returned this, and which has its packets from `sender`.
#[inline(always)]
pub fn tc(account: &Account, packet: &Skb, action: i32, sender: Sender) -> i32 {
    if action != INTO_TUNNEL {
        return action;
    }
    path::clamp(packet);
    let mut action = into_tunnel(account, packet);
    if action == BY_DEVICE {
        let mtu = path::told(packet, sender);
        if mtu != 0 {
            action = refused(account, packet, (mtu, sender));
        }
    }
    // An error may have its way by a tunnel, too.
    if action == BY_DEVICE || action == INTO_TUNNEL { by_device(account, packet) } else { action }
}

#[inline(never)]
fn into_tunnel(account: &Account, packet: &Skb) -> i32 {
    let sent = tunnel::send(account, packet);
    part(account, &Some(sent.map(Verdict::Forward)))
}

#[inline(never)]
fn by_device(account: &Account, packet: &Skb) -> i32 {
    part(account, &Some(tunnel::send_by_device(packet).map(Verdict::Forward)))
}

/// The packet is too long: its sender is told how long it may be.
#[inline(always)]
pub fn refused(account: &Account, packet: &Skb, (mtu, sender): (u32, Sender)) -> i32 {
    match sender {
        Sender::Task => refused_to_task(account, packet, mtu),
        Sender::Other => refused_to_other(account, packet, mtu),
    }
}

#[inline(never)]
fn refused_to_task(account: &Account, packet: &Skb, mtu: u32) -> i32 {
    part(account, &Some(errors::refuse_length(packet, mtu as u16, Sender::Task)))
}

#[inline(never)]
fn refused_to_other(account: &Account, packet: &Skb, mtu: u32) -> i32 {
    part(account, &Some(errors::refuse_length(packet, mtu as u16, Sender::Other)))
}

/// Ends an XDP program.
#[inline(always)]
pub fn xdp(account: &Account, outcome: &Outcome) -> u32 {
    match outcome {
        Ok(Verdict::Pass) => {
            account.passed();
            xdp_action::XDP_PASS
        }
        Ok(Verdict::Forward(action)) => {
            account.forwarded();
            *action as u32
        }
        Err(reason) => {
            account.dropped(*reason);
            xdp_action::XDP_DROP
        }
    }
}
