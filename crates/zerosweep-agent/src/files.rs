//! Files that the VMM opens: some keep guest pages in use without a sign
//! ([`zerosweep_linux::references`]). Nothing here panics.

use zerosweep_linux::references;

use crate::state;

/// The VMM has opened a file, or been handed one. If guest pages may be in use by it without a
/// sign, the cap is lifted before the VMM gets to it. Never panics.
pub(crate) fn on_open(fd: i32) {
    lift_for(|| references::holder(fd));
}

/// Checks all files that the VMM has open, as [`on_open`] does at one.
pub(crate) fn check_all() {
    lift_for(references::find);
}

fn lift_for(find: impl FnOnce() -> Option<references::Holder>) {
    let Some(Ok(memory)) = state::guest() else { return };
    if !memory.is_lifted()
        && let Some(Some(holder)) = memory.guarded("a look at the VMM's files", find)
    {
        memory.lift(&holder.to_string());
    }
}
