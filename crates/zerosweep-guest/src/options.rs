//! What the guest is asked to do: the words of the kernel command line that start with `zs.`.
//!
//! | word | meaning | default |
//! | --- | --- | --- |
//! | `zs.fill=SIZE` | anonymous memory to fill with the pattern and to verify | 0 |
//! | `zs.seed=N` | seed of pattern and churn | 1 |
//! | `zs.rewrite=1` | the background check also rewrites every page in each pass | 0 |
//! | `zs.churn=SIZE` | files to write to tmpfs, of which three quarters are deleted | 0 |
//! | `zs.clump=SIZE` | files written together are deleted together, at least this many bytes | 0 |
//! | `zs.scrub=1` | write zeros to nearly all free memory before the balloon is loaded | 0 |
//! | `zs.settle=SECONDS` | the longest wait for the balloon | 60 |
//! | `zs.first=SECONDS` | how long the balloon may take until it begins | 1 |
//! | `zs.balloon=0` | the balloon driver is never loaded | 1 |
//! | `zs.touch=SIZE` | further memory to fill and verify once the balloon has settled | 0 |
//! | `zs.stir=SIZE` | files that an idle guest writes, deletes and verifies again and again | 0 |
//! | `zs.net=1` | network interfaces are switched on, and TCP port 7 sends back what it gets | 0 |
//! | `zs.end=poweroff\|reboot\|idle` | what happens at the end | poweroff |

use std::time::Duration;

/// What happens after the last stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The machine is switched off.
    PowerOff,
    /// The machine restarts.
    Reboot,
    /// The guest goes on checking its memory until someone ends it.
    Idle,
}

/// Whether a page is only read or also written again by the background check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Read and compare.
    Read,
    /// Read, compare, and write the pattern of the next pass.
    Rewrite,
}

/// Whether the balloon driver is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// After what comes before it.
    Loaded,
    /// Never.
    LeftOut,
}

/// Everything that the command line can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Bytes to fill with the pattern.
    pub(crate) fill_bytes: u64,
    /// Seed of everything that looks random.
    pub(crate) seed: u64,
    /// What the background check does.
    pub(crate) check: Check,
    /// Bytes of files to churn through.
    pub(crate) churn_bytes: u64,
    /// Bytes of files that are deleted together, at least.
    pub(crate) clump_bytes: u64,
    /// Whether free memory is scrubbed.
    pub(crate) scrub: bool,
    /// Longest wait for the balloon.
    pub(crate) settle: Duration,
    /// Longest wait for the first change of the balloon.
    pub(crate) first: Duration,
    /// Whether the balloon driver is loaded.
    pub(crate) balloon: Driver,
    /// Bytes to touch after ballooning.
    pub(crate) touch_bytes: u64,
    /// Bytes of files that an idle guest writes in each round.
    pub(crate) stir_bytes: u64,
    /// Whether the network is used.
    pub(crate) net: bool,
    /// What happens at the end.
    pub(crate) end: End,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fill_bytes: 0,
            seed: 1,
            check: Check::Read,
            churn_bytes: 0,
            clump_bytes: 0,
            scrub: false,
            settle: Duration::from_secs(60),
            first: Duration::from_secs(1),
            balloon: Driver::Loaded,
            touch_bytes: 0,
            stir_bytes: 0,
            net: false,
            end: End::PowerOff,
        }
    }
}

impl Options {
    /// Reads a kernel command line; words without the prefix `zs.` are the kernel's own.
    ///
    /// # Errors
    /// A sentence that names the first word that makes no sense.
    pub(crate) fn parse(command_line: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for word in command_line.split_whitespace() {
            if let Some(setting) = word.strip_prefix("zs.") {
                options.apply(setting).map_err(|why| format!("{word}: {why}"))?;
            }
        }
        Ok(options)
    }

    fn apply(&mut self, setting: &str) -> Result<(), String> {
        let (name, value) =
            setting.split_once('=').ok_or("has no value, expected zs.NAME=VALUE")?;
        match name {
            "fill" => self.fill_bytes = size(value)?,
            "seed" => self.seed = number(value)?,
            "rewrite" => self.check = if flag(value)? { Check::Rewrite } else { Check::Read },
            "churn" => self.churn_bytes = size(value)?,
            "clump" => self.clump_bytes = size(value)?,
            "scrub" => self.scrub = flag(value)?,
            "settle" => self.settle = seconds(value)?,
            "first" => self.first = seconds(value)?,
            "balloon" => {
                self.balloon = if flag(value)? { Driver::Loaded } else { Driver::LeftOut };
            }
            "touch" => self.touch_bytes = size(value)?,
            "stir" => self.stir_bytes = size(value)?,
            "net" => self.net = flag(value)?,
            "end" => self.end = end(value)?,
            _ => return Err("unknown setting".to_owned()),
        }
        Ok(())
    }
}

fn end(value: &str) -> Result<End, String> {
    match value {
        "poweroff" => Ok(End::PowerOff),
        "reboot" => Ok(End::Reboot),
        "idle" => Ok(End::Idle),
        _ => Err("expected poweroff, reboot or idle".to_owned()),
    }
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err("expected 0 or 1".to_owned()),
    }
}

fn number(value: &str) -> Result<u64, String> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| "expected a number, decimal or 0x".to_owned())
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds: f64 = value.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "expected a number of seconds".to_owned())
}

/// A size in bytes: `96M`, `2G`, `4096`; units are powers of 1024.
fn size(value: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 96M or 2G";
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &value[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" | "k" => 10,
        "M" | "MiB" | "m" => 20,
        "G" | "GiB" | "g" => 30,
        _ => return Err(EXPECTED.to_owned()),
    };
    let count: u64 = digits.parse().map_err(|_| EXPECTED.to_owned())?;
    count.checked_mul(1 << shift).ok_or_else(|| "does not fit in 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_command_line_without_our_words_asks_for_nothing() {
        let options = Options::parse("console=ttyS0 quiet init_on_free=1\n").unwrap();
        assert_eq!(options, Options::default());
    }

    #[test]
    fn every_word_is_read() {
        let line = "quiet zs.fill=96M zs.seed=0x10 zs.rewrite=1 zs.churn=1G zs.clump=4M \
                    zs.scrub=1 zs.settle=2.5 zs.first=30 zs.balloon=0 zs.touch=512K \
                    zs.stir=64M zs.net=1 zs.end=idle panic=-1";
        let expected = Options {
            fill_bytes: 96 << 20,
            seed: 16,
            check: Check::Rewrite,
            churn_bytes: 1 << 30,
            clump_bytes: 4 << 20,
            scrub: true,
            settle: Duration::from_millis(2500),
            first: Duration::from_secs(30),
            balloon: Driver::LeftOut,
            touch_bytes: 512 << 10,
            stir_bytes: 64 << 20,
            net: true,
            end: End::Idle,
        };
        assert_eq!(Options::parse(line), Ok(expected));
    }

    #[test]
    fn nonsense_is_named() {
        for word in [
            "zs.fill=",
            "zs.fill=M",
            "zs.fill=-1",
            "zs.fill=17179869184G",
            "zs.fill=1T",
            "zs.scrub=yes",
            "zs.net=eth0",
            "zs.settle=-1",
            "zs.settle=inf",
            "zs.end=halt",
            "zs.scrub",
            "zs.unheard=1",
        ] {
            let error = Options::parse(&format!("quiet {word}")).unwrap_err();
            assert!(error.starts_with(word), "{error}");
        }
    }
}
