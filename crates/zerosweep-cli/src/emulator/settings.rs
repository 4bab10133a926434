//! The settings of a guest that has no command line of `zerosweep run`.
//!
//! | variable | in `/etc/zerosweep/qemu.toml` | meaning |
//! | --- | --- | --- |
//! | `ZEROSWEEP_TARGET` | `target` | what the guest may hold from the start, instead of `<currentMemory>` |
//! | `ZEROSWEEP_POLICY` | `policy` | as `run --policy` |
//! | `ZEROSWEEP_ON_EXHAUSTION` | `on-exhaustion` | as `run --on-exhaustion` |
//! | `ZEROSWEEP_RETURN` | `return` | as `run --return` |
//! | `ZEROSWEEP_MANAGE` | `manage` | `no`: QEMU is run untouched |
//! | `ZEROSWEEP_QEMU` | `qemu` | the real QEMU |
//!
//! Root or the user owns the file, and no other user can write to it, because it says what is run.
//!
//! A variable (libvirt: `<qemu:env>`) comes first, then the file's table `[guest.NAME]`, then the
//! file's own keys, then the defaults of `zerosweep run`. libvirt probes QEMU without the variables
//! of a domain, so the path of another QEMU must be in the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;
use toml::Spanned;
use zerosweep::Policy;
use zerosweep_client::error::Failure;
use zerosweep_client::own_file::{OwnFile, Refusal};
use zerosweep_client::size::Size;
use zerosweep_wire::{OnExhaustion, ReturnMode};

use crate::cli::{Exhaustion, Return};

/// The file, and the variable that names another one.
const FILE: &str = "/etc/zerosweep/qemu.toml";
const FILE_VARIABLE: &str = "ZEROSWEEP_QEMU_CONFIG";

/// The most of the file that is read.
const MOST_BYTES: u64 = 1 << 20;
/// The most lines, and characters of a line, that an error quotes.
const MOST_LINES: usize = 8;
const MOST_CHARS: usize = 90;

/// A value, and where it stands.
type Word = Spanned<String>;

/// Whether zerosweep manages a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Manage {
    Yes,
    No,
}

/// The settings of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) target: Option<Size>,
    pub(super) policy: String,
    pub(super) on_exhaustion: OnExhaustion,
    pub(super) return_mode: ReturnMode,
    pub(super) manage: Manage,
    pub(super) qemu: OsString,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    guest: BTreeMap<String, Keys>,
    target: Option<Word>,
    policy: Option<Word>,
    #[serde(rename = "on-exhaustion")]
    on_exhaustion: Option<Word>,
    #[serde(rename = "return")]
    return_mode: Option<Word>,
    manage: Option<Word>,
    qemu: Option<Word>,
}

/// The keys of one guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    target: Option<Word>,
    policy: Option<Word>,
    #[serde(rename = "on-exhaustion")]
    on_exhaustion: Option<Word>,
    #[serde(rename = "return")]
    return_mode: Option<Word>,
    manage: Option<Word>,
    qemu: Option<Word>,
}

impl File {
    fn keys(&self) -> Keys {
        Keys {
            target: self.target.clone(),
            policy: self.policy.clone(),
            on_exhaustion: self.on_exhaustion.clone(),
            return_mode: self.return_mode.clone(),
            manage: self.manage.clone(),
            qemu: self.qemu.clone(),
        }
    }
}

impl Settings {
    /// Returns the settings of the guest with this name.
    ///
    /// # Errors
    /// Wrong usage: a file or a value that is not understood, with the place where it stands.
    pub(super) fn read(guest: Option<&str>) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = variable(FILE_VARIABLE).map_or_else(|| FILE.into(), PathBuf::from);
        let read = OwnFile::open(&path)
            .and_then(OwnFile::written_by_its_owner_alone)
            .and_then(|file| file.text(MOST_BYTES));
        let file = match read {
            Ok(text) => text,
            Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(Refusal::Io(error)) => {
                return Err(Failure::usage(format!("cannot read {}: {error}", path.display())));
            }
            Err(refusal) => return Err(Failure::usage(format!("settings: {refusal}"))),
        };
        Self::settle(&path, &file, guest, |name| {
            variable(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    fn settle(
        path: &Path,
        text: &str,
        guest: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let wrong =
            |place: &str, what: &dyn std::fmt::Display| Failure::usage(format!("{place}: {what}"));
        let file: File = toml::from_str(text).map_err(|error| {
            wrong(&path.display().to_string(), &cut(error.to_string().trim_end()))
        })?;
        let own = guest.and_then(|name| file.guest.get(name)).cloned().unwrap_or_default();
        let all = file.keys();
        // The value that counts, and where it stands.
        let find = |name: &str, key: &str, own: Option<Word>, all: Option<Word>| {
            let from_file = || {
                let word = own.or(all)?;
                let line = 1 + text.as_bytes()[..word.span().start]
                    .iter()
                    .filter(|&&byte| byte == b'\n')
                    .count();
                Some((format!("{}, line {line}, {key}", path.display()), word.into_inner()))
            };
            variable(name).map(|value| (name.to_owned(), value)).or_else(from_file)
        };
        let target = find("ZEROSWEEP_TARGET", "target", own.target, all.target)
            .map(|(place, value)| Size::parse(&value).map_err(|why| wrong(&place, &why)))
            .transpose()?;
        let policy = match find("ZEROSWEEP_POLICY", "policy", own.policy, all.policy) {
            None => Policy::NAMES[0].to_owned(),
            Some((_, value)) if Policy::NAMES.contains(&value.as_str()) => value,
            Some((place, value)) => {
                let known = Policy::NAMES.join(", ");
                return Err(wrong(
                    &place,
                    &format!("no policy {:?}; there are {known}", cut(&value)),
                ));
            }
        };
        let Exhaustion(on_exhaustion) = choice(find(
            "ZEROSWEEP_ON_EXHAUSTION",
            "on-exhaustion",
            own.on_exhaustion,
            all.on_exhaustion,
        ))?
        .unwrap_or_default();
        let Return(return_mode) =
            choice(find("ZEROSWEEP_RETURN", "return", own.return_mode, all.return_mode))?
                .unwrap_or_default();
        let manage = choice(find("ZEROSWEEP_MANAGE", "manage", own.manage, all.manage))?
            .unwrap_or(Manage::Yes);
        let qemu = find("ZEROSWEEP_QEMU", "qemu", own.qemu, all.qemu).map_or_else(
            || format!("qemu-system-{}", std::env::consts::ARCH).into(),
            |(_, value)| value.into(),
        );
        Ok(Self { target, policy, on_exhaustion, return_mode, manage, qemu })
    }
}

/// Returns the beginning of the first lines: an error does not need all of a long text.
fn cut(text: &str) -> String {
    let lines =
        text.lines().take(MOST_LINES).map(|line| match line.char_indices().nth(MOST_CHARS) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line.to_owned(),
        });
    lines.collect::<Vec<_>>().join("\n")
}

/// One of the words that the command line has for it.
fn choice<T: ValueEnum>(found: Option<(String, String)>) -> Result<Option<T>, Failure> {
    let Some((place, value)) = found else { return Ok(None) };
    T::from_str(&value, false).map(Some).map_err(|_| {
        let words: Vec<_> = T::value_variants()
            .iter()
            .filter_map(|variant| Some(variant.to_possible_value()?.get_name().to_owned()))
            .collect();
        Failure::usage(format!("{place}: {:?} is none of {}", cut(&value), words.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "target = \"1G\"\non-exhaustion = \"borrow\"\n\n[guest.db1]\n\
                        target = \"768M\"\nreturn = \"eager\"\n\n[guest.\"by hand\"]\nmanage = \"no\"\n";

    fn settle(
        text: &str,
        guest: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Settings, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::settle(Path::new("/f"), text, guest, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_as_run_does() {
        let settings = settle("", Some("vm"), &[]).unwrap();
        assert_eq!(settings.target, None);
        assert_eq!(settings.policy, "zerosweep");
        assert_eq!(settings.on_exhaustion, OnExhaustion::Stall);
        assert_eq!(settings.return_mode, ReturnMode::Lazy);
        assert_eq!(settings.manage, Manage::Yes);
        assert!(settings.qemu.to_str().unwrap().starts_with("qemu-system-"));
    }

    #[test]
    fn a_variable_counts_before_the_guests_table_and_that_before_the_files_keys() {
        let target = |guest, variables: &[(&str, &str)]| {
            settle(TEXT, guest, variables).unwrap().target.map(|size| size.to_string())
        };
        assert_eq!(target(None, &[]).as_deref(), Some("1G"));
        assert_eq!(target(Some("db1"), &[]).as_deref(), Some("768M"));
        assert_eq!(target(Some("db1"), &[("ZEROSWEEP_TARGET", "2G")]).as_deref(), Some("2G"));
        let db1 = settle(TEXT, Some("db1"), &[("ZEROSWEEP_QEMU", "/opt/qemu")]).unwrap();
        assert_eq!(db1.on_exhaustion, OnExhaustion::Borrow, "what its table leaves open");
        assert_eq!((db1.return_mode, db1.qemu), (ReturnMode::Eager, "/opt/qemu".into()));
        assert_eq!(settle(TEXT, Some("by hand"), &[]).unwrap().manage, Manage::No);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let error = settle("targte = \"1G\"", None, &[]).unwrap_err();
        assert!(error.starts_with("/f: ") && error.contains("targte"), "{error}");
        let error = settle("", None, &[("ZEROSWEEP_TARGET", "two")]).unwrap_err();
        assert!(error.starts_with("ZEROSWEEP_TARGET: ") && error.contains("512M"), "{error}");
        let error = settle("policy = \"best\"", None, &[]).unwrap_err();
        assert!(error.contains("best") && error.contains("xen-2016"), "{error}");
        let error = settle("on-exhaustion = \"wait\"", None, &[]).unwrap_err();
        assert_eq!(error, "/f, line 1, on-exhaustion: \"wait\" is none of stall, borrow, kill");
    }
}
