//! A real Linux guest under an unmodified QEMU, on populate-on-demand memory.
//!
//! The guest is a Debian kernel with `zerosweep-guest` as `/init`, on QEMU's software CPU (TCG), so
//! no KVM is needed; with `ZEROSWEEP_TEST_ACCEL=kvm` in the environment, all guests use it. What is
//! needed: QEMU, a guest image (`cargo xtask setup`), userfaultfd in kernel mode, and the release
//! builds of program and agent:
//!
//! ```text
//! cargo build --release -p zerosweep-cli -p zerosweep-agent
//! cargo test --release -p zerosweep-cli --test real_guest -- \
//!     --include-ignored --test-threads 1 --nocapture
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `balance` | three guests within a budget: memory goes to the one that needs it |
//! | `boots` | boots, balloons, keeps every page, and stays within its target at every moment |
//! | `boot_time` | what that costs, against plain QEMU, in pairs |
//! | `churn` | what is in use after churn stays on superpages; deflating, re-use and reset |
//! | `endings` | the VMM or the tool is killed: nothing is left, and no guest ends with its tool |
//! | `experiment` | `zerosweep experiment --machine qemu` |
//! | `events` | what happens, recorded by `run --events` |
//! | `exhaustion` | a guest that needs more than its target: rule [R15] |
//! | `flood` | a control socket full of garbage and silent clients |
//! | `kvm` | under KVM on hardware: the engine's superpages are the processor's |
//! | `machines` | `-M pc`, `q35` and `microvm` |
//! | `migration` | migrated away by QEMU, and what QEMU refuses |
//! | `record` | a guest's side, recorded by `run --record` and done again |
//! | `resets` | a guest that is reset while its balloon inflates |
//! | `serve` | a target that is set in the web page (needs Chromium too) |
//! | `stops` | tool and clients that are stopped for a while |
//! | `stress` | ballooning, churn, sweeps and consolidation all at once; longer by a variable |
//! | `surroundings` | command lines, names and sockets that stand in the way |
//! | `vhost` | a network device that the host's kernel serves |
//! | `harness` | guests that end with their test, markers, control sockets, memory held |
//!
//! One at a time: the machine has few CPUs, and times are measured.
//!
//! [R15]: zerosweep::rules#r15

#![expect(clippy::unwrap_used, reason = "test code; clippy does not see that in helpers")]

#[path = "real_guest/balance.rs"]
mod balance;
#[path = "support/browser.rs"]
mod browser;
#[path = "support/http.rs"]
mod http;

#[path = "real_guest/boot_time.rs"]
mod boot_time;
#[path = "real_guest/boots.rs"]
mod boots;
#[path = "real_guest/churn.rs"]
mod churn;
#[path = "real_guest/endings.rs"]
mod endings;
#[path = "real_guest/events.rs"]
mod events;
#[path = "real_guest/exhaustion.rs"]
mod exhaustion;
#[path = "real_guest/experiment.rs"]
mod experiment;
#[path = "real_guest/flood.rs"]
mod flood;
#[path = "real_guest/harness/mod.rs"]
mod harness;
#[path = "real_guest/kvm.rs"]
mod kvm;
#[path = "real_guest/machines.rs"]
mod machines;
#[path = "real_guest/migration.rs"]
mod migration;
#[path = "real_guest/record.rs"]
mod record;
#[path = "real_guest/resets.rs"]
mod resets;
#[path = "real_guest/serve.rs"]
mod serve;
#[path = "real_guest/snapshots.rs"]
mod snapshots;
#[path = "real_guest/stops.rs"]
mod stops;
#[path = "real_guest/stress.rs"]
mod stress;
#[path = "real_guest/surroundings.rs"]
mod surroundings;
#[path = "real_guest/vhost.rs"]
mod vhost;
