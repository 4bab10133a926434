//! C programs against the header and the libraries, as a C programmer would build them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
/// What the static library needs of the system.
const SYSTEM: [&str; 3] = ["-pthread", "-ldl", "-lm"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo has put the libraries: beside this test.
fn libraries() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.parent().expect("which is a file's").to_owned()
}

fn run(command: &mut Command) -> Output {
    // Backtraces are kept until the process ends.
    let output = command.env("RUST_BACKTRACE", "0").output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// The C compiler: the one that `CC` names, which tests for another architecture need.
fn c() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

fn compiler(name: &str, standard: &str) -> Command {
    let mut command = Command::new(name);
    command.arg(format!("-std={standard}")).args(STRICT).arg("-I").arg(root().join("include"));
    command
}

/// Compiles C files, named from the package on, and links them with the static library.
fn program(directory: &TempDir, name: &str, sources: &[&str]) -> PathBuf {
    let path = directory.path().join(name);
    run(compiler(&c(), "c11")
        // For POSIX threads and anonymous memory beside C11.
        .args(["-D_DEFAULT_SOURCE", "-g", "-O1", "-o"])
        .arg(&path)
        .args(sources.iter().map(|source| root().join(source)))
        .arg(libraries().join("libzerosweep_capi.a"))
        .args(SYSTEM));
    path
}

fn engine(directory: &TempDir) -> PathBuf {
    program(directory, "engine", &["tests/c/engine.c", "tests/c/machine.c"])
}

fn threads(directory: &TempDir) -> PathBuf {
    program(directory, "threads", &["tests/c/threads.c", "tests/c/machine.c"])
}

#[test]
fn every_operation_and_every_error() {
    let directory = TempDir::new().unwrap();
    run(&mut Command::new(engine(&directory)));
}

#[test]
fn many_threads_on_one_domain() {
    let directory = TempDir::new().unwrap();
    run(Command::new(threads(&directory)).arg("100000"));
}

/// The example, as its first lines say, and with the shared library.
#[test]
fn the_example_works_with_both_libraries() {
    let directory = TempDir::new().unwrap();
    let example = root().join("examples/minimal.c");
    let with_static = program(&directory, "static", &["examples/minimal.c"]);
    let with_shared = directory.path().join("shared");
    run(compiler(&c(), "c11")
        .arg("-o")
        .arg(&with_shared)
        .arg(example)
        .arg("-L")
        .arg(libraries())
        .arg("-lzerosweep_capi"));
    let shown = run(&mut Command::new(with_static)).stdout;
    let also = run(Command::new(with_shared).env("LD_LIBRARY_PATH", libraries())).stdout;
    assert_eq!(shown, also);
    let shown = String::from_utf8(shown).unwrap();
    let documented = std::fs::read_to_string(root().join("../../docs/c.md")).unwrap();
    assert!(documented.contains(&shown), "docs/c.md shows another output than:\n{shown}");
}

#[test]
fn the_header_is_c_of_every_age() {
    for standard in ["c11", "c17", "c2x"] {
        let header = root().join("include/zerosweep.h");
        run(compiler(&c(), standard).args(["-fsyntax-only", "-x", "c"]).arg(header));
    }
}

#[test]
#[ignore = "needs C tools: apt-get install g++ valgrind"]
fn the_header_is_cxx() {
    for standard in ["c++11", "c++20"] {
        let header = root().join("include/zerosweep.h");
        run(compiler("c++", standard).args(["-fsyntax-only", "-x", "c++"]).arg(header));
    }
}

/// Nothing is read that was not written, and at the end all memory has been given back.
fn under_valgrind(program: &Path, arguments: &[&str]) {
    let output = run(Command::new("valgrind")
        .args(["--leak-check=full", "--show-leak-kinds=all", "--errors-for-leak-kinds=all"])
        .args(["--error-exitcode=99", "--fair-sched=yes"])
        .arg(program)
        .args(arguments));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("All heap blocks were freed"), "{said}");
}

#[test]
#[ignore = "needs C tools: apt-get install g++ valgrind"]
fn no_operation_leaks_or_reads_what_is_not_there() {
    let directory = TempDir::new().unwrap();
    under_valgrind(&engine(&directory), &[]);
}

#[test]
#[ignore = "needs C tools: apt-get install g++ valgrind"]
fn no_thread_leaks_or_reads_what_is_not_there() {
    let directory = TempDir::new().unwrap();
    under_valgrind(&threads(&directory), &["2000"]);
}

#[test]
#[ignore = "needs C tools: apt-get install g++ valgrind"]
fn the_example_leaks_nothing() {
    let directory = TempDir::new().unwrap();
    under_valgrind(&program(&directory, "minimal", &["examples/minimal.c"]), &[]);
}
