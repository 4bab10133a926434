//! The limits of each guest, from arguments or a file.
//!
//! ```toml
//! total = "6G"
//!
//! [default]            # for guests without a table, and for values that a table leaves out
//! min = "256M"
//!
//! [guest.web1]
//! max = "2G"
//! shares = 2
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use zerosweep_client::error::Failure;
use zerosweep_client::size::Size;

use super::decide::{Limits, QUANTUM};
use crate::cli::BalanceArguments;

/// The minimum of a guest without a setting.
const DEFAULT_MIN: u64 = 256 << 20;

/// The settings of one guest. A value that is left out comes from the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    min: Option<String>,
    max: Option<String>,
    shares: Option<u64>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    total: Option<String>,
    #[serde(default)]
    default: Entry,
    #[serde(default)]
    guest: BTreeMap<String, Entry>,
}

/// One guest's limits before its size is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wish {
    min_bytes: Option<u64>,
    max_bytes: Option<u64>,
    shares: Option<u64>,
}

/// The budget and the limits of all guests.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) total_bytes: u64,
    default: Wish,
    guests: BTreeMap<String, Wish>,
}

impl Policy {
    /// Reads the arguments and the file. An argument takes precedence over the file.
    ///
    /// # Errors
    /// Wrong usage, with the place.
    pub(super) fn new(arguments: &BalanceArguments) -> Result<Self, Failure> {
        let file = match &arguments.policy {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let place = arguments.policy.as_deref().unwrap_or(Path::new("--policy")).display();
        let in_file = |why: String| Failure::usage(format!("{place}: {why}"));
        let total = match (arguments.total, &file.total) {
            (Some(total), _) => total,
            (None, Some(text)) => Size::parse(text).map_err(in_file)?,
            (None, None) => {
                return Err(Failure::usage(
                    "no budget: give --total SIZE, or `total` in the --policy file",
                ));
            }
        };
        let default = Wish::new(&file.default).map_err(in_file)?;
        let mut guests = BTreeMap::new();
        for (name, entry) in &file.guest {
            let wish = Wish::new(entry).map_err(|why| in_file(format!("guest {name}: {why}")))?;
            guests.insert(name.clone(), wish);
        }
        for text in &arguments.guest {
            let (name, wish) =
                argument(text).map_err(|why| Failure::usage(format!("--guest {text}: {why}")))?;
            let known = guests.get(&name).copied().unwrap_or_default();
            guests.insert(name, wish.or(known));
        }
        Ok(Self { total_bytes: total.0, default, guests })
    }

    /// The limits of a guest that was told it has `max_mem_bytes`.
    pub(super) fn limits(&self, name: &str, max_mem_bytes: u64) -> Limits {
        let wish = self.guests.get(name).copied().unwrap_or_default().or(self.default);
        let most = (max_mem_bytes / QUANTUM * QUANTUM).max(QUANTUM);
        let max_bytes = wish.max_bytes.map_or(most, |bytes| (bytes / QUANTUM * QUANTUM).min(most));
        let min_bytes = wish.min_bytes.unwrap_or(DEFAULT_MIN).div_ceil(QUANTUM) * QUANTUM;
        let max_bytes = max_bytes.max(QUANTUM);
        let min_bytes = min_bytes.clamp(QUANTUM, max_bytes);
        Limits { min_bytes, max_bytes, shares: wish.shares.unwrap_or(1) }
    }
}

impl Wish {
    fn new(entry: &Entry) -> Result<Self, String> {
        let size = |text: &Option<String>| {
            text.as_deref().map(|text| Size::parse(text).map(|size| size.0)).transpose()
        };
        let wish = Self {
            min_bytes: size(&entry.min)?,
            max_bytes: size(&entry.max)?,
            shares: entry.shares,
        };
        if let (Some(min), Some(max)) = (wish.min_bytes, wish.max_bytes)
            && min > max
        {
            return Err(format!("min {} is above max {}", Size(min), Size(max)));
        }
        match wish.shares {
            Some(shares @ (0 | 10_001..)) => {
                Err(format!("shares {shares}: 1 to 10000 are allowed"))
            }
            _ => Ok(wish),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            min_bytes: self.min_bytes.or(other.min_bytes),
            max_bytes: self.max_bytes.or(other.max_bytes),
            shares: self.shares.or(other.shares),
        }
    }
}

/// TOML, or JSON for programs that write it.
fn read(path: &Path) -> Result<File, Failure> {
    let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
    } else {
        toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().into()))
    }
}

/// Reads `web1:min=256M,max=2G,shares=2`.
fn argument(text: &str) -> Result<(String, Wish), String> {
    let (name, keys) = text.split_once(':').ok_or("written as NAME:min=256M,max=2G,shares=2")?;
    zerosweep_wire::runtime::check_name(name).map_err(|error| error.to_string())?;
    let mut entry = Entry::default();
    for word in keys.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some(("min", value)) => entry.min = Some(value.to_owned()),
            Some(("max", value)) => entry.max = Some(value.to_owned()),
            Some(("shares", value)) => {
                let number = value.parse().map_err(|_| format!("shares {value:?}: no number"))?;
                entry.shares = Some(number);
            }
            _ => return Err(format!("{word:?} is none of min=SIZE, max=SIZE, shares=N")),
        }
    }
    Ok((name.to_owned(), Wish::new(&entry)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn policy(guests: &[&str], file: Option<&str>) -> Result<Policy, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy");
        let policy = file.map(|text| {
            std::fs::write(&path, text).unwrap();
            path
        });
        let arguments = BalanceArguments {
            total: file.is_none().then_some(Size(6 << 30)),
            guest: guests.iter().map(|&guest| guest.to_owned()).collect(),
            policy,
            interval: std::time::Duration::ZERO,
            dry_run: true,
            once: false,
            json: false,
        };
        Policy::new(&arguments).map_err(|failure| failure.to_string())
    }

    #[test]
    fn arguments_count_before_the_file_and_that_before_its_default() {
        let text =
            "total = \"4G\"\n[default]\nmin = \"130M\"\nshares = 3\n[guest.a]\nmax = \"1G\"\n";
        let policy = policy(&["a:shares=7"], Some(text)).unwrap();
        assert_eq!(policy.total_bytes, 4 << 30);
        let a = Limits { min_bytes: 132 * MIB, max_bytes: 1024 * MIB, shares: 7 };
        assert_eq!(policy.limits("a", 2048 * MIB), a);
        let b = Limits { min_bytes: 132 * MIB, max_bytes: 2048 * MIB, shares: 3 };
        assert_eq!(policy.limits("b", 2048 * MIB), b);
        assert_eq!(policy.limits("b", 100 * MIB).min_bytes, 100 * MIB, "no more than it has");
    }

    #[test]
    fn json_is_read_as_well() {
        let policy =
            policy(&[], Some(r#"{"total": "1G", "guest": {"a": {"min": "64M"}}}"#)).unwrap();
        assert_eq!(policy.limits("a", 1 << 30).min_bytes, 64 * MIB);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (guest, named) in [
            ("web1", "written as"),
            ("web1:min=2G,max=1G", "min 2G is above max 1G"),
            ("web1:shares=0", "shares 0"),
            ("web1:weight=1", "weight=1"),
            ("../x:min=1G", "guest name"),
        ] {
            let error = policy(&[guest], None).unwrap_err();
            assert!(error.contains("--guest") && error.contains(named), "{error}");
        }
        assert!(policy(&[], Some("[guest.a]\nmin = \"1G\"")).unwrap_err().contains("--total"));
        assert!(policy(&[], Some("total = 7")).unwrap_err().contains("policy: "));
    }
}
