//! What a user sees on a system with Rust and nothing else: an empty system, a clean clone, and the
//! commands of the README.
//!
//! The system is a Debian (or Ubuntu) root of the host's release, made by `mmdebstrap`, with a C
//! compiler to link with and certificates. It becomes the root of a mount and a process namespace of
//! its own: nothing stays mounted, and nothing goes on running, however this ends. From the host it
//! has devices, `/sys`, the Rust toolchain (read only), and what leads to the mirrors: see
//! [`mirrors`].

mod mirrors;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use self::mirrors::Mirrors;
use crate::cargo::{target, workspace};
use crate::{apt, machine, need};

/// What the README has people run.
const COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo xtask test"];
/// What a machine with Rust has beside it: rustc links by `cc`, and cargo asks for certificates.
const PACKAGES: &str = "gcc,libc6-dev,ca-certificates";
/// Where the clone and the toolchain are in the new root.
const CLONE: &str = "root/zerosweep";
const TOOLCHAIN: &str = "opt/rust";
/// How long an interrupted command may take to end by itself.
const ENDING: Duration = Duration::from_secs(15);

/// Makes `$1` the root, with the toolchain of `$2`, and becomes the command `$3` in the clone.
const ENTER: &str = r#"
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount --bind "$2" opt/rust
mount -o remount,bind,ro opt/rust
mkdir -p old
pivot_root . old
cd /root/zerosweep
umount -l /old
rmdir /old
exec sh -c "exec $3"
"#;

/// Where the root is made, and whether it is kept.
pub(crate) struct Options {
    /// `None`: below the target directory.
    pub(crate) root: Option<PathBuf>,
    /// Whether it stays.
    pub(crate) keep: bool,
}

/// Makes the root and runs the commands in it; whether all of them passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if !need::can_install() {
        bail!("`cargo xtask fresh` needs root on Debian or Ubuntu, to make a root directory");
    }
    let readme = fs::read_to_string(workspace().join("README.md")).context("reading README.md")?;
    for command in COMMANDS {
        ensure!(readme.lines().any(|line| line == command), "README.md does not say `{command}`");
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let path = options.root.clone().unwrap_or_else(|| target().join("fresh"));
    let root = Root::new(path, options.keep)?;
    let mut steps = vec![root.fill(&interrupted)?];
    for command in COMMANDS {
        if steps.iter().all(|step| step.passed) {
            steps.push(root.enter(command, &interrupted)?);
        }
    }
    drop(root);
    println!("\nfresh machine");
    for Step { what, passed, time } in &steps {
        let (verdict, seconds) = (if *passed { "passed" } else { "FAILED" }, time.as_secs());
        println!("  {verdict}  {:>2}m {:02} s  {what}", seconds / 60, seconds % 60);
    }
    Ok(steps.len() == COMMANDS.len() + 1 && steps.iter().all(|step| step.passed))
}

/// Something that was done, and how long it took.
struct Step {
    what: &'static str,
    passed: bool,
    time: Duration,
}

/// A directory that becomes a root; removed when dropped, if it is not to be kept.
struct Root {
    path: PathBuf,
    keep: bool,
    mirrors: Mirrors,
    toolchain: PathBuf,
}

impl Root {
    fn new(path: PathBuf, keep: bool) -> Result<Self> {
        if path.exists() {
            bail!("{0} exists; `rm -r {0}` if it is left from an earlier run", path.display());
        }
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        // As it stands in the list of mounts.
        let path = path.canonicalize()?;
        Ok(Self { path, keep, mirrors: Mirrors::of_host()?, toolchain: toolchain()? })
    }

    /// Makes the system, and clones the current commit into it.
    fn fill(&self, interrupted: &AtomicBool) -> Result<Step> {
        let began = Instant::now();
        if machine::program("mmdebstrap").is_none() {
            apt::install(&["mmdebstrap"])?;
        }
        let sources = tempfile::Builder::new().suffix(".sources").tempfile()?;
        fs::write(sources.path(), &self.mirrors.sources)?;
        let mut command = in_namespaces();
        command.args(["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"]);
        command.arg(format!("--include={PACKAGES}"));
        command.args(self.mirrors.apt.iter().map(|option| format!("--aptopt={option}")));
        command.arg(&self.mirrors.suite).arg(&self.path).arg(sources.path());
        println!("=== {command:?}");
        let status = wait(command.stdin(Stdio::null()).spawn()?, interrupted, ENDING)?;
        ensure!(status.success(), "mmdebstrap failed ({status})");
        self.mirrors.copy_to(&self.path)?;
        // No package starts a daemon of its own here.
        let policy = self.path.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs::create_dir_all(self.path.join(TOOLCHAIN))?;
        self.clone_into()?;
        Ok(Step { what: "an empty system and a clone", passed: true, time: began.elapsed() })
    }

    fn clone_into(&self) -> Result<()> {
        let clone = self.path.join(CLONE);
        let commit = git(workspace(), &["rev-parse", "HEAD"])?;
        if !git(workspace(), &["status", "--porcelain"])?.is_empty() {
            println!("what is not committed is not in the clone of {commit}");
        }
        let to = clone.to_str().context("the root's name is not UTF-8")?;
        git(workspace(), &["clone", "--quiet", "--no-local", "--no-checkout", ".", to])?;
        git(&clone, &["checkout", "--quiet", "--detach", &commit])?;
        Ok(())
    }

    /// Runs a command in the clone, in namespaces of its own.
    fn enter(&self, what: &'static str, interrupted: &AtomicBool) -> Result<Step> {
        println!("\n=== in {}: {what}", self.path.display());
        let began = Instant::now();
        let child = in_namespaces()
            .args(["sh", "-c", ENTER, "sh"])
            .args([&self.path, &self.toolchain])
            .arg(what)
            .env_clear()
            .envs(self.mirrors.variables.iter().map(|(name, value)| (name, value)))
            .env("PATH", format!("/{TOOLCHAIN}/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
            .envs([("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "dumb")])
            .stdin(Stdio::null())
            .spawn()
            .context("starting unshare")?;
        let status = wait(child, interrupted, ENDING)?;
        Ok(Step { what, passed: status.success(), time: began.elapsed() })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.keep {
            println!("the root is kept in {}", self.path.display());
        } else if let Err(error) = remove(&self.path) {
            eprintln!("warning: {} is left: {error:#}", self.path.display());
        }
    }
}

/// Removes a root, unless something is mounted there: that would be removed with it.
fn remove(root: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading mounts")?;
    let is_below =
        |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with(root));
    if let Some(mount) = mounts.lines().find(is_below) {
        bail!("something is mounted there: {mount}");
    }
    if root.exists() { fs::remove_dir_all(root).context("removing it") } else { Ok(()) }
}

/// Runs the command that follows in a mount and a process namespace of its own, which end with it.
fn in_namespaces() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
    command.arg("--mount-proc");
    command
}

/// Waits until a process has ended; if this one is interrupted, until the other has noticed, and no
/// longer than it may take for that.
fn wait(mut child: Child, interrupted: &AtomicBool, ending: Duration) -> Result<ExitStatus> {
    let mut deadline = None;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            return Ok(status);
        }
        if interrupted.load(Ordering::Relaxed) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + ending);
            if Instant::now() > deadline {
                // All of its namespace ends with it.
                child.kill()?;
                child.wait()?;
                bail!("interrupted");
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The directory of the toolchain that is in use.
fn toolchain() -> Result<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output();
    let output = output.context("starting rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !sysroot.join("bin/cargo").is_file() || sysroot == Path::new("/usr") {
        bail!(
            "the toolchain in {} cannot be given to another system: use one of rustup's",
            sysroot.display()
        );
    }
    Ok(sysroot)
}

fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        // The clone of somebody else's directory is root's.
        .args(["-c", "safe.directory=*"])
        .args(arguments)
        .output()
        .context("starting git")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), said.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_readme_has_the_commands() {
        let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
        for command in COMMANDS {
            assert!(readme.lines().any(|line| line == command), "{command}");
        }
    }

    #[test]
    fn the_script_has_the_same_places() {
        assert!(ENTER.contains(&format!("cd /{CLONE}\n")));
        assert!(ENTER.contains(&format!("mount --bind \"$2\" {TOOLCHAIN}\n")));
    }

    #[test]
    fn what_is_interrupted_and_does_not_end_is_ended() {
        let sleeper = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = sleeper.id();
        let began = Instant::now();
        let ending = Duration::from_millis(200);
        let error = wait(sleeper, &AtomicBool::new(true), ending).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
        assert!(began.elapsed() >= ending && !Path::new(&format!("/proc/{pid}")).exists());
    }
}
