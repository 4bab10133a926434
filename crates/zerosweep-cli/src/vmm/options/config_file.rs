//! Options in a file, as `-readconfig` takes them.
//!
//! ```text
//! # a comment
//! [object "mem0"]
//! qom-type = "memory-backend-ram"
//! size = "1024M"
//! ```
//!
//! is `-object id=mem0,qom-type=memory-backend-ram,size=1024M`. A file with anything else in it is
//! not understood at all, so that nothing in it is overlooked.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::{VmmOption, escape_commas};

/// The longest file that is read. Those of tools have some KiB.
const LONGEST_FILE: u64 = 1 << 20;

/// The longest line. QEMU takes what is beyond 1,023 bytes for another line.
const LONGEST_LINE: usize = 1000;

/// Groups with another name than their option.
const RENAMED: [(&str, &str); 4] =
    [("acpi", "acpitable"), ("boot-opts", "boot"), ("memory", "m"), ("smp-opts", "smp")];

/// Groups with the name of their option.
const GROUPS: &[&str] = &[
    "accel",
    "action",
    "add-fd",
    "audiodev",
    "chardev",
    "device",
    "drive",
    "fsdev",
    "fw_cfg",
    "global",
    "icount",
    "iscsi",
    "machine",
    "mon",
    "msg",
    "name",
    "net",
    "netdev",
    "nic",
    "numa",
    "object",
    "option-rom",
    "overcommit",
    "realtime",
    "rtc",
    "sandbox",
    "semihosting-config",
    "smbios",
    "spice",
    "tpmdev",
    "trace",
    "virtfs",
    "vnc",
];

/// A file with options that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    /// The option that names the file, or the file.
    pub(crate) origin: String,
    /// What is wrong.
    pub(crate) why: String,
}

/// The options in the file.
///
/// # Errors
/// Why they cannot be told.
pub(super) fn read(path: &Path) -> Result<Vec<VmmOption>, String> {
    // A pipe could be read only once, and QEMU is to read it.
    let data = std::fs::metadata(path).map_err(|error| format!("cannot be read ({error})"))?;
    if !data.is_file() {
        return Err("is not a regular file, and zerosweep must read it before QEMU".to_owned());
    }
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_FILE + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read ({error})"))?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(format!("is longer than {LONGEST_FILE} bytes"));
    }
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<VmmOption>, String> {
    let mut options: Vec<VmmOption> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.len() > LONGEST_LINE {
            return Err(format!("has a line longer than {LONGEST_LINE} bytes: {number}"));
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong =
            |what: &str| format!("has a line that is not understood: {number}: {line} ({what})");
        if let Some(header) = line.strip_prefix('[') {
            let header = header.strip_suffix(']').ok_or_else(|| wrong("no ] at its end"))?;
            options.push(group(header).ok_or_else(|| wrong("no group that zerosweep knows"))?);
        } else {
            let (key, value) = line.split_once('=').ok_or_else(|| wrong("no KEY = \"VALUE\""))?;
            let value = value.trim().strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let value = value.filter(|value| !value.contains('"'));
            let value = value.ok_or_else(|| wrong("no value in quotes"))?;
            let option = options.last_mut().ok_or_else(|| wrong("no group before it"))?;
            let words = option.value.get_or_insert_default();
            if !words.is_empty() {
                words.push(',');
            }
            words.push_str(&format!("{}={}", key.trim(), escape_commas(value)));
        }
    }
    Ok(options)
}

/// Reads `GROUP` or `GROUP "ID"`.
fn group(header: &str) -> Option<VmmOption> {
    let (name, id) = match header.split_once(char::is_whitespace) {
        Some((name, id)) => (name, Some(id.trim().strip_prefix('"')?.strip_suffix('"')?)),
        None => (header, None),
    };
    let renamed = RENAMED.iter().find(|(group, _)| *group == name).map(|(_, option)| *option);
    let name = renamed.or_else(|| GROUPS.iter().find(|group| **group == name).copied())?;
    let value = id.map(|id| format!("id={}", escape_commas(id))).unwrap_or_default();
    Some(VmmOption { name: name.to_owned(), value: Some(value) })
}

#[cfg(test)]
mod tests {
    use super::super::tables::{self, Takes};
    use super::*;

    #[test]
    fn groups_are_options() {
        let text = "# made by a tool\n\n[memory]\nsize = \"1024M\"\n[object \"mem0\"]\n\
                    qom-type=\"memory-backend-ram\"\n  share = \"on\"\n[drive]\nfile = \"a,b\"\n\
                    [smp-opts]\n";
        let options = parse(text).unwrap();
        let words: Vec<_> =
            options.iter().map(|option| format!("-{} {}", option.name, option.value())).collect();
        let expect = [
            "-m size=1024M",
            "-object id=mem0,qom-type=memory-backend-ram,share=on",
            "-drive file=a,,b",
            "-smp ",
        ];
        assert_eq!(words, expect);
        assert_eq!(parse("\n# nothing\n"), Ok(vec![]));
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_the_line() {
        for (text, part) in [
            ("[later]", "1: [later] (no group"),
            ("[object mem0]", "no group"),
            ("[object \"m\"", "no ]"),
            ("[memory]\nsize", "2: size (no KEY"),
            ("[memory]\nsize = 1G", "no value in quotes"),
            ("[memory]\nsize = \"1G\" \"2G\"", "no value in quotes"),
            ("size = \"1G\"", "no group before"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_qemu_would_take_for_a_second_line_is_an_error() {
        let hidden = format!("#{}[object \"m\"]\n", "-".repeat(1022));
        assert!(parse(&hidden).unwrap_err().contains("longer than 1000 bytes: 1"));
    }

    #[test]
    fn files_that_are_none_are_an_error() {
        assert!(read(Path::new("/no/such/file")).unwrap_err().contains("cannot be read"));
        assert!(read(Path::new("/dev/null")).unwrap_err().contains("regular"));
        assert!(read(Path::new("/tmp")).unwrap_err().contains("regular"));
    }

    #[test]
    fn every_group_is_an_option_with_an_argument() {
        let renamed = RENAMED.iter().map(|(_, option)| option);
        for option in GROUPS.iter().chain(renamed) {
            assert_eq!(tables::takes(option), Some(Takes::Argument), "{option}");
        }
    }
}
