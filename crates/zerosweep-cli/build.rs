//! Tells the program where cargo has just built the agent's library: beside the crates that it is
//! linked from. `src/agent.rs` puts it in as a file, so that the program alone is enough to
//! install.

use std::fs::File;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // target/PROFILE/build/NAME-HASH/out
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let profile = out.ancestors().nth(3).map(PathBuf::from).unwrap_or_default();
    let library = profile.join("deps/libzerosweep_agent.so");
    // `cargo check` builds no library, but looks for one; where one is built, it replaces this.
    let _ = File::options().write(true).create_new(true).open(&library);
    println!("cargo::rustc-env=ZEROSWEEP_AGENT_FILE={}", library.display());
}
