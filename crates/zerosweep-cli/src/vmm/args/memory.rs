//! Guest RAM on the command line: `-m`, the memory backends, and who uses them.

use super::refusal::Refusal;
use super::{DEFAULT_RAM_BYTES, MEBIBYTE, RAM_ALIGNMENT_BYTES};
use crate::vmm::options::{Properties, parse_size};

/// What is said of memory.
#[derive(Default)]
pub(super) struct Memory {
    ram_bytes: Option<u64>,
    /// `maxmem=`, as it stands.
    most: Option<String>,
    /// `-machine memory-backend=`.
    by_machine: Option<String>,
    /// `-numa node,memdev=`.
    by_nodes: Vec<String>,
    backends: Vec<Backend>,
}

struct Backend {
    kind: String,
    id: String,
    properties: Properties,
}

impl Memory {
    /// `-m`.
    pub(super) fn size(&mut self, properties: &Properties) -> Result<(), Refusal> {
        self.most = properties.get("maxmem").map(str::to_owned).or(self.most.take());
        if let Some(size) = properties.get("size") {
            let bytes = parse_size(size, MEBIBYTE)
                .and_then(|bytes| bytes.checked_next_multiple_of(RAM_ALIGNMENT_BYTES))
                .ok_or_else(|| Refusal::BadSize { option: "-m", value: size.to_owned() })?;
            // QEMU takes 0 for its default.
            self.ram_bytes = Some(if bytes == 0 { DEFAULT_RAM_BYTES } else { bytes });
        }
        Ok(())
    }

    /// `-machine memory-backend=`.
    pub(super) fn machine(&mut self, properties: &Properties) {
        let backend = properties.get("memory-backend").map(str::to_owned);
        self.by_machine = backend.or(self.by_machine.take());
    }

    /// `-numa node,memdev=`.
    pub(super) fn node(&mut self, properties: &Properties) {
        self.by_nodes.extend(properties.get("memdev").map(str::to_owned));
    }

    /// `-object memory-backend-…`.
    pub(super) fn backend(&mut self, kind: &str, properties: Properties) {
        let id = properties.get("id").unwrap_or_default().to_owned();
        self.backends.push(Backend { kind: kind.to_owned(), id, properties });
    }

    /// Guest RAM in bytes, where `-m` or the backend says it; and what is in the way.
    pub(super) fn finish(&self) -> (Option<u64>, Vec<Refusal>) {
        let mut refusals = Vec::new();
        let (used, others): (Vec<_>, Vec<_>) =
            self.backends.iter().partition(|backend| self.is_guest_ram(&backend.id));
        let bytes = match used.as_slice() {
            [] => {
                // `-machine memory-backend=` names none of them.
                refusals.extend(self.by_machine.clone().map(Refusal::NoBackend));
                self.ram_bytes
            }
            [backend] => self.one_backend(backend, &mut refusals),
            [.., last] => {
                used.iter().for_each(|backend| backend.check(&mut refusals));
                let what = format!("-object {},id={} is a further block", last.kind, last.id);
                refusals.push(Refusal::SeveralBlocks(what));
                self.ram_bytes
            }
        };
        let ram = bytes.unwrap_or(DEFAULT_RAM_BYTES);
        refusals.extend(self.hotplug(ram));
        for other in others.iter().filter(|other| other.bytes() == Some(ram)) {
            refusals.push(Refusal::SameSize(format!("-object {},id={}", other.kind, other.id)));
        }
        (bytes, refusals)
    }

    fn is_guest_ram(&self, id: &str) -> bool {
        self.by_machine.as_deref() == Some(id) || self.by_nodes.iter().any(|node| node == id)
    }

    fn one_backend(&self, backend: &Backend, refusals: &mut Vec<Refusal>) -> Option<u64> {
        backend.check(refusals);
        if self.by_machine.as_ref().is_some_and(|id| *id != backend.id) {
            refusals.extend(self.by_machine.clone().map(Refusal::NoBackend));
        }
        let Some(backend_bytes) = backend.bytes() else {
            let value = backend.properties.get("size").unwrap_or_default().to_owned();
            refusals.push(Refusal::BadSize { option: "-object …,size=", value });
            return self.ram_bytes;
        };
        // With `-machine memory-backend=` and no `-m`, QEMU takes the backend's size.
        let ram = match self.ram_bytes {
            None if self.by_machine.is_some() => backend_bytes,
            None => DEFAULT_RAM_BYTES,
            Some(bytes) => bytes,
        };
        if ram != backend_bytes {
            refusals.push(Refusal::BackendSize { ram, backend: backend_bytes });
        }
        Some(ram)
    }

    /// Nothing can be plugged into a guest that has all that it may have.
    fn hotplug(&self, ram: u64) -> Option<Refusal> {
        let most = self.most.as_deref()?;
        let Some(bytes) = parse_size(most, 1) else {
            return Some(Refusal::BadSize { option: "-m maxmem", value: most.to_owned() });
        };
        let more = bytes.checked_next_multiple_of(RAM_ALIGNMENT_BYTES) != Some(ram);
        let what = || Refusal::SeveralBlocks(format!("-m maxmem={most} (memory hotplug)"));
        more.then(what)
    }
}

impl Backend {
    fn bytes(&self) -> Option<u64> {
        parse_size(self.properties.get("size")?, 1)
    }

    /// What a block of guest RAM must not be.
    fn check(&self, refusals: &mut Vec<Refusal>) {
        let object = |detail: &str| format!("-object {}{detail}", self.kind);
        if self.properties.is_on("hugetlb") {
            refusals.push(Refusal::NotAnonymous(object(",hugetlb=on")));
        } else if self.kind != "memory-backend-ram" {
            refusals.push(Refusal::NotAnonymous(object("")));
        } else if self.properties.is_on("share") {
            refusals.push(Refusal::NotAnonymous(object(",share=on")));
        }
        if self.properties.is_on("prealloc") {
            refusals.push(Refusal::Preallocated(object(",prealloc=on")));
        }
    }
}
