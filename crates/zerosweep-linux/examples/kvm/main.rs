//! A small virtual machine monitor: a guest of some hundred bytes on `/dev/kvm` that is told
//! that it has 64 MiB, and may hold 16.
//!
//! ```text
//! cargo run --release -p zerosweep-linux --example kvm
//! ```
//!
//! The guest writes to 4 MiB, clears 56, gives 2 MiB back page by page through a port (what a
//! balloon driver does), writes to half of it again, and looks at all that it wrote. Every first
//! touch is a fault of KVM's own in this process, which zerosweep answers; that it clears more than
//! it may hold is no matter, for zeros need no frames.

use std::error::Error;

#[cfg(target_arch = "x86_64")]
mod machine;

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn Error>> {
    use machine::{MAX_MEM, MIB, Outcome, TARGET, run};

    let Outcome { wrong_pages, given_back, snapshot } = run()?;
    let (statistics, mib) = (&snapshot.statistics, |pages: u64| pages as f64 / 256.0);
    println!("the guest has {} MiB and may hold {}", MAX_MEM / MIB, TARGET / MIB);
    println!("faults answered          {}", snapshot.faults);
    println!("superpages populated     {}", statistics.populates_2m);
    println!("superpages reclaimed     {}", statistics.superpages_reclaimed);
    println!("pages given back         {given_back}");
    println!("most held at any time    {} MiB", mib(statistics.peak_total));
    println!("pages that were not as the guest left them: {wrong_pages}");
    if wrong_pages > 0 { Err("memory was lost".into()) } else { Ok(()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn Error>> {
    Err("the guest is x86 code".into())
}
