//! Test-guest images: a distribution's kernel and an initramfs with `zerosweep-guest` as `/init`.
//!
//! ```text
//! kernel package ─┐
//!  (.deb, tree,   ├─ Kernel ──┐
//!   installed)  ──┘           ├─ Image::build ─ GuestImage { kernel, initrd, version }
//! zerosweep-guest ─ find_init ┘
//! ```
//!
//! Everything is kept under [`cache_dir`]: kernels unpacked from packages in `kernel/`, built
//! images in `guest/`. [`GuestImage::find`] gives the image built last, and builds it again when
//! the init has changed since.
//!
//! Neighbours: `zerosweep guest-image` and `cargo xtask setup` build images; the `qemu-…` guests of
//! the experiments and the tests on real guests boot them.
//!
//! Known holes: x86-64 only has been tried. A kernel with a built-in balloon driver (Ubuntu's)
//! works, but inflates before the guest can scrub.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::files;

mod init;
mod initramfs;
mod kernel;

pub use init::find_init;
pub use initramfs::Archive;
pub use kernel::{Kernel, read_module};

/// Where zerosweep keeps what it can build again: `$XDG_CACHE_HOME/zerosweep`, else
/// `~/.cache/zerosweep`, else a directory for temporary files.
pub fn cache_dir() -> PathBuf {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(env::temp_dir)
        .join("zerosweep")
}

/// A bootable guest: what QEMU's `-kernel` and `-initrd` take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestImage {
    /// The compressed kernel (`vmlinuz`).
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel's version, such as `6.1.0-56-amd64`.
    pub version: String,
}

/// Builds guest images.
#[derive(Debug)]
pub struct Image;

impl Image {
    /// Packs `init` and the kernel's virtio modules into an initramfs in `out_dir`, and notes there
    /// what it was made from. The kernel file itself stays where it is.
    ///
    /// # Errors
    /// When `init` is not a static program, a module is neither a file nor built in, or a file
    /// cannot be read or written.
    pub fn build(kernel: &Kernel, init: &Path, out_dir: &Path) -> Result<GuestImage> {
        let program = fs::read(init).with_context(|| format!("reading {}", init.display()))?;
        init::require_static(init, &program)?;
        let modules = kernel.modules()?;
        let archive = initramfs::pack(&program, &modules)?;
        fs::create_dir_all(out_dir).with_context(|| format!("creating {}", out_dir.display()))?;
        let image = GuestImage {
            kernel: kernel.image().to_owned(),
            initrd: out_dir.join(format!("initrd-{}.img", kernel.version())),
            version: kernel.version().to_owned(),
        };
        replace(&image.initrd, &archive)?;
        let stamp = Stamp {
            format: FORMAT,
            image: image.kernel.clone(),
            initrd: image.initrd.clone(),
            version: image.version.clone(),
            modules: kernel.module_dir().to_owned(),
            init_hash: init::hash(&program),
        };
        replace(&stamp_path(out_dir), &serde_json::to_vec_pretty(&stamp)?)?;
        Ok(image)
    }
}

impl GuestImage {
    /// Where images are built unless someone asks for another place.
    pub fn default_dir() -> PathBuf {
        cache_dir().join("guest")
    }

    /// The image built last in [`GuestImage::default_dir`].
    ///
    /// When [`find_init`] finds another init than the one in the image, the image is built again;
    /// when there is none to be found, the image is taken as it is.
    ///
    /// # Errors
    /// When there is no image, the kernel it was made from is gone, or the init does not build.
    pub fn find() -> Result<Self> {
        Self::find_in(&Self::default_dir(), init::locate)
    }

    fn find_in(dir: &Path, locate_init: impl FnOnce() -> Result<Option<PathBuf>>) -> Result<Self> {
        let stamp = Stamp::read(dir)?;
        let kernel = Kernel::from_parts(stamp.image, stamp.modules, stamp.version.clone());
        if !kernel.image().is_file() {
            bail!("the guest's kernel {} is gone; {ADVICE}", kernel.image().display());
        }
        let init = locate_init()?;
        let hash = match &init {
            Some(init) => {
                init::hash(&fs::read(init).with_context(|| format!("reading {}", init.display()))?)
            }
            None => stamp.init_hash,
        };
        let fresh = stamp.format == FORMAT && stamp.init_hash == hash;
        if fresh && stamp.initrd.is_file() {
            let kernel = kernel.image().to_owned();
            return Ok(Self { kernel, initrd: stamp.initrd, version: stamp.version });
        }
        let init = init.with_context(|| format!("the guest image is out of date; {ADVICE}"))?;
        Image::build(&kernel, &init, dir)
            .with_context(|| format!("building the guest image again; {ADVICE}"))
    }
}

const ADVICE: &str =
    "build it with `zerosweep guest-image` (in the source tree: `cargo xtask setup`)";

/// Changes when images are packed in another way.
const FORMAT: u32 = 3;

/// What an image was made from.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    format: u32,
    image: PathBuf,
    initrd: PathBuf,
    version: String,
    modules: PathBuf,
    init_hash: u64,
}

impl Stamp {
    fn read(dir: &Path) -> Result<Self> {
        let path = stamp_path(dir);
        let text = fs::read(&path)
            .with_context(|| format!("no guest image in {}; {ADVICE}", dir.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{}; {ADVICE}", path.display()))
    }
}

fn stamp_path(dir: &Path) -> PathBuf {
    dir.join("image.json")
}

fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    files::replace(path, contents).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest file that passes for a static program: an ELF header without segments.
    fn static_program(last: u8) -> Vec<u8> {
        let mut program = vec![0; 64];
        program[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        program.push(last);
        program
    }

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let dir =
                env::temp_dir().join(format!("zerosweep-image-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            let virtio = dir.join("usr/lib/modules/6.1.0-test/kernel/drivers/virtio");
            fs::create_dir_all(&virtio).unwrap();
            fs::create_dir_all(dir.join("boot")).unwrap();
            fs::write(dir.join("boot/vmlinuz-6.1.0-test"), b"kernel").unwrap();
            for name in kernel::MODULES {
                fs::write(virtio.join(format!("{name}.ko")), name).unwrap();
            }
            fs::write(dir.join("init"), static_program(1)).unwrap();
            Self(dir)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_image_is_found_again_and_rebuilt_for_a_new_init() {
        let tree = Tree::new("find");
        let (init, out) = (tree.0.join("init"), tree.0.join("out"));
        let kernel = Kernel::from_directory(&tree.0).unwrap();
        let image = Image::build(&kernel, &init, &out).unwrap();
        assert_eq!(image.version, "6.1.0-test");
        let first = fs::read(&image.initrd).unwrap();

        let found = GuestImage::find_in(&out, || Ok(Some(init.clone()))).unwrap();
        assert_eq!(found, image);
        assert_eq!(fs::read(&image.initrd).unwrap(), first);

        fs::write(&init, static_program(2)).unwrap();
        let found = GuestImage::find_in(&out, || Ok(None)).unwrap();
        assert_eq!(found, image);
        assert_eq!(fs::read(&image.initrd).unwrap(), first);
        GuestImage::find_in(&out, || Ok(Some(init.clone()))).unwrap();
        assert_ne!(fs::read(&image.initrd).unwrap(), first);
    }

    #[test]
    fn a_missing_image_says_how_to_get_one() {
        let error = GuestImage::find_in(Path::new("/nowhere"), || Ok(None)).unwrap_err();
        assert!(format!("{error:#}").contains("zerosweep guest-image"), "{error:#}");
    }

    #[test]
    fn a_kernel_that_is_gone_is_reported() {
        let tree = Tree::new("gone");
        let (init, out) = (tree.0.join("init"), tree.0.join("out"));
        let kernel = Kernel::from_directory(&tree.0).unwrap();
        Image::build(&kernel, &init, &out).unwrap();
        fs::remove_file(tree.0.join("boot/vmlinuz-6.1.0-test")).unwrap();
        let error = GuestImage::find_in(&out, || Ok(Some(init.clone()))).unwrap_err();
        assert!(error.to_string().contains("is gone"), "{error:#}");
    }

    #[test]
    fn a_dynamic_init_is_refused() {
        let tree = Tree::new("dynamic");
        let kernel = Kernel::from_directory(&tree.0).unwrap();
        let init = env::current_exe().unwrap();
        let result = Image::build(&kernel, &init, &tree.0.join("out"));
        // A test program built with a static C runtime has nothing to refuse.
        if cfg!(not(target_feature = "crt-static")) {
            assert!(result.unwrap_err().to_string().contains("static"));
        }
    }
}
