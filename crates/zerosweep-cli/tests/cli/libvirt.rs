//! A real libvirtd with domains whose emulator is `zerosweep-qemu`: the engine does what `virsh`
//! asks for.
//!
//! libvirtd, virtlogd and their files live in a mount namespace of the test's own, so that neither
//! the host's domains nor its settings are touched. QEMU runs as root there: another user needs
//! what docs/libvirt.md says. The guest is that of the real-guest tests.
//!
//! ```text
//! cargo test --profile checked -p zerosweep-cli --test cli libvirt -- --ignored --nocapture
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use zerosweep_lab::image::GuestImage;
use zerosweep_wire::{State, Status};

const PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const PAGE_BYTES: u64 = 4096;

/// Binds a copy of libvirt's directories over the host's, then becomes libvirtd.
const START: &str = r#"
set -e
mount -t tmpfs -o mode=755 zerosweep-test /run
for directory in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
    mkdir -p "$1/$directory"
    [ "${directory#var/}" = "$directory" ] && cp -a "/$directory/." "$1/$directory/"
    mount --bind "$1/$directory" "/$directory"
done
cat >> /etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_device_acl = [
    "/dev/null", "/dev/full", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/ptmx",
    "/dev/kvm", "/dev/userfaultfd"
]
END
virtlogd -d -p "$1/virtlogd.pid"
exec libvirtd -p "$1/libvirtd.pid"
"#;

/// libvirtd and its namespace; dropping it ends both, and every domain.
struct Libvirt {
    directory: TempDir,
    daemon: Child,
    domains: Vec<String>,
}

impl Libvirt {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let said = fs::File::create(directory.path().join("said")).unwrap();
        let daemon = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"])
            .arg(directory.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        let libvirt = Self { directory, daemon, domains: Vec::new() };
        libvirt.wait_until("libvirtd answers", || {
            libvirt.virsh(&["version"]).status.success().then_some(())
        });
        libvirt
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command in libvirtd's namespace.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.daemon.id()))
            .arg(program)
            .args(arguments)
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn virsh(&self, arguments: &[&str]) -> Output {
        self.run("virsh", &[&["--connect", "qemu:///system"], arguments].concat())
    }

    #[track_caller]
    fn virsh_ok(&self, arguments: &[&str]) -> String {
        let output = self.virsh(arguments);
        assert!(output.status.success(), "virsh {arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn zerosweep(&self, arguments: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_zerosweep"), arguments)
    }

    /// Starts a domain of 2 GiB, and 512 MiB at present.
    #[track_caller]
    fn create(&mut self, name: &str, variables: &[(&str, &str)]) {
        let image = GuestImage::find().unwrap();
        let variables: String = variables
            .iter()
            .map(|(name, value)| format!("<qemu:env name='{name}' value='{value}'/>"))
            .collect();
        let xml = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
             <name>{name}</name><memory unit='MiB'>2048</memory>\
             <currentMemory unit='MiB'>512</currentMemory><vcpu>2</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel>\
             <initrd>{}</initrd><cmdline>console=ttyS0 quiet panic=-1 no_timer_check \
             init_on_free=1 zs.fill=32M zs.rewrite=1 zs.first=30 zs.end=idle</cmdline></os><devices>\
             <emulator>{}</emulator><serial type='file'><source path='{}'/></serial>\
             <memballoon model='virtio'/></devices>\
             <qemu:commandline>{variables}</qemu:commandline></domain>",
            image.kernel.display(),
            image.initrd.display(),
            env!("CARGO_BIN_EXE_zerosweep-qemu"),
            self.path(&format!("{name}.console")).display(),
        );
        let file = self.path(&format!("{name}.xml"));
        fs::write(&file, xml).unwrap();
        self.domains.push(name.to_owned());
        let output = self.virsh(&["create", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}{}", said(&output), self.log(name));
    }

    /// What QEMU, the companion and `zerosweep-qemu` said.
    fn log(&self, name: &str) -> String {
        let path = self.path(&format!("var/log/libvirt/qemu/{name}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    fn console(&self, name: &str) -> String {
        let bytes = fs::read(self.path(&format!("{name}.console"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes all that guests, QEMU and libvirtd said to files, and shows it.
    fn keep_what_was_said(&self) {
        let daemon = fs::read_to_string(self.path("said")).unwrap_or_default();
        println!("libvirtd:\n{daemon}");
        for name in &self.domains {
            let said = format!("console:\n{}\nlog:\n{}\n", self.console(name), self.log(name));
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.console"));
            match fs::write(&file, &said) {
                Ok(()) => println!("{said}kept in {}", file.display()),
                Err(error) => println!("{said}not kept in {}: {error}", file.display()),
            }
        }
    }

    #[track_caller]
    fn status(&self, name: &str) -> Status {
        let output = self.zerosweep(&["status", name, "--json"]);
        assert!(output.status.success(), "{}{}", said(&output), self.log(name));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What the guest has, by `virsh dommemstat`.
    #[track_caller]
    fn actual_bytes(&self, name: &str) -> u64 {
        let text = self.virsh_ok(&["dommemstat", name]);
        let line = text.lines().find_map(|line| line.strip_prefix("actual ")).unwrap();
        line.trim().parse::<u64>().unwrap() * 1024
    }

    /// Waits for `marker` in the guest's console, from byte `from` on.
    #[track_caller]
    fn marker(&self, name: &str, from: usize, marker: &str) {
        self.wait_until(&format!("{name} says {marker:?}"), || {
            let console = self.console(name);
            assert!(!console.contains("done failed"), "{console}");
            console.get(from..)?.contains(marker).then_some(())
        });
    }

    /// What a look of the guest at its memory says that begins now.
    #[track_caller]
    fn check_bytes(&self, name: &str) {
        let from = self.console(name).len();
        self.wait_until("the guest has looked at its memory twice", || {
            let console = self.console(name);
            let looks = console.get(from..)?.matches(" bad=0").count();
            assert!(!console.contains("damaged"), "{console}");
            (looks >= 2).then_some(())
        });
        let audit = self.zerosweep(&["audit", name]);
        assert!(audit.status.success(), "{}", said(&audit));
    }

    #[track_caller]
    fn wait_until<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = done() {
                return result;
            }
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_what_was_said();
        }
        for name in &self.domains {
            self.virsh(&["destroy", name]);
        }
        let pid = fs::read_to_string(self.path("virtlogd.pid")).unwrap_or_default();
        if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = rustix::process::kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
    }
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Processes with both words on their command line.
fn processes_with(first: &str, second: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let line = fs::read(Path::new("/proc").join(entry.file_name()).join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(first) && line.contains(second)).collect()
}

#[test]
#[ignore = "needs libvirt, QEMU, a guest image, userfaultfd and root: cargo xtask test sets them up"]
fn the_target_follows_virsh() {
    let mut libvirt = Libvirt::start();
    let name = format!("zs-follow-{}", std::process::id());
    let name = name.as_str();
    let emulator = env!("CARGO_BIN_EXE_zerosweep-qemu");
    let can =
        libvirt.virsh_ok(&["domcapabilities", "--virttype", "qemu", "--emulatorbin", emulator]);
    assert!(can.contains(&format!("<path>{emulator}</path>")), "{can}");
    assert_eq!(processes_with("zerosweep-companion", name), [""; 0], "nobody looks after a probe");

    // The request comes before the guest runs, so no moment of its boot has another target.
    libvirt.create(name, &[]);
    let status = libvirt.status(name);
    assert_eq!((status.state, status.target_bytes), (State::Managing, 512 * MIB));
    assert_eq!(status.balloon_request_bytes, Some(512 * MIB));
    assert_eq!(libvirt.actual_bytes(name), 2048 * MIB, "its driver is not up yet");
    libvirt.marker(name, 0, "balloon settled");
    libvirt.marker(name, 0, "done ok");
    let status = libvirt.status(name);
    assert!(
        status.counters.engine.superpages_reclaimed > 0,
        "it scrubs, so zeros were found: {status:#?}"
    );
    assert!(status.counters.engine.peak_total * PAGE_BYTES <= 512 * MIB, "{status:#?}");
    assert_eq!(status.borrowed_pages, 0);
    assert!(libvirt.log(name).contains("has what its balloon is asked for, of 2G"));
    let agrees = |status: &Status| {
        let pages = status.pages.max - status.pages.ballooned_out;
        (pages * PAGE_BYTES, libvirt.actual_bytes(name))
    };
    assert_eq!(agrees(&status), (512 * MIB, 512 * MIB));

    // Up: the target is there when virsh returns, whatever the balloon has done by then.
    libvirt.virsh_ok(&["setmem", name, "1G"]);
    assert_eq!(libvirt.status(name).target_bytes, 1024 * MIB);
    libvirt.wait_until("the guest has 1 GiB", || {
        (libvirt.actual_bytes(name) == 1024 * MIB).then_some(())
    });
    assert_eq!(libvirt.status(name).target_bytes, 1024 * MIB);
    libvirt.check_bytes(name);

    // Down: never below what the guest has left, and no further than asked for.
    libvirt.virsh_ok(&["setmem", name, "400M"]);
    libvirt.wait_until("the target is 400 MiB", || {
        let status = libvirt.status(name);
        let actual_bytes = libvirt.actual_bytes(name);
        assert!(status.target_bytes >= actual_bytes, "{} < {actual_bytes}", status.target_bytes);
        assert_eq!(status.stalled_threads, 0);
        (status.target_bytes == 400 * MIB).then_some(())
    });
    // Which pages its balloon gave the guest in between, nobody says; how many, the companion sees.
    libvirt.wait_until("the engine counts what the balloon has", || {
        let (had_bytes, actual_bytes) = agrees(&libvirt.status(name));
        let difference = had_bytes.abs_diff(actual_bytes);
        (actual_bytes == 400 * MIB && difference <= 16 * PAGE_BYTES).then_some(())
    });
    libvirt.check_bytes(name);
    libvirt.wait_until("it holds no more than that", || {
        (libvirt.status(name).pages.total * PAGE_BYTES <= 400 * MIB).then_some(())
    });

    comes_back(&libvirt, name);

    libvirt.virsh_ok(&["destroy", name]);
    libvirt.wait_until("nothing is left behind", || {
        let files = said(&libvirt.run("ls", &["-A", "/run/zerosweep-qemu"]));
        let processes = processes_with("zerosweep", name);
        (files.is_empty() && processes.is_empty()).then_some(())
    });
    assert!(!said(&libvirt.zerosweep(&["ps"])).contains(name));
}

#[test]
#[ignore = "needs libvirt, QEMU, a guest image, userfaultfd and root: cargo xtask test sets them up"]
fn a_target_that_is_given_counts_before_libvirts_first_request() {
    let mut libvirt = Libvirt::start();
    let name = format!("zs-given-{}", std::process::id());
    let name = name.as_str();
    libvirt.create(name, &[("ZEROSWEEP_TARGET", "300M")]);
    assert_eq!(libvirt.status(name).target_bytes, 300 * MIB);
    libvirt.wait_until("the balloon has followed the target", || {
        (libvirt.actual_bytes(name) == 300 * MIB).then_some(())
    });
    libvirt.marker(name, 0, "done ok");
    let status = libvirt.status(name);
    assert!(status.counters.engine.peak_total * PAGE_BYTES <= 300 * MIB, "{status:#?}");
    assert_eq!(status.balloon_request_bytes, None);

    libvirt.virsh_ok(&["setmem", name, "600M"]);
    assert_eq!(libvirt.status(name).target_bytes, 600 * MIB, "the last word counts");
    let set = libvirt.zerosweep(&["set-target", name, "350M"]);
    assert!(set.status.success(), "{}", said(&set));
    libvirt.wait_until("libvirt knows", || (libvirt.actual_bytes(name) == 350 * MIB).then_some(()));
    assert_eq!(libvirt.status(name).target_bytes, 350 * MIB);
    libvirt.check_bytes(name);
}

/// `virsh save` and `restore` of a domain that has 400 MiB, and `managedsave` and `start`, as
/// libvirt-guests does it when the host is shut down.
fn comes_back(libvirt: &Libvirt, name: &str) {
    let file = libvirt.path("saved");
    let file = file.to_str().unwrap();
    comes_back_by(libvirt, name, &["save", name, file], &["restore", file]);

    // Only a domain that has a definition can be saved in libvirt's own place.
    let definition = libvirt.path("definition.xml");
    fs::write(&definition, libvirt.virsh_ok(&["dumpxml", "--inactive", name])).unwrap();
    libvirt.virsh_ok(&["define", definition.to_str().unwrap()]);
    comes_back_by(libvirt, name, &["managedsave", name], &["start", name]);
    libvirt.virsh_ok(&["undefine", name]);

    // The target follows as before.
    libvirt.virsh_ok(&["setmem", name, "380M"]);
    libvirt.wait_until("it holds no more than that", || {
        let status = libvirt.status(name);
        let total = status.pages.total * PAGE_BYTES;
        (status.target_bytes == 380 * MIB && total <= 380 * MIB).then_some(())
    });
    libvirt.check_bytes(name);
}

/// The domain is as it was after these two commands, within its target.
fn comes_back_by(libvirt: &Libvirt, name: &str, save: &[&str], restore: &[&str]) {
    let before = libvirt.status(name);
    libvirt.virsh_ok(save);
    let gone = || processes_with("zerosweep", name).is_empty().then_some(());
    libvirt.wait_until("QEMU is gone", gone);
    libvirt.virsh_ok(restore);
    let status = libvirt.wait_until("the guest is back, with its balloon", || {
        let status = libvirt.status(name);
        let bytes = (status.pages.max - status.pages.ballooned_out) * PAGE_BYTES;
        (bytes.abs_diff(400 * MIB) <= 16 * PAGE_BYTES).then_some(status)
    });
    println!(
        "{}: peak {} pages, {} superpages before and {} after",
        restore[0],
        status.counters.engine.peak_total,
        before.superpages.in_guest,
        status.superpages.in_guest
    );
    assert_eq!((status.state, status.target_bytes), (State::Managing, 400 * MIB));
    assert!(status.counters.engine.peak_total * PAGE_BYTES <= 400 * MIB, "{status:#?}");
    assert_eq!(status.borrowed_pages, 0);
    libvirt.check_bytes(name);
}
