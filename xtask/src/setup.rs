//! `cargo xtask setup`: what a real guest needs, for people who want one without the tests.

use anyhow::{Result, bail};
use zerosweep_lab::image::GuestImage;

use crate::need::{self, Need, Needs};

const NEEDS: [Need; 2] = [Need::Qemu, Need::GuestImage];

/// Says what is missing. Returns whether nothing is.
pub(crate) fn check() -> bool {
    let missing: Vec<_> = NEEDS.into_iter().filter_map(Need::missing).collect();
    for missing in &missing {
        println!("missing: {missing}");
    }
    if missing.is_empty() {
        println!("everything is there");
    }
    missing.is_empty()
}

/// Gets what is missing.
///
/// # Errors
/// When something is still missing at the end.
pub(crate) fn run() -> Result<()> {
    let missing = need::obtain(&Needs::from(NEEDS));
    if !missing.is_empty() {
        let lines: Vec<_> = missing.iter().map(|missing| format!("\n  {missing}")).collect();
        bail!("still missing:{}", lines.concat());
    }
    let image = GuestImage::find()?;
    println!("guest kernel {}: {}", image.version, image.kernel.display());
    println!("guest image: {}", image.initrd.display());
    Ok(())
}
