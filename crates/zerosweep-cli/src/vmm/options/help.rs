//! What a QEMU's own `-help` says of its options.
//!
//! The text is for people: a line of each option begins with its name, and the description stands
//! from column 16 on.
//!
//! ```text
//! -h or -help     display this help and exit           two names, no argument
//! -S              freeze CPU at startup                no argument
//! -no-user-config                                      no argument
//! -fda/-fdb file  use 'file' as floppy disk 0/1 image  two names, an argument
//! -m [size=]megs[,slots=n,maxmem=size]                 an argument
//! -dtb    file    use 'file' as device tree image      an argument
//! -M              as -machine                          what that one takes
//! -async-teardown enable asynchronous teardown         not to be told: the name fills the column
//! ```

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::tables::Takes;
use crate::vmm::elf;

/// Where descriptions begin.
const DESCRIPTION_COLUMN: usize = 16;
/// How long a program may take to answer. QEMU takes 10 ms.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest text that is read. That of QEMU 11 has 36 KiB.
const LONGEST_TEXT: u64 = 1 << 20;

/// The options that a help text names, without their dashes. `None` stands for one of which it does
/// not say what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Help(BTreeMap<String, Option<Takes>>);

impl Help {
    /// Reads the text.
    pub(crate) fn parse(text: &str) -> Self {
        let mut options = BTreeMap::new();
        let mut aliases = Vec::new();
        for line in text.lines().filter(|line| line.starts_with('-')) {
            let (names, end) = names(line);
            let rest = line.get(end..).unwrap_or_default();
            let description = rest.trim_start();
            let start = end + rest.len() - description.len();
            let takes = if description.is_empty() {
                Some(Takes::Nothing)
            } else if start == end + 1 && start == DESCRIPTION_COLUMN {
                None
            } else if start == end + 1 || start < DESCRIPTION_COLUMN {
                Some(Takes::Argument)
            } else {
                Some(Takes::Nothing)
            };
            for name in names {
                if let Some(other) = description.strip_prefix("as -") {
                    aliases.push((name.to_owned(), other.trim_end().to_owned()));
                }
                options.entry(name.to_owned()).or_insert(takes);
            }
        }
        for (name, other) in aliases {
            let takes = options.get(&other).copied().flatten();
            options.insert(name, takes);
        }
        Self(options)
    }

    /// Asks the program. `None` where it does not answer soon, or is a script: what that starts, and
    /// with which options of its own, is not known.
    pub(crate) fn of(program: &Path) -> Option<Self> {
        if elf::is_script(program) {
            return None;
        }
        let text = ask(Command::new(program).arg("-help"), PATIENCE)?;
        Some(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// What an option takes; `None` if the text does not say it.
    pub(super) fn takes(&self, name: &str) -> Option<Takes> {
        self.0.get(name).copied().flatten()
    }

    /// Whether there is such an option.
    pub(super) fn names(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All options.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// What a command writes to its standard output, if it ends in time.
fn ask(command: &mut Command, patience: Duration) -> Option<Vec<u8>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own, so that all that it started can be ended.
    let mut child = command.process_group(0).spawn().ok()?;
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = output.take(LONGEST_TEXT).read_to_end(&mut text);
            // Nobody waits any more where the time is over.
            let _ = sender.send(read.map(|_| text));
        });
    }
    let text = receiver.recv_timeout(patience);
    // It has ended already where it answered.
    let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.wait();
    text.ok()?.ok()
}

/// The names at the start of a line, and where the last one ends.
fn names(line: &str) -> (Vec<&str>, usize) {
    let word_end = |from: usize| {
        let rest = line.get(from..).unwrap_or_default();
        from + rest.find(' ').unwrap_or(rest.len())
    };
    let mut end = word_end(0);
    let mut names: Vec<_> = line[..end].split('/').collect();
    while line[end..].starts_with(" or -") {
        let start = end + " or ".len();
        end = word_end(start);
        names.push(&line[start..end]);
    }
    (names.into_iter().map(|name| name.trim_start_matches('-')).collect(), end)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::super::tables;
    use super::*;

    /// Lines as the help of QEMU 7.2, 10.0 and 11.1 has them, each form once.
    #[test]
    fn every_form_of_a_line_is_read() {
        let text = "usage: qemu [options]\n\
                    -h or -help     shows this\n\
                    -machine [type=]name\n                a second line\n\
                    -M              as -machine\n\
                    -S              starts nothing\n\
                    -s              shorthand for -gdb tcp::1\n\
                    -fda/-fdb file  a disk\n\
                    -no-user-config\n\
                    --preconfig     waits\n\
                    -dtb    file    a file\n\
                    -mem-path FILE  a path\n\
                    -seed number       a seed\n\
                    -only-migratable     allows others\n\
                    -xen-domid-restrict     restricts\n\
                    -async-teardown ends later\n\
                    -watchdog-action reset|none\n\
                    -acpitable [sig=str]\n\
                    -vnc <display>  shorthand for -display vnc=<display>\n";
        let help = Help::parse(text);
        for name in ["h", "help", "S", "s", "no-user-config", "preconfig", "only-migratable"] {
            assert_eq!(help.takes(name), Some(Takes::Nothing), "{name}");
        }
        assert_eq!(help.takes("xen-domid-restrict"), Some(Takes::Nothing));
        let with = "machine M fda fdb dtb mem-path seed watchdog-action acpitable vnc";
        for name in with.split(' ') {
            assert_eq!(help.takes(name), Some(Takes::Argument), "{name}");
        }
        assert!(help.names("async-teardown") && help.takes("async-teardown").is_none());
        assert!(!help.names("a") && !help.names("usage:"));
        assert_eq!(help.0.len(), 19);
        for (name, takes) in help.0 {
            assert!(takes.is_none() || takes == tables::takes(&name), "{name}");
        }
    }

    #[test]
    fn text_that_is_no_help_names_nothing_of_use() {
        for text in ["", "\n", "help\n", " -x y", "usage: sleep NUMBER"] {
            assert_eq!(Help::parse(text), Help::default(), "{text:?}");
        }
        assert_eq!(Help::parse("-").takes(""), Some(Takes::Nothing));
        assert_eq!(Help::parse("- or - or -x y").takes("x"), Some(Takes::Argument));
        let _ = Help::parse("-\u{e4}\u{f6} or -\u{e4} \u{fc}");
    }

    #[test]
    fn a_script_and_a_program_that_cannot_be_started_are_not_asked() {
        let place = tempfile::tempdir().unwrap();
        let script = place.path().join("qemu");
        let ran = place.path().join("ran");
        std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Help::of(&script), None);
        assert!(!ran.exists());
        assert_eq!(Help::of(Path::new("/no/such/program")), None);
    }

    #[test]
    fn a_program_that_does_not_answer_is_ended_with_all_that_it_started() {
        let shell = |script: &str, patience| {
            let start = Instant::now();
            (ask(Command::new("sh").args(["-c", script]), patience), start.elapsed())
        };
        assert_eq!(shell("echo -S", 60 * PATIENCE).0, Some(b"-S\n".to_vec()));
        let (answer, took) = shell("sleep 60 & sleep 60", PATIENCE / 10);
        assert!(answer.is_none() && took < 30 * PATIENCE, "{took:?}");
        let (endless, took) = shell("exec yes", 60 * PATIENCE);
        assert_eq!(endless.map(|text| text.len() as u64), Some(LONGEST_TEXT));
        assert!(took < 60 * PATIENCE, "{took:?}");
    }

    #[test]
    #[ignore = "needs QEMU"]
    fn qemu_answers_soon() {
        let program = super::super::super::program::find("qemu-system-x86_64".as_ref(), None);
        let start = Instant::now();
        let help = Help::of(&program.unwrap()).unwrap();
        assert!(help.takes("device") == Some(Takes::Argument) && help.names("S"));
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    }
}
