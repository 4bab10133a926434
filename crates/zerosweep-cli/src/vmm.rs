//! The VMM that is to be run: its program file and its command line, understood before anything
//! is started, so that what cannot work is refused with the reason.

pub(crate) mod args;
pub(crate) mod elf;
pub(crate) mod host;
pub(crate) mod monitors;
pub(crate) mod options;
pub(crate) mod program;
pub(crate) mod queries;
