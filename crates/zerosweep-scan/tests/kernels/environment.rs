use std::env;
use std::process::Command;

use zerosweep_scan::{KERNEL_VARIABLE, Kernel};

const CHILD: &str = "environment::report_the_choice";

/// Not a test: what the tests below start in processes of their own.
#[test]
#[ignore = "a helper of the other tests of this file"]
fn report_the_choice() {
    println!("chosen={} understood={}", Kernel::chosen(), Kernel::requested().is_ok());
}

fn report(value: &str) -> String {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "--nocapture", CHILD]).env(KERNEL_VARIABLE, value);
    String::from_utf8(child.output().unwrap().stdout).unwrap()
}

#[test]
#[cfg_attr(miri, ignore = "starts processes")]
fn the_environment_names_the_kernel_of_the_process() {
    for kernel in Kernel::available() {
        let expected = format!("chosen={kernel} understood=true");
        let report = report(kernel.name());
        assert!(report.contains(&expected), "{report}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "starts processes")]
fn an_unknown_name_is_as_if_unset_and_can_be_told() {
    let fastest = Kernel::available().next().unwrap();
    let report = report("sse9");
    assert!(report.contains(&format!("chosen={fastest} understood=false")), "{report}");
}
