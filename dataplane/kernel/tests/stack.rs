//! The programs' stacks. Kernel 6.1 counts 32 bytes at least for any function called, and 512 in all; programs call functions
//! of the compiler's (`memset` and the like), which use none themselves.
#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::path::Path;

/// Bytes below the frame's top that a program may use.
const LARGEST: i16 = 512 - 32;

/// ELF64, little-endian: where the header tells of section headers, and what is in one.
const SECTIONS_OFFSET: usize = 0x28;
const SECTION_SIZE: usize = 0x3a;
const N_SECTIONS: usize = 0x3c;
const FLAGS: usize = 0x08;
const OFFSET: usize = 0x18;
const SIZE: usize = 0x20;
const EXECUTABLE: u64 = 4;

/// BPF instructions (RFC 9669 section 3): eight bytes, whose first has the class. Loads have the frame as their source,
/// stores as their destination.
const LOAD: u8 = 1;
const STORES: [u8; 2] = [2, 3];
const FRAME: u8 = 10;

fn number<const N: usize>(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&bytes[offset..offset + N]);
    u64::from_le_bytes(number)
}

fn place<const N: usize>(bytes: &[u8], offset: usize) -> usize {
    number::<N>(bytes, offset).try_into().unwrap()
}

/// How far below the top of its frame an instruction reaches.
fn reach(instruction: &[u8]) -> i16 {
    let (class, registers) = (instruction[0] & 7, instruction[1]);
    let is_of_frame =
        (class == LOAD && registers >> 4 == FRAME) || (STORES.contains(&class) && registers & 0xf == FRAME);
    let offset = i16::from_le_bytes([instruction[2], instruction[3]]);
    if is_of_frame { -offset } else { 0 }
}

#[test]
fn stacks_leave_room_for_a_call_on_the_oldest_kernel() {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ebpf/prebuilt/mesh.o");
    let object = std::fs::read(object).unwrap();
    let (start, size) = (place::<8>(&object, SECTIONS_OFFSET), place::<2>(&object, SECTION_SIZE));
    let headers = object[start..].chunks(size).take(place::<2>(&object, N_SECTIONS));
    let code = headers.filter(|header| number::<8>(header, FLAGS) & EXECUTABLE != 0).flat_map(|header| {
        let start = place::<8>(header, OFFSET);
        object[start..start + place::<8>(header, SIZE)].chunks(8)
    });
    let reaches: Vec<i16> = code.map(reach).collect();
    let largest = reaches.iter().max().unwrap();
    assert!(reaches.len() > 1000 && *largest > 0, "the object was not understood");
    assert!(*largest <= LARGEST, "a program uses {largest} bytes of stack: kernel 6.1 would refuse it");
}
