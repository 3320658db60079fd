//! Building frames, and spoiling them.

use ebpf_abi::{FlowTuple, Ip, MacAddr, protocol};

use super::dice::Dice;
use crate::frame::{ACK, ETHERNET, FIN, IPV6, RST, SYN, checksum, put};
use crate::network::{Family, pseudo_header};
use crate::sctp;

/// Headers in front of a payload.
#[derive(Clone)]
pub struct Headers {
    pub macs: (MacAddr, MacAddr),
    pub source: Ip,
    pub destination: Ip,
    pub protocol: u8,
    /// Flags and fragment offset, as IPv4 has them.
    pub fragment: u16,
    pub id: u8,
}

impl Headers {
    /// From the first MAC to the second, whole.
    pub fn of(macs: (MacAddr, MacAddr), tuple: &FlowTuple) -> Self {
        let (source, destination, protocol) = (tuple.source, tuple.destination, tuple.protocol);
        Self { macs, source, destination, protocol, fragment: 0, id: 1 }
    }

    pub fn family(&self) -> Family {
        Family::of_address(self.source)
    }

    /// The frame.
    pub fn frame(&self, dice: &mut Dice, payload: &[u8]) -> Vec<u8> {
        match self.family() {
            Family::V4 => self.frame4(dice, payload),
            Family::V6 => self.frame6(dice, payload),
        }
    }

    /// The checksum is right, or anything.
    fn frame4(&self, dice: &mut Dice, payload: &[u8]) -> Vec<u8> {
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
        frame.extend([self.source.low().0, self.destination.low().0].concat());
        frame.extend(vec![1; options]);
        let sum = if dice.one_in(4) { dice.word() } else { checksum(&frame[ETHERNET..]).to_be_bytes() };
        put(&mut frame, ETHERNET + 10, &sum);
        frame.extend(payload);
        frame
    }

    fn frame6(&self, dice: &mut Dice, payload: &[u8]) -> Vec<u8> {
        let (first, extensions) = self.extensions(dice);
        let [high, low] = u16::try_from(extensions.len() + payload.len()).unwrap().to_be_bytes();
        let mut frame = [self.macs.1.0, self.macs.0.0].concat();
        frame.extend(IPV6);
        frame.extend([
            0x60 + dice.pick(&[0, 0, 0, 15]),
            dice.byte(),
            dice.byte(),
            dice.byte(),
            high,
            low,
            first,
        ]);
        frame.push(if self.protocol == protocol::ICMP6 && !dice.one_in(30) { 255 } else { 64 });
        frame.extend([self.source.0, self.destination.0].concat());
        frame.extend(extensions);
        frame.extend(payload);
        frame
    }

    /// The first one's number, and all of them: mostly none but that of a fragment, which others may follow.
    fn extensions(&self, dice: &mut Dice) -> (u8, Vec<u8>) {
        const FRAGMENT: u8 = 44;
        let is_fragment = self.fragment & 0x3fff != 0 || dice.one_in(60);
        let n_others = if dice.one_in(if is_fragment { 4 } else { 16 }) { 1 + dice.below(5) } else { 0 };
        let mut kinds: Vec<u8> = (0..n_others).map(|_| dice.pick(&[0, 43, 60, 60])).collect();
        if is_fragment {
            let position = if dice.one_in(2) { dice.below(kinds.len() + 1) } else { kinds.len() };
            kinds.insert(position, FRAGMENT);
        }
        let nexts = kinds.iter().copied().skip(1).chain([self.protocol]);
        let mut all = Vec::new();
        for (kind, next) in kinds.iter().zip(nexts) {
            if *kind == FRAGMENT {
                let more = u16::from(self.fragment & 1 << 13 != 0);
                let offset = (self.fragment & 0x1fff) << 3 | more;
                all.extend([[next, 0], offset.to_be_bytes(), [0, 0], [0, self.id]].concat());
            } else {
                let units = dice.below(3);
                all.extend([next, u8::try_from(units).unwrap(), 1, 4, 0, 0, 0, 0]);
                all.extend(vec![0; 8 * units]);
            }
        }
        (kinds.first().copied().unwrap_or(self.protocol), all)
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
    if tuple.protocol == protocol::SCTP {
        return sctp_packet(dice, tuple);
    }
    let mut segment = [tuple.source_port.0, tuple.destination_port.0].concat();
    let payload = payload_len(dice);
    let checksum_offset = if tuple.protocol == protocol::TCP {
        let options = if dice.one_in(3) { tcp_options(dice) } else { Vec::new() };
        let offset = 0x50 + u8::try_from(options.len() / 4).unwrap() * 16;
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, offset, flags(dice), 255, 255, 0, 0, 0, 0]);
        segment.extend(options);
        16
    } else {
        segment.extend(u16::try_from(8 + payload).unwrap().to_be_bytes());
        segment.extend([0, 0]);
        6
    };
    segment.extend(dice.bytes(payload));
    let sum = match dice.below(4) {
        0 => {
            let length = u16::try_from(segment.len()).unwrap();
            let mut covered = pseudo_header((tuple.source, tuple.destination), tuple.protocol, length);
            covered.extend(&segment);
            checksum(&covered).to_be_bytes()
        }
        1 => dice.pick(&[[0, 0], [0xff, 0xff], [0xff, 0xfe], [0, 1]]),
        _ => dice.word(),
    };
    put(&mut segment, checksum_offset, &sum);
    segment
}

/// Little, or what many a tunnel can't take.
fn payload_len(dice: &mut Dice) -> usize {
    if dice.one_in(12) { 1150 + dice.below(500) } else { dice.below(24) }
}

fn sctp_packet(dice: &mut Dice, tuple: &FlowTuple) -> Vec<u8> {
    let mut packet = [tuple.source_port.0, tuple.destination_port.0].concat();
    packet.extend([1, 2, 3, 4, 0, 0, 0, 0]);
    packet.push(match dice.below(8) {
        0 | 1 => sctp::INIT,
        2 => sctp::ABORT,
        3 => dice.pick(&[sctp::SHUTDOWN_ACK, sctp::SHUTDOWN_COMPLETE]),
        _ => dice.below(16).try_into().unwrap(),
    });
    let rest = payload_len(dice);
    packet.extend(dice.bytes(rest));
    let sum = match dice.below(4) {
        0 => [0; 4],
        1 => [dice.word(), dice.word()].concat().try_into().unwrap(),
        _ => sctp::checksum(&packet),
    };
    put(&mut packet, sctp::CHECKSUM, &sum);
    packet
}

/// An MSS, and now and then others in front of it, none of which has to be sound.
fn tcp_options(dice: &mut Dice) -> Vec<u8> {
    let before = dice.pick(&[&[][..], &[1], &[4, 2], &[3, 3, 7, 1], &[9, 0, 1], &[0]]);
    let [high, low] = dice.pick(&[536_u16, 1220, 1390, 1391, 1440, 8940]).to_be_bytes();
    let mut options = [before, &[2, 4, high, low]].concat();
    if dice.one_in(20) {
        options.pop();
    }
    options.resize(options.len().next_multiple_of(4), 1);
    options
}

/// An ICMP message, behind these headers, about a packet of a flow; now and then one that is no error.
pub fn icmp_error(dice: &mut Dice, headers: &Headers, about: &FlowTuple) -> Vec<u8> {
    let mut inner = Headers::of((MacAddr::default(), MacAddr::default()), about);
    inner.fragment = if dice.one_in(20) { 7 } else { 0 };
    let segment = transport(dice, about);
    let faulty = inner.frame(dice, &segment).split_off(ETHERNET);
    let (kind, carried) = match headers.family() {
        Family::V4 => (dice.pick(&[3, 3, 3, 11, 12, 5, 0]), 28),
        Family::V6 => (dice.pick(&[1, 1, 2, 2, 3, 4, 5, 0]), 48),
    };
    let mut message = vec![kind, dice.byte(), 0, 0, 0, 0, 5, 0];
    let more = if dice.one_in(8) { faulty.len() } else { dice.below(20) };
    message.extend(&faulty[..faulty.len().min(carried + more)]);
    icmp_checksum(dice, headers, &mut message);
    message
}

/// Right, or anything.
pub fn icmp_checksum(dice: &mut Dice, headers: &Headers, message: &mut [u8]) {
    let covered = match headers.family() {
        Family::V4 => message.to_vec(),
        Family::V6 => {
            let length = u16::try_from(message.len()).unwrap();
            let mut covered = pseudo_header((headers.source, headers.destination), protocol::ICMP6, length);
            covered.extend(&*message);
            covered
        }
    };
    let sum = if dice.one_in(4) { dice.word() } else { checksum(&covered).to_be_bytes() };
    put(message, 2, &sum);
}

/// Cuts, flips and lies; most frames come through as they are.
pub fn spoil(dice: &mut Dice, frame: &mut Vec<u8>) {
    let is_v6 = frame.get(12..14) == Some(&IPV6);
    match dice.below(40) {
        0 | 1 => frame.truncate(ETHERNET + dice.below(frame.len().max(ETHERNET + 1) - ETHERNET)),
        2 | 3 => {
            let position = dice.below(frame.len());
            frame[position] = dice.byte();
        }
        // Within the IP header, and the transport's.
        4 | 5 if frame.len() > ETHERNET => {
            let position = ETHERNET + dice.below((frame.len() - ETHERNET).min(if is_v6 { 80 } else { 48 }));
            frame[position] ^= 1 << dice.below(8);
        }
        // Between TCP's flags and its checksum.
        8 => frame.truncate(ETHERNET + if is_v6 { 40 } else { 20 } + 14 + dice.below(4)),
        // A length that the frame does not have.
        6 if frame.len() >= ETHERNET + 6 => {
            let length = dice.pick(&[0, 19, 20, 28, 1190, 1191, 1230, 1231, 1450, 1451, 9000, 65_535_u16]);
            put(frame, ETHERNET + if is_v6 { 4 } else { 2 }, &length.to_be_bytes());
        }
        7 => {
            let tail = dice.below(60);
            let tail = dice.bytes(tail);
            frame.extend(tail);
        }
        _ => {}
    }
}
