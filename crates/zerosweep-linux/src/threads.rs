//! The threads that serve a domain. None works outside of a guard: a panic lifts the cap.

use std::sync::Arc;

use crate::domain::SharedDomain;
use crate::operation;
use crate::sys::raw;

pub(crate) mod faults;
pub(crate) mod prefault;
pub(crate) mod upkeep;

/// Starts a thread that has signals blocked and is guarded from its first step. It keeps the domain
/// alive.
pub(crate) fn spawn(
    domain: &Arc<SharedDomain>,
    name: &'static str,
    work: impl FnOnce(&SharedDomain) + Send + 'static,
) -> std::io::Result<()> {
    let domain = Arc::clone(domain);
    let guarded = move || {
        operation::guard(&domain, name, || {
            raw::block_signals();
            work(&domain);
        });
    };
    std::thread::Builder::new().name(name.into()).spawn(guarded).map(|_| ())
}
