//! The bed itself: hosts reach each other, cuts cut, a power cut ends everything, a disk stays.

use std::fs;

use quorate_cluster_tests::bed::Bed;

/// Its bit in the kernel's capability sets (capability.h).
const CAP_SYS_TIME: u32 = 25;

fn reaches(bed: &Bed, from: u8, to: u8) -> bool {
    let target = bed.address(to).to_string();
    let script = format!("exec 3<>/dev/tcp/{target}/9; :");
    let output = bed.command(from, "timeout").unwrap().args(["1", "bash", "-c", &script]).output().unwrap();
    // Nothing listens: a refusal comes from the other host, silence from a cut.
    String::from_utf8_lossy(&output.stderr).contains("refused")
}

#[test]
fn hosts_can_be_cut_healed_and_switched_off() {
    if !Bed::is_possible() {
        eprintln!("NOT RUN: this test needs root and network namespaces");
        return;
    }
    let mut bed = Bed::new(90, 2).unwrap();
    assert!(reaches(&bed, 1, 2));
    bed.cut(1, 2).unwrap();
    assert!(!reaches(&bed, 1, 2));
    assert!(!reaches(&bed, 2, 1));
    bed.heal().unwrap();
    assert!(reaches(&bed, 2, 1));

    let mut sleeper = bed.command(1, "sleep").unwrap().arg("1000").spawn().unwrap();
    let note = bed.disk(1).unwrap().join("note");
    fs::write(&note, "kept").unwrap();
    bed.power_off(1).unwrap();
    assert!(!sleeper.wait().unwrap().success(), "nothing on the host may survive");
    assert!(bed.command(1, "true").is_err());
    bed.power_on(1).unwrap();
    assert!(reaches(&bed, 2, 1));
    assert_eq!(fs::read_to_string(&note).unwrap(), "kept");
    let status = bed.command(1, "grep").unwrap().args(["CapBnd", "/proc/self/status"]).output().unwrap();
    let text = String::from_utf8_lossy(&status.stdout).replace("CapBnd:", "");
    let bounding = u64::from_str_radix(text.trim(), 16).unwrap();
    assert_eq!(bounding >> CAP_SYS_TIME & 1, 0, "a host must not be able to set the machine's clock");
}
