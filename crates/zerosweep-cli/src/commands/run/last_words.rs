//! What QEMU's last words mean for a guest of ours.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;

use zerosweep_client::size::Size;

use super::plan::{BALLOON, Plan};

/// What is known of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// There is no place for the balloon device that was added: QEMU's words.
    NoPlaceForBalloon(String),
    /// What a person should know.
    Hint(String),
}

/// Reads them.
pub(super) fn meaning(words: &str, plan: &Plan) -> Option<Meaning> {
    let about = |part: &str| words.lines().rev().find(|line| line.contains(part));
    let own_device = format!("id={BALLOON}");
    if let Some(line) = about(&own_device) {
        let reason = line.split_once(&format!("{own_device}: ")).map_or(line, |(_, reason)| reason);
        return Some(Meaning::NoPlaceForBalloon(reason.trim().to_owned()));
    }
    if let Some(line) = about("can't apply global").filter(|line| line.contains("kvm-asyncpf")) {
        return Some(Meaning::Hint(own_property(line)));
    }
    let line = about("cannot set up guest memory")?;
    let block = line.split('\'').nth(1).unwrap_or_default();
    let size = Size(plan.config.max_mem_bytes);
    Some(Meaning::Hint(no_memory(size, block, &plan.arguments, &Promises::of_host())))
}

/// A QEMU behind a script that is too old for an argument that was added.
fn own_property(line: &str) -> String {
    let property = if line.contains("kvm-asyncpf-int") { "kvm-asyncpf-int" } else { "kvm-asyncpf" };
    format!(
        "this QEMU does not know the CPU property {property} (5.2 and newer do), which zerosweep sets \
         under KVM. It sets none where the command line has one: add -global x86_64-cpu.kvm-asyncpf=off"
    )
}

/// What the host promises to processes.
struct Promises {
    /// `vm.overcommit_memory`.
    overcommit: Option<u8>,
    /// Memory and swap.
    all: Option<Size>,
    /// `ulimit -v`.
    addresses: Option<Size>,
}

impl Promises {
    fn of_host() -> Self {
        let overcommit = fs::read_to_string("/proc/sys/vm/overcommit_memory");
        let info = rustix::system::sysinfo();
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
        Self {
            overcommit: overcommit.ok().and_then(|text| text.trim().parse().ok()),
            all: info
                .totalram
                .checked_add(info.totalswap)
                .map(|units| Size(units.saturating_mul(u64::from(info.mem_unit)))),
            addresses: limit.map(Size),
        }
    }
}

/// QEMU could not get guest RAM.
fn no_memory(size: Size, block: &str, arguments: &[OsString], host: &Promises) -> String {
    let mut text = format!("the host does not promise {size} at once to a process");
    // Writing to a string cannot fail.
    let _ = match (host.overcommit, host.all) {
        (Some(mode), Some(all)) => write!(
            text,
            ": it has {} of memory and swap, and vm.overcommit_memory is {mode}",
            all.rounded()
        ),
        _ => Ok(()),
    };
    let _ = match host.addresses {
        Some(limit) => write!(text, "; ulimit -v is {}: raise it", limit.rounded()),
        None => Ok(()),
    };
    let is_own_block = arguments.iter().any(|word| {
        let word = word.to_string_lossy();
        word.starts_with("memory-backend-ram") && word.contains(&format!("id={block}"))
    });
    let _ = match (host.overcommit, is_own_block) {
        // It promises nothing beyond what it has, reserved or not.
        (Some(2), _) => {
            write!(text, ". Set vm.overcommit_memory to 0 or 1, or give the guest less")
        }
        (_, true) => write!(
            text,
            ". Have QEMU ask without a promise: add reserve=off to -object \
             memory-backend-ram,id={block}, or set vm.overcommit_memory to 1"
        ),
        (_, false) => write!(
            text,
            ". Have QEMU ask without a promise: add -object \
             memory-backend-ram,id=ram0,size={size},reserve=off -machine memory-backend=ram0, or set \
             vm.overcommit_memory to 1"
        ),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size(64 << 30);
    const HOST: Promises =
        Promises { overcommit: Some(0), all: Some(Size(16 << 30)), addresses: None };

    #[test]
    fn memory_that_is_not_promised_is_explained_by_what_the_host_says() {
        let plain = no_memory(SIZE, "pc.ram", &[], &HOST);
        let begin = "the host does not promise 64G at once to a process: it has 16G of memory and \
                     swap, and vm.overcommit_memory is 0. ";
        assert!(plain.starts_with(begin), "{plain}");
        assert!(plain.contains("memory-backend-ram,id=ram0,size=64G,reserve=off"), "{plain}");
        let own = ["-object", "memory-backend-ram,size=64G,id=r"].map(OsString::from);
        let own = no_memory(SIZE, "r", &own, &HOST);
        assert!(own.contains("add reserve=off to -object memory-backend-ram,id=r,"), "{own}");
        // Nothing is promised beyond what there is.
        let strict = no_memory(SIZE, "r", &[], &Promises { overcommit: Some(2), ..HOST });
        assert!(strict.contains("to 0 or 1") && !strict.contains("reserve"), "{strict}");
        let limited = Promises { addresses: Some(Size(8 << 30)), ..HOST };
        let limited = no_memory(SIZE, "r", &[], &limited);
        assert!(limited.contains("ulimit -v is 8G: raise it"), "{limited}");
    }

    #[test]
    fn a_property_of_ours_that_qemu_does_not_know_is_explained() {
        let line = "qemu: can't apply global x86_64-cpu.kvm-asyncpf-int=off: Property \
                    'host-x86_64-cpu.kvm-asyncpf-int' not found";
        let said = own_property(line);
        assert!(said.contains("property kvm-asyncpf-int (5.2"), "{said}");
    }
}
