//! From outcomes to verdicts. Every program's packets are accounted for here and nowhere else.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use ebpf_abi::DropReason;

use crate::account::Account;

/// What a program decided.
pub enum Verdict {
    /// The kernel's own stack, or the next program on the hook, may have it.
    Pass,
    /// Sent on; the value is the hook's own action code.
    Forward(i32),
}

pub type Outcome = Result<Verdict, DropReason>;

/// Ends a tc program.
#[inline(always)]
pub fn tc(account: &Account, outcome: &Outcome) -> i32 {
    match outcome {
        Ok(Verdict::Pass) => {
            account.passed();
            TC_ACT_UNSPEC
        }
        Ok(Verdict::Forward(action)) => {
            account.forwarded();
            *action
        }
        Err(reason) => {
            account.dropped(*reason);
            TC_ACT_SHOT
        }
    }
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
