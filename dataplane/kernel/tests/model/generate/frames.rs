//! Building frames, and spoiling them.

use ebpf_abi::{FlowTuple, Ip4, MacAddr, protocol};

use super::dice::Dice;
use crate::frame::{ACK, ETHERNET, FIN, RST, SYN, checksum, put};

/// Headers in front of a payload.
#[derive(Clone)]
pub struct Headers {
    pub macs: (MacAddr, MacAddr),
    pub source: Ip4,
    pub destination: Ip4,
    pub protocol: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    pub id: u8,
}

impl Headers {
    /// From the first MAC to the second, whole.
    pub fn of(macs: (MacAddr, MacAddr), tuple: &FlowTuple) -> Self {
        let (source, destination, protocol) = (tuple.source.low(), tuple.destination.low(), tuple.protocol);
        Self { macs, source, destination, protocol, fragment: 0, id: 1 }
    }

    /// The frame. IPv4's checksum is right, or anything.
    pub fn frame(&self, dice: &mut Dice, payload: &[u8]) -> Vec<u8> {
        let options = if dice.one_in(25) { 4 * (1 + dice.below(10)) } else { 0 };
        let [high, low] = u16::try_from(20 + options + payload.len()).unwrap().to_be_bytes();
        let mut frame = [self.macs.1.0, self.macs.0.0].concat();
        frame.extend([
            8,
            0,
            0x45 + u8::try_from(options / 4).unwrap(),
            dice.pick(&[0, 0, 1, 2, 3]),
            high,
            low,
            0,
            self.id,
        ]);
        frame.extend(self.fragment.to_be_bytes());
        frame.extend([64, self.protocol, 0, 0]);
        frame.extend([self.source.0, self.destination.0].concat());
        frame.extend(vec![1; options]);
        let sum = if dice.one_in(4) { dice.word() } else { checksum(&frame[ETHERNET..]).to_be_bytes() };
        put(&mut frame, ETHERNET + 10, &sum);
        frame.extend(payload);
        frame
    }
}

/// TCP flags as connections have them, and now and then any.
pub fn flags(dice: &mut Dice) -> u8 {
    match dice.below(12) {
        0..3 => SYN,
        3..8 => ACK,
        8 => FIN | ACK,
        9 => RST,
        10 => SYN | ACK,
        _ => dice.byte(),
    }
}

/// The segment or datagram of a flow, checksum included: right, none, or anything.
pub fn transport(dice: &mut Dice, tuple: &FlowTuple) -> Vec<u8> {
    let mut segment = [tuple.source_port.0, tuple.destination_port.0].concat();
    let payload = dice.below(24);
    let checksum_offset = if tuple.protocol == protocol::TCP {
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags(dice), 255, 255, 0, 0, 0, 0]);
        16
    } else {
        segment.extend([0, 8 + u8::try_from(payload).unwrap(), 0, 0]);
        6
    };
    segment.extend(dice.bytes(payload));
    let sum = match dice.below(4) {
        0 => {
            let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
            let addresses = [tuple.source.0, tuple.destination.0].concat();
            let covered = [addresses.as_slice(), &[0, tuple.protocol], &length, &segment].concat();
            checksum(&covered).to_be_bytes()
        }
        1 => dice.pick(&[[0, 0], [0xff, 0xff], [0xff, 0xfe], [0, 1]]),
        _ => dice.word(),
    };
    put(&mut segment, checksum_offset, &sum);
    segment
}

/// An ICMP message about a packet of a flow; now and then one that is no error.
pub fn icmp_error(dice: &mut Dice, about: &FlowTuple) -> Vec<u8> {
    let mut inner = Headers::of((MacAddr::default(), MacAddr::default()), about);
    inner.fragment = if dice.one_in(20) { 7 } else { 0 };
    let segment = transport(dice, about);
    let faulty = inner.frame(dice, &segment).split_off(ETHERNET);
    let kind = dice.pick(&[3, 3, 3, 11, 12, 5, 0]);
    let mut message = vec![kind, dice.byte(), 0, 0, 0, 0, 5, 0];
    message.extend(&faulty[..faulty.len().min(28 + dice.below(20))]);
    let sum = if dice.one_in(4) { dice.word() } else { checksum(&message).to_be_bytes() };
    put(&mut message, 2, &sum);
    message
}

/// Cuts, flips and lies; most frames come through as they are.
pub fn spoil(dice: &mut Dice, frame: &mut Vec<u8>) {
    match dice.below(40) {
        0 | 1 => frame.truncate(ETHERNET + dice.below(frame.len().max(ETHERNET + 1) - ETHERNET)),
        2 | 3 => {
            let position = dice.below(frame.len());
            frame[position] = dice.byte();
        }
        // Within IPv4's header, and the transport's.
        4 | 5 if frame.len() > ETHERNET => {
            let position = ETHERNET + dice.below((frame.len() - ETHERNET).min(48));
            frame[position] ^= 1 << dice.below(8);
        }
        // A length that the frame does not have.
        6 if frame.len() >= ETHERNET + 4 => {
            let length = dice.pick(&[0, 19, 20, 28, 1230, 1231, 1450, 1451, 9000, 65_535_u16]);
            put(frame, ETHERNET + 2, &length.to_be_bytes());
        }
        7 => {
            let tail = dice.below(60);
            let tail = dice.bytes(tail);
            frame.extend(tail);
        }
        _ => {}
    }
}
