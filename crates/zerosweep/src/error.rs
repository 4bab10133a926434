//! Errors that several modules return.

/// There is no memory for the engine's tables. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTableMemory;

impl core::fmt::Display for OutOfTableMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no memory for the engine's own tables")
    }
}

impl core::error::Error for OutOfTableMemory {}
