//! Chooses the kernel: the fastest that this CPU can run, unless the environment names another.

use core::fmt;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use std::arch::is_aarch64_feature_detected;
use std::env;
use std::ffi::OsStr;
use std::sync::OnceLock;

use crate::scan;

/// The environment variable that names the kernel to use: [`Kernel::requested`].
pub const KERNEL_VARIABLE: &str = "ZEROSWEEP_SCAN";

/// A way to scan. A value of this type proves that this CPU can run it.
///
/// ```
/// use zerosweep_scan::Kernel;
///
/// for kernel in Kernel::available() {
///     assert_eq!(kernel.first_nonzero(&[0, 0, 7]), Some(2), "{kernel}");
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel(Kind);

/// The fastest first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
    Portable,
}

impl Kind {
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Self::Neon,
        Self::Portable,
    ];

    const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    fn on_this_cpu(self) -> Option<Kernel> {
        let can_run = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
        };
        can_run.then_some(Kernel(self))
    }
}

impl Kernel {
    /// One word at a time, on every CPU.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// What this CPU can run, the fastest first. [`Kernel::PORTABLE`] is always the last.
    pub fn available() -> impl Iterator<Item = Self> {
        Kind::ALL.iter().filter_map(|kind| kind.on_this_cpu())
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// [`KernelError`] when there is none, or this CPU cannot run it.
    pub fn named(name: &str) -> Result<Self, KernelError> {
        let Some(kind) = Kind::ALL.iter().find(|kind| kind.name() == name) else {
            return Err(KernelError::Unknown { name: name.to_owned() });
        };
        kind.on_this_cpu().ok_or(KernelError::NotOnThisCpu { name: kind.name() })
    }

    /// The kernel that [`KERNEL_VARIABLE`] names, `None` when it is unset or empty. For a report:
    /// [`Kernel::chosen`] heeds it already.
    ///
    /// # Errors
    /// [`KernelError`] as from [`Kernel::named`]: `chosen` takes the fastest, as if it were unset.
    pub fn requested() -> Result<Option<Self>, KernelError> {
        Self::from_value(env::var_os(KERNEL_VARIABLE).as_deref())
    }

    fn from_value(value: Option<&OsStr>) -> Result<Option<Self>, KernelError> {
        match value {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()).map(Some),
            _ => Ok(None),
        }
    }

    /// What [`first_nonzero`](crate::first_nonzero) and
    /// [`first_nonzero_live`](crate::first_nonzero_live) use: the one that is
    /// [requested](Kernel::requested), else the fastest. Chosen by the first call in the process;
    /// later changes of the environment change nothing.
    ///
    /// The first call allocates, since it reads the environment. A thread that must not allocate
    /// scans after another has made it.
    #[must_use]
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Kernel> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::choose(Self::requested()))
    }

    fn choose(requested: Result<Option<Self>, KernelError>) -> Self {
        let fastest = || Self::available().next().unwrap_or(Self::PORTABLE);
        requested.ok().flatten().unwrap_or_else(fastest)
    }

    /// Its name, in reports and in [`KERNEL_VARIABLE`]: `avx2`, `neon`, `portable`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0.name()
    }

    /// [`first_nonzero`](crate::first_nonzero) with this kernel.
    #[must_use]
    #[expect(unsafe_code, reason = "the kernels read by address")]
    pub fn first_nonzero(self, words: &[u64]) -> Option<usize> {
        // SAFETY: the slice is aligned and can be read.
        unsafe { self.first_nonzero_live(words.as_ptr(), words.len()) }
    }

    /// [`first_nonzero_live`](crate::first_nonzero_live) with this kernel.
    ///
    /// # Safety
    /// `start` is aligned to 8 bytes, and `words` words from it can be read. Others may write
    /// there meanwhile.
    #[must_use]
    #[expect(unsafe_code, reason = "guest memory is reached through a raw pointer")]
    pub unsafe fn first_nonzero_live(self, start: *const u64, words: usize) -> Option<usize> {
        // SAFETY: the memory is as the caller vouches; a kernel exists only where the CPU can run
        // it.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => scan::avx2(start, words),
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                Kind::Neon => scan::neon(start, words),
                Kind::Portable => scan::portable(start, words),
            }
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kernel").field(&self.name()).finish()
    }
}

/// Why a name gives no kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelError {
    /// No kernel has this name on this architecture.
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// This CPU lacks its instructions.
    NotOnThisCpu {
        /// What was asked for.
        name: &'static str,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(f, "no scan kernel is called {name:?}")?,
            Self::NotOnThisCpu { name } => write!(f, "this CPU cannot run scan kernel {name:?}")?,
        }
        let names: Vec<_> = Kernel::available().map(Kernel::name).collect();
        write!(f, ", use one of: {}", names.join(", "))
    }
}

impl core::error::Error for KernelError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_is_everywhere_and_the_slowest() {
        assert_eq!(Kernel::available().last(), Some(Kernel::PORTABLE));
    }

    #[test]
    fn a_kernel_is_found_by_its_name() {
        for kernel in Kernel::available() {
            assert_eq!(Kernel::named(kernel.name()), Ok(kernel));
        }
        let error = Kernel::named("AVX2").unwrap_err();
        assert_eq!(error, KernelError::Unknown { name: "AVX2".to_owned() });
        assert!(error.to_string().starts_with("no scan kernel is called \"AVX2\", use one of: "));
    }

    #[test]
    fn the_environment_chooses_and_nonsense_is_as_if_unset() {
        let fastest = Kernel::available().next();
        let choose = |value: &str| Kernel::choose(Kernel::from_value(Some(OsStr::new(value))));
        assert_eq!(choose("portable"), Kernel::PORTABLE);
        assert_eq!(Some(choose("")), fastest);
        assert_eq!(Some(choose("sse9")), fastest);
        assert_eq!(Some(Kernel::choose(Kernel::from_value(None))), fastest);
        assert!(Kernel::from_value(Some(OsStr::new("sse9"))).is_err());
        assert_eq!(Kernel::from_value(Some(OsStr::new(""))), Ok(None));
    }
}
