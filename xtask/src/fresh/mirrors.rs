//! How the host's apt and cargo reach their mirrors: sources of the distribution, proxies,
//! certificates, names of hosts.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Files that are the same in the new root, if the host has them.
const FILES: [&str; 3] = ["etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"];
/// How the names of variables that matter for this begin or end.
const PREFIXES: [&str; 5] =
    ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];
const SUFFIXES: [&str; 2] = ["_proxy", "_PROXY"];
/// The settings of apt that say how files are fetched.
const APT: [&str; 3] = ["Acquire::http", "Acquire::https", "Acquire::Retries"];

/// How the mirrors are reached.
pub(super) struct Mirrors {
    /// The release, as in apt's sources.
    pub(super) suite: String,
    /// The distribution's own sources.
    pub(super) sources: String,
    /// Settings of apt's.
    pub(super) apt: Vec<String>,
    /// Variables for all programs.
    pub(super) variables: Vec<(String, String)>,
    /// cargo's settings.
    cargo: Option<PathBuf>,
}

impl Mirrors {
    /// Returns the mirrors of this host.
    pub(super) fn of_host() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let suite = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no release (VERSION_CODENAME)")?
            .trim_matches('"')
            .to_owned();
        let mut sources = String::new();
        for file in source_files()? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            sources += &match file.extension().is_some_and(|extension| extension == "sources") {
                true => stanzas_of(&text, &suite),
                false => stanzas_of_lines(&text, &suite),
            };
        }
        ensure!(!sources.is_empty(), "apt has no source of {suite}: see /etc/apt/sources.list");
        let dump =
            Command::new("apt-config").arg("dump").output().context("starting apt-config")?;
        let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
        let apt = dump.lines().filter(|line| APT.iter().any(|name| line.starts_with(name)));
        let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let cargo_home = cargo_home.or_else(|| Some(env::home_dir()?.join(".cargo")));
        let cargo = cargo_home.map(|home| home.join("config.toml")).filter(|file| file.is_file());
        let variables = env::vars().filter(|(name, _)| leads_to_mirrors(name)).collect();
        Ok(Self { suite, sources, apt: apt.map(str::to_owned).collect(), variables, cargo })
    }

    /// Writes the settings that are files to the new root.
    pub(super) fn copy_to(&self, root: &Path) -> Result<()> {
        let copy = |from: &Path, to: PathBuf| -> Result<()> {
            // A link would be followed to the host's file.
            if to.is_symlink() {
                fs::remove_file(&to)?;
            }
            fs::create_dir_all(to.parent().unwrap_or(root))?;
            fs::copy(from, &to)
                .map(|_| ())
                .with_context(|| format!("copying {} to {}", from.display(), to.display()))
        };
        for file in FILES {
            let from = Path::new("/").join(file);
            if from.is_file() {
                copy(&from, root.join(file))?;
            }
        }
        if let Some(cargo) = &self.cargo {
            copy(cargo, root.join("root/.cargo/config.toml"))?;
        }
        Ok(())
    }
}

fn source_files() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.retain(|file| file.is_file());
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in entries {
            files.push(entry?.path());
        }
    }
    files.retain(|file| {
        file.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    });
    files.sort();
    Ok(files)
}

fn leads_to_mirrors(variable: &str) -> bool {
    PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
        || SUFFIXES.iter().any(|suffix| variable.ends_with(suffix))
}

/// Whether a name in a source is the release, or its updates: `bookworm`, `bookworm-updates`.
fn is_of(name: &str, suite: &str) -> bool {
    name.strip_prefix(suite).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Returns the stanzas of the release from a file of stanzas.
fn stanzas_of(text: &str, suite: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let is_kept = |stanza: &&str| {
        let suites = stanza.lines().find_map(|line| line.strip_prefix("Suites:"));
        let is_off = stanza.lines().any(|line| line.trim() == "Enabled: no");
        !is_off && suites.is_some_and(|all| all.split_whitespace().any(|name| is_of(name, suite)))
    };
    let stanzas = lines.split("\n\n").map(str::trim).filter(is_kept);
    stanzas.map(|stanza| format!("{stanza}\n\n")).collect()
}

/// Returns the lines of the release from a file of lines (`deb [options] URI SUITE COMPONENTS`), as
/// stanzas.
fn stanzas_of_lines(text: &str, suite: &str) -> String {
    let stanza = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, name) = (words.next()?, words.next()?);
        let key = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let key = key.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        let components = words.collect::<Vec<_>>().join(" ");
        is_of(name, suite).then(|| {
            format!("Types: deb\nURIs: {uri}\nSuites: {name}\nComponents: {components}\n{key}\n")
        })
    };
    text.lines().filter_map(stanza).collect()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn only_the_releases_own_sources_are_kept() {
        let stanza = "Types: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n\
                      Components: main";
        let text = format!(
            "# of a\n{stanza}\n\nTypes: deb\nURIs: http://b\nSuites: stable-bookworm\n\n{stanza}\n\
             Enabled: no\n"
        );
        assert_eq!(stanzas_of(&text, "bookworm"), format!("{stanza}\n\n"));
        let lines = "deb [arch=amd64 signed-by=/k.gpg] http://a bookworm main contrib\n\
                     # deb http://b bookworm main\ndeb-src http://c bookworm main\n\
                     deb http://d cloud-bookworm main\ndeb http://e bookworm-updates main\n";
        assert_eq!(
            stanzas_of_lines(lines, "bookworm"),
            "Types: deb\nURIs: http://a\nSuites: bookworm\nComponents: main contrib\n\
             Signed-By: /k.gpg\n\n\
             Types: deb\nURIs: http://e\nSuites: bookworm-updates\nComponents: main\n\n"
        );
    }

    #[test]
    fn proxies_and_registries_are_handed_on_and_cargos_own_variables_are_not() {
        for variable in ["http_proxy", "HTTPS_PROXY", "no_proxy", "CARGO_REGISTRIES_X_INDEX"] {
            assert!(leads_to_mirrors(variable), "{variable}");
        }
        for variable in ["CARGO_HOME", "CARGO_PKG_NAME", "PATH", "CARGO_TARGET_DIR"] {
            assert!(!leads_to_mirrors(variable), "{variable}");
        }
    }
}
