//! How QEMU reads its command line: options with and without an argument, and the comma lists
//! (or JSON) in the arguments.
//!
//! QEMU's own `-help` does not say reliably which options take an argument (7.2 prints
//! `-async-teardown enable asynchronous teardown`), so there are tables. An option that is in
//! neither table, such as one of a later QEMU, never takes a word that begins with a dash: what
//! must be refused cannot hide behind it.

use std::ffi::OsString;

use serde_json::{Map, Value};

/// Options that take no argument, of every QEMU from 2 to 10.
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

/// One option of the command line, without its dashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmmOption {
    /// `m`, `device`, …
    pub(crate) name: String,
    /// The word after it, for options that take one.
    pub(crate) value: Option<String>,
}

impl VmmOption {
    /// The argument, empty where there is none.
    pub(crate) fn value(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }
}

/// Splits the command line (without the program) into options. Words that stand alone are disk
/// images: QEMU takes them for `-hda`. What `-set GROUP.ID.KEY=VALUE` says is put where it belongs.
pub(crate) fn split(arguments: &[OsString]) -> Vec<VmmOption> {
    let mut words = arguments.iter().map(|word| word.to_string_lossy()).peekable();
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
            if !word.is_empty() && word != "-" {
                options.push(VmmOption { name: "hda".to_owned(), value: Some(word.into_owned()) });
            }
            continue;
        };
        // QEMU takes `--m` for `-m`.
        let name = name.strip_prefix('-').unwrap_or(name).to_owned();
        let value = match name.as_str() {
            name if WITHOUT_ARGUMENT.contains(&name) => None,
            name if WITH_ARGUMENT.contains(&name) => words.next(),
            _ => words.next_if(|word| !word.starts_with('-')),
        };
        let value = value.map(|value| value.into_owned());
        options.push(VmmOption { name, value });
    }
    set(&mut options);
    options
}

/// Adds what `-set` says to the option with that group and id. Nothing can be added to JSON; QEMU
/// cannot do this either.
fn set(options: &mut [VmmOption]) {
    let sets: Vec<_> = options
        .iter()
        .filter(|option| option.name == "set")
        .filter_map(|option| {
            let (place, value) = option.value().split_once('=')?;
            let mut words = place.splitn(3, '.');
            let (group, id, key) = (words.next()?, words.next()?, words.next()?);
            Some((group.to_owned(), id.to_owned(), format!(",{key}={}", escape_commas(value))))
        })
        .collect();
    for (group, id, addition) in sets {
        let is_it = |option: &&mut VmmOption| {
            option.name == group
                && !option.value().starts_with('{')
                && Properties::parse(option.value(), "type").get("id") == Some(&id)
        };
        if let Some(value) = options.iter_mut().find(is_it).and_then(|option| option.value.as_mut())
        {
            value.push_str(&addition);
        }
    }
}

/// The properties in an option's argument; of a key that comes twice the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties(Vec<(String, String)>);

impl Properties {
    /// Reads `driver,key=value,flag,noflag`, where the first word without `=` is the value of
    /// `implied`, commas in values are doubled; or a JSON object, as libvirt writes them.
    pub(crate) fn parse(text: &str, implied: &str) -> Self {
        match text.starts_with('{').then(|| serde_json::from_str::<Value>(text)) {
            Some(Ok(Value::Object(members))) => {
                Self(members.into_iter().map(|(key, value)| (key, json_text(value))).collect())
            }
            _ => Self(
                split_commas(text)
                    .into_iter()
                    .enumerate()
                    .map(|(at, word)| match word.split_once('=') {
                        Some((key, value)) => (key.to_owned(), value.to_owned()),
                        None if at == 0 && !implied.is_empty() => (implied.to_owned(), word),
                        None => match word.strip_prefix("no") {
                            Some(flag) => (flag.to_owned(), "off".to_owned()),
                            None => (word, "on".to_owned()),
                        },
                    })
                    .collect(),
            ),
        }
    }

    /// The same as one tree: of `file.cache.direct=on`, `direct` in `cache` in `file`.
    pub(crate) fn tree(text: &str, implied: &str) -> Value {
        if let Some(Ok(value)) = text.starts_with('{').then(|| serde_json::from_str(text)) {
            return value;
        }
        let mut tree = Map::new();
        for (key, value) in Self::parse(text, implied).0 {
            let mut words = key.split('.').peekable();
            let mut members = &mut tree;
            while let Some(word) = words.next() {
                if words.peek().is_none() {
                    members.insert(word.to_owned(), Value::String(value));
                    break;
                }
                let below = members.entry(word).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(below) = below else { break };
                members = below;
            }
        }
        Value::Object(tree)
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether the switch `key` is on.
    pub(crate) fn is_on(&self, key: &str) -> bool {
        matches!(self.get(key), Some("on" | "yes" | "true" | "y"))
    }
}

fn json_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Bool(true) => "on".into(),
        Value::Bool(false) => "off".into(),
        other => other.to_string(),
    }
}

/// Splits at single commas; a doubled comma is one comma of the text.
fn split_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, words.last_mut()) {
            (',', Some(word)) if rest.next_if_eq(&',').is_some() => word.push(','),
            (',', _) => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The protocol of a file's name, and the rest: `nvme://0000:01:00.0/1`, `file:a`; none of a path.
pub(crate) fn split_protocol(name: &str) -> Option<(&str, &str)> {
    let (protocol, rest) = name.split_once(':')?;
    (!protocol.contains('/')).then_some((protocol, rest))
}

/// Writes `text` so that QEMU takes it for one value.
pub(crate) fn escape_commas(text: &str) -> String {
    text.replace(',', ",,")
}

/// Reads a size as QEMU does: decimal or 0x, a fraction, one of the letters B K M G T P E in
/// either case; `default_unit` is what a bare number counts.
pub(crate) fn parse_size(text: &str, default_unit: u64) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok()?.checked_mul(default_unit);
    }
    let (number, unit) = match text.char_indices().last()? {
        (_, c) if c.is_ascii_digit() || c == '.' => (text, default_unit),
        (at, c) => {
            let shift = 10 * "bkmgtpe".find(c.to_ascii_lowercase())?;
            (&text[..at], 1_u64 << shift)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return None;
    }
    let bytes = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let part = match fraction {
        "" => 0,
        _ => {
            u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit)
                / 10_u128.pow(u32::try_from(fraction.len()).ok()?)
        }
    };
    bytes.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(words: &[&str]) -> Vec<(String, Option<String>)> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        split(&words).into_iter().map(|option| (option.name, option.value)).collect()
    }

    #[test]
    fn options_swallow_what_belongs_to_them() {
        let options = split_words(&["-S", "--m", "2G", "-append", "-mem-path x", "disk.img", "-s"]);
        let expect = [
            ("S", None),
            ("m", Some("2G")),
            ("append", Some("-mem-path x")),
            ("hda", Some("disk.img")),
            ("s", None),
        ];
        let expect = expect.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(options, expect);
        assert_eq!(split_words(&["-m"]), [("m".to_owned(), None)]);
        assert!(split_words(&["-", ""]).is_empty());
    }

    #[test]
    fn an_unknown_option_takes_no_word_with_a_dash() {
        let names = |words: &[&str]| split_words(words).into_iter().map(|(name, _)| name).collect();
        let split: Vec<String> = names(&["-later", "-m", "1G", "--later", "x", "-S"]);
        assert_eq!(split, ["later", "m", "later", "S"]);
        assert_eq!(split_words(&["-later", "x"]), [("later".into(), Some("x".into()))]);
        assert_eq!(split_words(&["-later"]), [("later".into(), None)]);
    }

    /// What `-help` of the QEMU that is installed lists is in the tables, in the right one.
    #[test]
    #[ignore = "needs QEMU"]
    fn the_tables_have_every_option_of_this_qemu() {
        let help = std::process::Command::new("qemu-system-x86_64").arg("-help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let mut seen = 0;
        for line in help.lines().filter(|line| line.starts_with('-')) {
            let (words, rest) = line.split_once(' ').unwrap_or((line, ""));
            for name in words.split('/').map(|word| word.trim_start_matches('-')) {
                seen += 1;
                let has_none = rest.is_empty() || rest.starts_with(' ');
                // Three that are written unlike all others.
                let has_none = match name {
                    "h" | "async-teardown" => true,
                    "dtb" => false,
                    _ => has_none,
                };
                let tables = (WITHOUT_ARGUMENT.contains(&name), WITH_ARGUMENT.contains(&name));
                assert_eq!(tables, (has_none, !has_none), "{line}");
            }
        }
        assert!(seen > 100, "{help}");
    }

    #[test]
    fn properties_in_commas() {
        let properties =
            Properties::parse("pc,accel=kvm:tcg,file=a,,b,mem-merge,nousb,x=1,x=2", "type");
        assert_eq!(properties.get("type"), Some("pc"));
        assert_eq!(properties.get("file"), Some("a,b"));
        assert!(properties.is_on("mem-merge"));
        assert_eq!(properties.get("usb"), Some("off"));
        assert_eq!(properties.get("x"), Some("2"));
        assert_eq!(properties.get("y"), None);
        assert_eq!(Properties::parse("", "type"), Properties::default());
    }

    #[test]
    fn what_is_set_apart_is_put_where_it_belongs() {
        let words = ["-set", "drive.a.cache=none", "-drive", "file=x,id=a", "-drive", "id=b"];
        let options = split_words(&words);
        assert_eq!(options[1], ("drive".into(), Some("file=x,id=a,cache=none".into())));
        assert_eq!(options[2], ("drive".into(), Some("id=b".into())));
    }

    #[test]
    fn dotted_keys_are_a_tree() {
        let tree = Properties::tree("x.img,file.cache.direct=on,file.driver=file,if=none", "name");
        let expect = serde_json::json!({
            "name": "x.img",
            "if": "none",
            "file": { "cache": { "direct": "on" }, "driver": "file" },
        });
        assert_eq!(tree, expect);
        assert_eq!(Properties::tree(r#"{"a":{"b":1}}"#, ""), serde_json::json!({"a": {"b": 1}}));
        assert_eq!(Properties::tree("file=x,file.driver=y", ""), serde_json::json!({"file": "x"}));
    }

    #[test]
    fn protocols_of_files() {
        assert_eq!(split_protocol("nvme://0:1/1"), Some(("nvme", "//0:1/1")));
        assert_eq!(split_protocol("file:a"), Some(("file", "a")));
        assert_eq!(split_protocol("/a:b"), None);
        assert_eq!(split_protocol("a"), None);
    }

    #[test]
    fn properties_in_json() {
        let text = r#"{"qom-type":"memory-backend-ram","size":1024,"share":true,"n":{"a":1}}"#;
        let properties = Properties::parse(text, "qom-type");
        assert_eq!(properties.get("qom-type"), Some("memory-backend-ram"));
        assert_eq!(properties.get("size"), Some("1024"));
        assert!(properties.is_on("share"));
        assert_eq!(properties.get("n"), Some(r#"{"a":1}"#));
    }

    #[test]
    fn sizes_as_qemu_reads_them() {
        const M: u64 = 1 << 20;
        assert_eq!(parse_size("2048", M), Some(2 << 30));
        assert_eq!(parse_size("2g", M), Some(2 << 30));
        assert_eq!(parse_size("2097152k", M), Some(2 << 30));
        assert_eq!(parse_size("1.5G", M), Some(1536 * M));
        assert_eq!(parse_size("0x800", M), Some(2 << 30));
        assert_eq!(parse_size("4096B", M), Some(4096));
        for text in ["", "G", "x", "1.2.3G", "-1", "1Q", "99999999E", ".5G"] {
            assert_eq!(parse_size(text, M), None, "{text}");
        }
    }
}
