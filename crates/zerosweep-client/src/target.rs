//! Sets what a guest may hold: the engine's target first, so that nothing more is given out beyond
//! it, then the balloon's, as `xl mem-set` does.

use std::time::Duration;

use zerosweep_wire::{Operation, Status};

use crate::agent::{Client, ClientError};
use crate::error::Failure;
use crate::qmp::{Qmp, QmpError};
use crate::runtime::GuestFiles;
use crate::size::Size;

/// Longest wait for one answer of QEMU.
const QMP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a target was not set, or not by both.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Invalid target. Nothing was changed.
    #[error(
        "invalid target {size} for guest {name}: a target is above 0, at most {max}, and a multiple \
         of 4K"
    )]
    Value {
        /// The guest.
        name: String,
        /// What was asked for.
        size: Size,
        /// The guest's memory.
        max: Size,
    },
    /// The agent did not set it. As far as is known, nothing was changed.
    #[error("guest {name}: {error}")]
    Agent {
        /// The guest.
        name: String,
        /// The agent's refusal, or why there is no answer.
        error: ClientError,
    },
    /// The engine has the target; QEMU did not pass it to the balloon.
    #[error(
        "guest {name} has the target {size} now, but its balloon cannot be asked to follow: {error}"
    )]
    Balloon {
        /// The guest.
        name: String,
        /// Its target now.
        size: Size,
        /// QEMU's refusal, or why there is no answer.
        error: QmpError,
    },
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Value { .. } => Self::usage(error),
            TargetError::Agent { .. } | TargetError::Balloon { .. } => Self::work(error),
        }
    }
}

/// A target that engine and balloon have.
#[derive(Debug)]
pub struct Change {
    /// The guest's figures after it.
    pub after: Status,
    /// The connection to QEMU that set the balloon.
    pub qmp: Qmp,
}

/// Sets the target of the guest `name`: the engine's, then its balloon's.
///
/// # Errors
/// Each error says what was changed before it.
pub fn set(
    client: &mut Client,
    files: &GuestFiles,
    name: &str,
    size: Size,
) -> Result<Change, TargetError> {
    let agent = |error| TargetError::Agent { name: name.to_owned(), error };
    let before = client.request(Operation::Status).map_err(agent)?;
    let max = Size(before.max_mem_bytes);
    if !size.is_whole_pages() || size.0 == 0 || size > max {
        return Err(TargetError::Value { name: name.to_owned(), size, max });
    }
    let set = Operation::SetTarget { target_bytes: size.0 };
    let after = client.request(set).map_err(agent)?;
    let qmp = Qmp::connect(&files.qmp, QMP_TIMEOUT)
        .and_then(|mut qmp| {
            qmp.set_balloon(size.0)?;
            Ok(qmp)
        })
        .map_err(|error| TargetError::Balloon { name: name.to_owned(), size, error })?;
    Ok(Change { after, qmp })
}
