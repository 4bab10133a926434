//! What `zerosweep run` adds to a command line so that a guest's faults are not handed to threads of
//! the kernel: KVM does that on x86-64 only.
#![cfg(target_arch = "x86_64")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::command_line::accepted;
use crate::support::{Place, wait_until};

const NO_ASYNC_FAULTS: &str =
    "[-global]\n[x86_64-cpu.kvm-asyncpf=off]\n[-global]\n[x86_64-cpu.kvm-asyncpf-int=off]\n";

#[test]
fn asynchronous_page_faults_are_left_out_under_kvm() {
    for line in ["-accel kvm", "-machine q35,accel=kvm:tcg", "-enable-kvm -cpu host,-vmx,-svm"] {
        let started = accepted(&format!("-m 512 {line}"));
        assert!(started.contains(NO_ASYNC_FAULTS), "{line}: {started}");
    }
    for line in [
        "-accel tcg",
        "-machine q35",
        "-accel kvm -cpu EPYC,kvm-asyncpf=on",
        "-accel kvm -cpu EPYC,-kvm-asyncpf-int",
        "-accel kvm -global x86_64-cpu.kvm-asyncpf=on",
    ] {
        let started = accepted(&format!("-m 512 {line}"));
        assert!(!started.contains("asyncpf=off"), "{line}: {started}");
    }
}

/// Properties of a QEMU's first virtual CPU: of one that `zerosweep run` starts with this line,
/// without a guest.
fn cpu_properties(line: &str, names: &[&str]) -> Vec<Value> {
    let place = Place::new();
    let words = ["run", "--name", "vm", "--target", "32M", "--", "qemu-system-x86_64", "-m", "64"];
    let mut command = place.command(&words);
    command.args(["-S", "-display", "none", "-nodefaults"]).args(line.split_whitespace());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let socket = place.runtime().join("vm.qmp");
    // It is there a moment before it is listened at.
    wait_until("QEMU listens", || UnixStream::connect(&socket).is_ok());
    let mut stream = BufReader::new(UnixStream::connect(&socket).unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let mut ask = |command: &str, arguments: Value| {
        let request = json!({"execute": command, "arguments": arguments});
        stream.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        loop {
            line.clear();
            stream.read_line(&mut line).unwrap();
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            if answer.get("event").is_none() {
                return answer.get_mut("return").unwrap_or_else(|| panic!("{line}")).take();
            }
        }
    };
    ask("qmp_capabilities", json!({}));
    let path = ask("query-cpus-fast", json!({}))[0]["qom-path"].clone();
    let property = |name: &&str| ask("qom-get", json!({"path": path, "property": name}));
    let found = names.iter().map(property).collect();
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    found
}

/// What QEMU makes of what is added.
#[test]
#[ignore = "needs QEMU, KVM"]
fn qemu_leaves_asynchronous_page_faults_out() {
    let names = ["type", "kvm-asyncpf", "kvm-asyncpf-int"];
    for (line, expect) in [
        ("-accel kvm", json!(["qemu64-x86_64-cpu", false, false])),
        ("-accel kvm -cpu host", json!(["host-x86_64-cpu", false, false])),
        ("-machine q35,accel=kvm -cpu qemu64,+x2apic", json!(["qemu64-x86_64-cpu", false, false])),
        ("-accel kvm -cpu host,kvm-asyncpf=on", json!(["host-x86_64-cpu", true, true])),
        ("-accel tcg", json!(["qemu64-x86_64-cpu", false, false])),
    ] {
        assert_eq!(Value::from(cpu_properties(line, &names)), expect, "{line}");
    }
}
