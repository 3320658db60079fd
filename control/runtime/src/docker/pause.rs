//! The image of sandbox containers: one program that waits until it is killed, small enough to be written down.
//!
//! A sandbox container holds the network namespace of a task, as the engine's own containers hold theirs. It needs a process that
//! lives; of an image that would have to come from somewhere, nodes without a way out could have none.

/// Where it is loaded.
const BASE: u64 = 0x40_0000;
const ELF_HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
/// Name of the program in the image.
pub(super) const PROGRAM: &str = "pause";

/// A processor that the program is written for.
struct Machine {
    /// `e_machine` (ELF).
    number: u16,
    /// `pause(2)`, or where there is none `ppoll(2)` of nothing, for ever.
    code: &'static [u8],
}

#[cfg(target_arch = "x86_64")]
const MACHINE: Machine = Machine {
    number: 62,
    // mov eax, 34; syscall; jmp to the begin
    code: &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],
};
#[cfg(target_arch = "aarch64")]
const MACHINE: Machine = Machine {
    number: 183,
    // mov x0..x4, #0; mov x8, #73; svc #0; b to the begin
    code: &[
        0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, 0x04,
        0x00, 0x80, 0xd2, 0x28, 0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xf9, 0xff, 0xff, 0x17,
    ],
};

/// The program: an ELF file (System V ABI, chapter 4) with one segment.
fn program() -> Vec<u8> {
    let Machine { number, code } = MACHINE;
    let headers = ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES;
    let len = u64::from(headers) + code.len() as u64;
    let mut file = Vec::new();
    // Class 64 bits, little endian, version 1.
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // An executable.
    file.extend(2_u16.to_le_bytes());
    file.extend(number.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    // Entry, program headers, no section headers, no flags.
    file.extend((BASE + u64::from(headers)).to_le_bytes());
    file.extend(u64::from(ELF_HEADER_BYTES).to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // A segment that is loaded, to be read and executed: the whole file.
    file.extend(1_u32.to_le_bytes());
    file.extend(5_u32.to_le_bytes());
    for word in [0, BASE, BASE, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The image's file system, as an archive (tar).
pub(super) fn root() -> std::io::Result<Vec<u8>> {
    let program = program();
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, PROGRAM, &*program)?;
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_program_waits_until_it_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        tar::Archive::new(&*root().unwrap()).unpack(dir.path()).unwrap();
        let path = dir.path().join(PROGRAM);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o111, 0o111);
        let mut child = Command::new(&path).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(child.try_wait().unwrap(), None, "it waits");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
