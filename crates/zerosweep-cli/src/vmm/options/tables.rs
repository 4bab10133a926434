//! The options of the QEMUs from 2 to 11, and whether they take an argument.
//!
//! `-help` of most of them says the same; the tables spare the question at the start of every guest.

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// No argument.
    Nothing,
    /// The next word.
    Argument,
}

/// What an option takes, without its dashes; `None` if it is not known.
pub(super) fn takes(name: &str) -> Option<Takes> {
    if WITHOUT_ARGUMENT.contains(&name) {
        Some(Takes::Nothing)
    } else {
        WITH_ARGUMENT.contains(&name).then_some(Takes::Argument)
    }
}

/// Options that take no argument.
const WITHOUT_ARGUMENT: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "localtime",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "rtc-td-hack",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
];

/// Options that take the next word as their argument, whatever it looks like.
const WITH_ARGUMENT: &[&str] = &[
    "D",
    "L",
    "M",
    "accel",
    "acpitable",
    "action",
    "add-fd",
    "append",
    "audio",
    "audiodev",
    "balloon",
    "bios",
    "blockdev",
    "boot",
    "bt",
    "cdrom",
    "chardev",
    "chroot",
    "clock",
    "compat",
    "cpu",
    "d",
    "debugcon",
    "device",
    "dfilter",
    "display",
    "drive",
    "dtb",
    "dump-vmstate",
    "echr",
    "fda",
    "fdb",
    "fsdev",
    "fw_cfg",
    "g",
    "gdb",
    "global",
    "hda",
    "hdachs",
    "hdb",
    "hdc",
    "hdd",
    "icount",
    "incoming",
    "initrd",
    "iscsi",
    "k",
    "kernel",
    "loadvm",
    "m",
    "machine",
    "mem-path",
    "mon",
    "monitor",
    "msg",
    "mtdblock",
    "name",
    "net",
    "netdev",
    "nic",
    "numa",
    "object",
    "option-rom",
    "overcommit",
    "parallel",
    "pflash",
    "pidfile",
    "plugin",
    "prom-env",
    "qmp",
    "qmp-pretty",
    "qtest",
    "qtest-log",
    "readconfig",
    "realtime",
    "rotate",
    "rtc",
    "run-with",
    "runas",
    "sandbox",
    "sd",
    "seed",
    "semihosting-config",
    "serial",
    "set",
    "shim",
    "smbios",
    "smp",
    "soundhw",
    "spice",
    "startdate",
    "tb-size",
    "tpmdev",
    "trace",
    "usbdevice",
    "uuid",
    "vga",
    "virtfs",
    "virtioconsole",
    "vnc",
    "watchdog",
    "watchdog-action",
    "writeconfig",
    "xen-domid",
];

#[cfg(test)]
mod tests {
    use super::super::help::Help;
    use super::*;

    /// What `-help` of the QEMU that is installed lists is in the tables, in the right one.
    #[test]
    #[ignore = "needs QEMU"]
    fn the_tables_have_every_option_of_this_qemu() {
        let help = std::process::Command::new("qemu-system-x86_64").arg("-help").output().unwrap();
        let text = String::from_utf8(help.stdout).unwrap();
        let help = Help::parse(&text);
        let names: Vec<_> = help.all().collect();
        assert!(names.len() > 100, "{text}");
        for name in names {
            let by_table = takes(name);
            assert!(by_table.is_some(), "-{name} is in no table");
            // Where the help does not say it, it contradicts nothing.
            let by_help = help.takes(name);
            assert!(by_help.is_none() || by_help == by_table, "-{name}: {by_help:?}");
        }
    }

    #[test]
    fn no_option_is_in_both_tables() {
        let both: Vec<_> =
            WITHOUT_ARGUMENT.iter().filter(|name| WITH_ARGUMENT.contains(name)).collect();
        assert!(both.is_empty(), "{both:?}");
    }
}
