//! The program file and the command line of the VMM. Both are checked before anything is started,
//! so that a guest that cannot be managed is refused with the reason.

pub(crate) mod args;
pub(crate) mod elf;
pub(crate) mod host;
pub(crate) mod monitors;
pub(crate) mod options;
pub(crate) mod program;
pub(crate) mod queries;

#[cfg(test)]
mod stacks;
