//! Command lines with which a tool only asks QEMU what it can do: there is no guest to manage.

use super::options::{Line, Properties};

/// Options that QEMU answers, and ends.
const ANSWERED: [&str; 4] = ["h", "help", "version", "audio-help"];

/// Whether QEMU is only asked: for its help, its version, the values of an option, or, on a machine
/// without memory and CPUs (`-machine none`), through QMP.
pub(crate) fn only_asks(line: &Line) -> bool {
    line.options.iter().any(|option| {
        let value = option.value();
        match option.name.as_str() {
            name if ANSWERED.contains(&name) => true,
            "M" | "machine" if Properties::parse(value, "type").get("type") == Some("none") => true,
            // Free text, in which the word means nothing.
            "append" | "name" | "kernel" | "initrd" | "drive" | "hda" | "fw_cfg" | "smbios" => {
                false
            }
            _ => asks_for_values(value),
        }
    })
}

fn asks_for_values(value: &str) -> bool {
    let last = value.rsplit(',').next().unwrap_or_default();
    matches!(last, "help" | "?")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn asks(line: &str) -> bool {
        only_asks(&Line::by_tables(&line.split(' ').map(OsString::from).collect::<Vec<_>>()))
    }

    #[test]
    fn questions() {
        for line in [
            "-version",
            "--help",
            "-h",
            "-cpu help",
            "-machine help",
            "-M ?",
            "-device virtio-balloon-pci,help",
            "-S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg -qmp \
             unix:/var/lib/libvirt/qemu/qmp-X/qmp.monitor,server=on,wait=off -pidfile x -daemonize",
        ] {
            assert!(asks(line), "{line}");
        }
    }

    #[test]
    fn guests() {
        for line in [
            "-name guest=vm,debug-threads=on -S -machine pc-i440fx-7.2,usb=off -m 2048",
            "-append help -m 1G",
            "-append x,help",
            "-name none",
            "-m 1G help",
            "-machine type=pc,accel=tcg",
        ] {
            assert!(!asks(line), "{line}");
        }
    }
}
