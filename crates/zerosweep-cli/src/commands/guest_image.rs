//! `zerosweep guest-image`: kernel and initramfs of the test guest.

use std::process::ExitCode;

use serde_json::json;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_lab::image::{self, GuestImage, Image, Kernel};

use crate::cli::ImageArguments;

/// Builds the image and says where it is.
pub(super) fn execute(arguments: &ImageArguments) -> Result<ExitCode, Failure> {
    let failed = |error: anyhow::Error| Failure::work(format!("{error:#}"));
    let kernel = match arguments.kernel.as_slice() {
        [] => Kernel::installed(),
        [directory] if directory.is_dir() => Kernel::from_directory(directory),
        packages => Kernel::from_debs(packages),
    }
    .map_err(failed)?;
    let init = match &arguments.init {
        Some(init) => init.clone(),
        None => image::find_init().map_err(failed)?,
    };
    let out = arguments.out.clone().unwrap_or_else(GuestImage::default_dir);
    let built = Image::build(&kernel, &init, &out).map_err(failed)?;
    if arguments.json {
        output::json(&json!({
            "kernel": built.kernel,
            "initrd": built.initrd,
            "version": built.version,
        }))?;
    } else {
        let (kernel, initrd) = (built.kernel.display(), built.initrd.display());
        output::text(&format!("kernel  {kernel}\ninitrd  {initrd}\nversion {}\n", built.version))?;
    }
    Ok(ExitCode::SUCCESS)
}
