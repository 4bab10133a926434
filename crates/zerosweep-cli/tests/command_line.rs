//! `zerosweep run` and `zerosweep-qemu` before any VMM is started: how its command line is read, what
//! is refused with all reasons, and what is added to it.
#![expect(clippy::unwrap_used, reason = "test code; clippy does not see that in helpers")]

mod support;

use support::{Place, stderr, stdout};

/// The exit status of `zerosweep run OPTIONS -- VMM LINE`, and what was said. The VMM prints its
/// arguments, one a line.
fn run(options: &str, line: &str) -> (Option<i32>, String, String) {
    let place = Place::new();
    let fake = place.script("fake-qemu", "for word; do echo \"[$word]\"; done");
    let words = ["run", "--name", "vm"].into_iter().chain(options.split_whitespace());
    let words: Vec<&str> = words.chain(["--", &fake]).chain(line.split_whitespace()).collect();
    let output = place.output(&words);
    (output.status.code(), stdout(&output), stderr(&output))
}

/// `zerosweep run` refuses the line, in one go with all of `parts`.
#[track_caller]
fn refused(line: &str, parts: &[&str]) -> String {
    let (code, started, said) = run("--target 64M", line);
    assert_eq!((code, started.as_str()), (Some(2), ""), "{line}: {said}");
    for part in parts {
        assert!(said.contains(part), "{line}: {part:?} is not in: {said}");
    }
    said
}

/// Options of QEMU 9 and of one that is not there yet.
const WITHOUT_ARGUMENT: [&str; 4] = ["-perfmap", "-jitdump", "--perfmap", "-some-future-switch"];

#[test]
fn an_option_that_is_not_known_does_not_swallow_the_next() {
    for option in WITHOUT_ARGUMENT {
        let (code, started, said) = run("--target 200M", &format!("{option} -m 512"));
        assert_eq!(code, Some(0), "{option}: {said}");
        assert!(started.starts_with(&format!("[{option}]\n[-m]\n[512]\n[-device]")), "{started}");
    }
}

#[test]
fn nothing_that_must_be_refused_hides_behind_an_option_that_is_not_known() {
    for option in WITHOUT_ARGUMENT {
        for hidden in ["-daemonize", "-mem-prealloc", "-incoming defer", "-mem-path /x"] {
            let name = hidden.split(' ').next().unwrap();
            refused(&format!("-m 512 {option} {hidden}"), &[name]);
        }
    }
}

/// A VMM of `body` that is given a second for its agent to answer. The C library stands for an agent
/// that is in it.
fn never_managed(body: &str, agent: Option<&std::path::Path>) -> String {
    let place = Place::new();
    let fake = place.script("fake-qemu", body);
    let words = ["run", "--name", "vm", "--target", "64M", "--wait-agent", "1", "--", &fake];
    let mut command = place.command(&words);
    if let Some(agent) = agent {
        command.env("ZEROSWEEP_AGENT", agent);
    }
    let output = command.args(["-m", "512"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(place.left_behind().is_empty());
    stderr(&output)
}

#[test]
fn a_vmm_that_marks_no_memory_is_not_blamed_on_the_loader() {
    let said = never_managed("exec sleep 60", None);
    assert!(said.contains("not allocated one block of 512M for its guest within 3s"), "{said}");
    assert!(said.contains("marked no memory") && !said.contains("LD_PRELOAD"), "{said}");
}

#[test]
fn a_vmm_that_the_agent_is_not_in_is_blamed_on_the_loader() {
    let library = support::c_library().with_file_name("libm.so.6");
    let said = never_managed("unset LD_PRELOAD; exec sleep 60", Some(&library));
    assert!(said.contains("did not answer within 1s. LD_PRELOAD was probably"), "{said}");
}

#[test]
#[ignore = "needs QEMU"]
fn a_vmm_with_another_memory_size_is_told_with_the_sizes_that_it_has() {
    let vmm = "qemu-system-x86_64 -m 256 -display none -S -nodefaults";
    for body in [format!("exec {vmm}"), format!("{vmm} & trap \"kill $!\" TERM; wait")] {
        let said = never_managed(&body, None);
        assert!(said.contains("not allocated one block of 512M"), "{said}");
        assert!(said.contains("256M") && said.contains("another memory size"), "{said}");
    }
}
