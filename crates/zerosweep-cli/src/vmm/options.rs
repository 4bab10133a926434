//! How QEMU reads its command line: options with and without an argument, and the comma lists
//! (or JSON) in the arguments.
//!
//! | module | what |
//! | --- | --- |
//! | `tables` | the options of the QEMUs up to 11 |
//! | `help` | options of others: what `-help` of the very program says |
//! | `config_file` | options in a file: `-readconfig` |
//!
//! An option that neither the tables nor the program's help know never takes a word that begins
//! with a dash, and one that only the help knows takes no word that is the name of an option: what
//! must be refused cannot hide behind it.

mod config_file;
mod help;
mod tables;

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Map, Value};

pub(crate) use self::config_file::Unread;
pub(crate) use self::help::Help;
use self::tables::Takes;

/// The file whose options QEMU takes without being told to. A QEMU that was built for another
/// prefix has it elsewhere.
const DEFAULT_FILE: &str = "/etc/qemu/qemu.conf";

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

/// A command line without the program, as QEMU reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The options, with those of the files that it names. Words that stand alone are disk images:
    /// QEMU takes them for `-hda`. What `-set GROUP.ID.KEY=VALUE` says is put where it belongs.
    pub(crate) options: Vec<VmmOption>,
    /// The files with options that cannot be read.
    pub(crate) unread: Vec<Unread>,
}

impl Line {
    /// Reads it. The help of the program is asked for only if there is an option that is in no
    /// table.
    pub(crate) fn read(arguments: &[OsString], ask: impl FnOnce() -> Option<Help>) -> Self {
        Self::read_with(arguments, ask, Path::new(DEFAULT_FILE))
    }

    /// Reads it by the tables alone, where the program is not known yet.
    pub(crate) fn by_tables(arguments: &[OsString]) -> Self {
        Self::read(arguments, || None)
    }

    fn read_with(
        arguments: &[OsString],
        ask: impl FnOnce() -> Option<Help>,
        default_file: &Path,
    ) -> Self {
        let given = split(arguments, ask);
        let is_given = |name: &str| given.iter().any(|option| option.name == name);
        let mut line = Self::default();
        if !is_given("no-user-config") && !is_given("nodefconfig") && default_file.exists() {
            let file = default_file.display().to_string();
            line.add_file(&file, file.clone());
        }
        for option in given {
            if option.name == "readconfig" {
                let file = option.value();
                line.add_file(file, format!("-readconfig {file}"));
            } else {
                line.options.push(option);
            }
        }
        set(&mut line.options);
        line
    }

    fn add_file(&mut self, file: &str, origin: String) {
        match config_file::read(Path::new(file)) {
            Ok(options) => self.options.extend(options),
            Err(why) => self.unread.push(Unread { origin, why }),
        }
    }
}

/// Splits the words into options.
fn split(arguments: &[OsString], ask: impl FnOnce() -> Option<Help>) -> Vec<VmmOption> {
    let mut words = arguments.iter().map(|word| word.to_string_lossy()).peekable();
    let mut options = Vec::new();
    let (mut ask, mut help) = (Some(ask), Help::default());
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
            if !word.is_empty() && word != "-" {
                options.push(VmmOption { name: "hda".to_owned(), value: Some(word.into_owned()) });
            }
            continue;
        };
        // QEMU takes `--m` for `-m`.
        let name = name.strip_prefix('-').unwrap_or(name).to_owned();
        let value = match tables::takes(&name) {
            Some(Takes::Nothing) => None,
            Some(Takes::Argument) => words.next(),
            None => {
                if let Some(ask) = ask.take() {
                    help = ask().unwrap_or_default();
                }
                match help.takes(&name) {
                    Some(Takes::Nothing) => None,
                    Some(Takes::Argument) => words.next_if(|word| !is_option(word, &help)),
                    None => words.next_if(|word| !word.starts_with('-')),
                }
            }
        };
        let value = value.map(|value| value.into_owned());
        options.push(VmmOption { name, value });
    }
    options
}

/// Whether the word is the name of an option.
fn is_option(word: &str, help: &Help) -> bool {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
    name.is_some_and(|name| tables::takes(name).is_some() || help.names(name))
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
        let options = Line::by_tables(&words).options;
        options.into_iter().map(|option| (option.name, option.value)).collect()
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

    #[test]
    fn the_program_is_asked_only_for_options_that_are_in_no_table() {
        let known = ["-m", "1G", "-S", "-append", "-later"].map(OsString::from);
        let line = Line::read(&known, || panic!("it is not asked"));
        assert_eq!(line, Line::by_tables(&known));
    }

    #[test]
    fn an_option_that_only_the_help_knows_takes_what_it_says() {
        const HELP: &str = "-later-switch   do something\n-later value    as it says\n";
        let split = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            let options = Line::read(&words, || Some(Help::parse(HELP))).options;
            let word = |option: VmmOption| match option.value {
                Some(value) => format!("{}={value}", option.name),
                None => option.name,
            };
            options.into_iter().map(word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(split("-later-switch disk.img -m 1G"), "later-switch hda=disk.img m=1G");
        assert_eq!(split("-later -5 --later x"), "later=-5 later=x");
        // What must be refused is not hidden, whatever the help says.
        assert_eq!(split("-later -mem-prealloc -m 1G"), "later mem-prealloc m=1G");
        assert_eq!(split("-later --later-switch"), "later later-switch");
        // What it does not know either.
        assert_eq!(split("-other -m 1G -other x"), "other m=1G other=x");
    }

    #[test]
    fn options_in_files_are_read_where_they_are_named() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let default = file("qemu.conf", "[memory]\nsize = \"1G\"\n");
        let named = file("named", "[drive \"a\"]\nfile = \"x,y\"\n");
        let named = named.to_str().unwrap();
        let read = |words: &[&str], default: &Path| {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            let line = Line::read_with(&words, || None, default);
            let option = |option: VmmOption| format!("-{} {}", option.name, option.value());
            let unread = line.unread.iter().map(|unread| unread.origin.clone());
            (line.options.into_iter().map(option).collect::<Vec<_>>(), unread.collect::<Vec<_>>())
        };
        let none = Path::new("/no/such/file");
        let expect = ["-drive id=a,file=x,,y,cache=none", "-set drive.a.cache=none", "-S "];
        let (options, unread) =
            read(&["-readconfig", named, "-set", "drive.a.cache=none", "-S"], none);
        assert_eq!((options.as_slice(), unread.len()), (expect.map(str::to_owned).as_slice(), 0));
        assert_eq!(read(&["-S"], &default).0, ["-m size=1G", "-S "]);
        assert_eq!(read(&["-no-user-config"], &default).0, ["-no-user-config "]);
        assert_eq!(read(&["-readconfig", "/no"], none), (vec![], vec!["-readconfig /no".into()]));
        let broken = file("broken", "size = 1\n");
        assert_eq!(read(&[], &broken).1, [broken.display().to_string()]);
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
