//! The program that a libvirt domain names in `<emulator>`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    zerosweep_cli::zerosweep_qemu()
}
