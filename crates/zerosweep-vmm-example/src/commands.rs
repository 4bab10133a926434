//! Commands for a running machine: a line each on the standard input.

use std::io;
use std::thread;

use anyhow::{Context as _, Result};
use zerosweep_linux::PAGE_BYTES;

/// How they are written.
const USAGE: &str = "commands: target SIZE, figures, quit";

/// What the machine is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Another target, in bytes.
    Target(u64),
    /// Print the figures of this moment.
    Figures,
    /// End, without asking the guest.
    Quit,
}

impl Command {
    fn parse(line: &str) -> Result<Self, String> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["target", size] => match parse_size(size)? {
                bytes if bytes > 0 && bytes.is_multiple_of(PAGE_BYTES) => Ok(Self::Target(bytes)),
                bytes => Err(format!("{bytes} bytes are no target: give a multiple of 4 KiB")),
            },
            ["figures"] => Ok(Self::Figures),
            ["quit"] => Ok(Self::Quit),
            _ => Err(format!("{line:?} is no command; {USAGE}")),
        }
    }
}

/// Reads `512M`, `2G`, `4096`; units are powers of 1024.
///
/// # Errors
/// What is wrong, and how a size is written.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let config = parse_size::Config::new().with_binary();
    config.parse_size(text).map_err(|e| format!("{text:?}: {e}; write a size as 512M or 2G"))
}

/// Starts a thread that reads commands until the input ends.
pub(crate) fn listen(command: impl Fn(Command) + Send + 'static) -> Result<()> {
    let read = move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            match Command::parse(&line) {
                Ok(read) => command(read),
                Err(why) => eprintln!("{why}"),
            }
        }
    };
    let thread = thread::Builder::new().name("commands".to_owned()).spawn(read);
    thread.context("starting the thread that reads commands")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert_eq!(Command::parse("target 160M"), Ok(Command::Target(160 << 20)));
        assert_eq!(Command::parse(" figures "), Ok(Command::Figures));
        assert_eq!(Command::parse("quit"), Ok(Command::Quit));
        for (line, why) in [
            ("target", "no command"),
            ("target 1 2", "no command"),
            ("target some", "write a size"),
            ("target 5000", "multiple of 4 KiB"),
            ("target 0", "multiple of 4 KiB"),
            ("", "commands: target SIZE"),
        ] {
            let error = Command::parse(line).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
