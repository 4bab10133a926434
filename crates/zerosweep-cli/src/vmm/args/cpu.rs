//! The accelerator and the virtual CPU: guests of a guest, and asynchronous page faults.

use super::refusal::Refusal;
use crate::vmm::host::Host;
use crate::vmm::options::{Properties, VmmOption};

/// A guest that can halt until its page is there does not occupy a kernel thread for it; and it
/// must wait like any other for a frame. Since QEMU 5.2 there are two of these.
const ASYNCHRONOUS_FAULTS: [&str; 2] = ["kvm-asyncpf", "kvm-asyncpf-int"];

/// What is said of the CPU.
#[derive(Default)]
pub(super) struct Cpu {
    uses_kvm: bool,
    /// The last `-cpu`.
    model: Option<String>,
    /// Whether the user decided about asynchronous page faults.
    decided: bool,
}

impl Cpu {
    /// Of a program whose name says what it uses (`kvm`, `qemu-kvm`).
    pub(super) fn of(program: &str) -> Self {
        Self { uses_kvm: program.ends_with("kvm"), ..Self::default() }
    }

    pub(super) fn read(&mut self, option: &VmmOption) {
        let value = option.value();
        match option.name.as_str() {
            "enable-kvm" => self.uses_kvm = true,
            "accel" => self.accelerators(Properties::parse(value, "accel").get("accel")),
            "M" | "machine" => self.accelerators(Properties::parse(value, "type").get("accel")),
            "cpu" => self.model = Some(value.to_owned()),
            "global" => self.decided |= value.contains("kvm-asyncpf"),
            _ => {}
        }
    }

    /// `kvm:tcg` means the first that works.
    fn accelerators(&mut self, list: Option<&str>) {
        self.uses_kvm |= list.is_some_and(|list| list.split(':').any(|name| name == "kvm"));
    }

    /// A guest that may run guests, on a kernel that does not pin their pages.
    pub(super) fn nested(&self, host: &Host) -> Option<Refusal> {
        let (feature, kernel) = host.nested_by_reference()?;
        let cpu = self.model.clone()?;
        (self.uses_kvm && has(&cpu, feature)).then_some(Refusal::Nested { cpu, feature, kernel })
    }

    /// What QEMU is to be told so that faults of the guest are not handed to the kernel's threads.
    /// `-cpu` counts before `-global`, which keeps QEMU's own model where none was named.
    pub(super) fn without_asynchronous_faults(&self, program: &str) -> Vec<String> {
        let decided =
            self.decided || self.model.as_ref().is_some_and(|cpu| cpu.contains("kvm-asyncpf"));
        if decided || !self.uses_kvm || !cfg!(target_arch = "x86_64") {
            return Vec::new();
        }
        let class = if program.contains("i386") { "i386-cpu" } else { "x86_64-cpu" };
        let property = |name| ["-global".to_owned(), format!("{class}.{name}=off")];
        ASYNCHRONOUS_FAULTS.into_iter().flat_map(property).collect()
    }
}

/// Whether a guest with this `-cpu` has the feature, under KVM on a host that allows it.
fn has(cpu: &str, feature: &str) -> bool {
    let properties = Properties::parse(cpu, "model");
    let given = |sign: &str| properties.get(&format!("{sign}{feature}")).is_some();
    match properties.get(feature) {
        // `-feature` counts before `+feature`, and that before `feature=`.
        _ if given("-") => false,
        _ if given("+") => true,
        Some(_) => properties.is_on(feature),
        // Named models do not have it under KVM (QEMU's default properties).
        None => matches!(properties.get("model"), Some("host" | "max")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_run_guests() {
        for cpu in ["host", "max", "EPYC,+svm", "qemu64,svm=on", "host,migratable=off", "x,svm"] {
            assert!(has(cpu, "svm"), "{cpu}");
        }
        for cpu in ["host,-svm", "EPYC", "host,svm=off", "host,+svm,-svm", "qemu64,svm=no", ""] {
            assert!(!has(cpu, "svm"), "{cpu}");
        }
        assert!(has("host,-svm", "vmx"));
    }
}
