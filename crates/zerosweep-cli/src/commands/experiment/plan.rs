//! Makes the list of runs from the arguments, and reports every error in them.

use std::fmt::Display;
use std::str::FromStr;

use zerosweep_client::error::Failure;
use zerosweep_client::size::Size;
use zerosweep_lab::cost::CostModel;
use zerosweep_lab::guest::{Guest, parse_list};
use zerosweep_lab::host::{HostFacts, available_bytes};
use zerosweep_lab::matrix::{Matrix, POLICIES, Stage};
use zerosweep_lab::real_guest::{RealGuest, Rival};

use super::costs;
use crate::cli::{ExperimentArguments, Machine};

/// Sizes when none are given: what the guest is told, and what it may hold.
const OF_MODELS: (Size, Size) = (Size(4 << 30), Size(1 << 30));
const OF_REAL_GUESTS: (Size, Size) = (Size(2 << 30), Size(768 << 20));
/// A kernel, its initramfs and the balloon driver need some room.
const LEAST_OF_REAL_GUESTS: (Size, Size) = (Size(512 << 20), Size(128 << 20));

/// Guest models on the software machine or on real memory.
pub(super) fn models(arguments: &ExperimentArguments) -> Result<Matrix, Failure> {
    if let Some(name) = split(&arguments.guest).find(|name| name.parse::<RealGuest>().is_ok()) {
        return Err(Failure::usage(format!(
            "guest {name} is a real Linux under QEMU: it needs --machine qemu"
        )));
    }
    if split(&arguments.policy).any(|name| name == Rival::PLAIN) {
        return Err(Failure::usage(
            "policy plain is QEMU without zerosweep: it needs --machine qemu",
        ));
    }
    let guests = parse_list(&arguments.guest).map_err(Failure::usage)?;
    let policies = list(&arguments.policy, &POLICIES)
        .map_err(|(name, error)| Failure::usage(format!("policy {name:?}: {error}, and all")))?;
    matrix(arguments, guests, policies, OF_MODELS)
}

/// Real guests under QEMU.
pub(super) fn real_guests(
    arguments: &ExperimentArguments,
) -> Result<Matrix<RealGuest, Rival>, Failure> {
    let is_model = |name: &&str| name.parse::<Guest>().is_ok();
    if let Some(name) = split(&arguments.guest).find(is_model) {
        return Err(Failure::usage(format!(
            "guest {name} is a model: it runs on --machine software or linux; under QEMU there are \
             qemu-linux, qemu-linux-scrub, qemu-churn, and all"
        )));
    }
    let guests =
        list(&arguments.guest, &RealGuest::ALL).map_err(|(_, error)| Failure::usage(error))?;
    let policies = list(&arguments.policy, &Rival::all())
        .map_err(|(_, error)| Failure::usage(format!("policy {error}, and all")))?;
    let matrix = matrix(arguments, guests, policies, OF_REAL_GUESTS)?;
    let (max_mem, target) = LEAST_OF_REAL_GUESTS;
    if matrix.max_mem_bytes < max_mem.0 || matrix.target_bytes < target.0 {
        return Err(Failure::usage(format!(
            "a real guest needs --max-mem {max_mem} and --target {target} at least"
        )));
    }
    Ok(matrix)
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

/// A list with commas between, without repeats; the first name that is none, with the reason.
fn list<T>(text: &str, all: &[T]) -> Result<Vec<T>, (String, String)>
where
    T: Copy + FromStr<Err: Display>,
{
    let mut items = Vec::new();
    for name in split(text) {
        match name {
            "all" => items.extend_from_slice(all),
            name => {
                let wrong = |error: T::Err| (name.to_owned(), error.to_string());
                items.push(name.parse().map_err(wrong)?);
            }
        }
    }
    Ok(items)
}

fn matrix<G: Clone + PartialEq, P: Clone + PartialEq>(
    arguments: &ExperimentArguments,
    guests: Vec<G>,
    policies: Vec<P>,
    sizes: (Size, Size),
) -> Result<Matrix<G, P>, Failure> {
    let max_mem = arguments.max_mem.unwrap_or(sizes.0);
    let target = arguments.target.unwrap_or(sizes.1);
    if !max_mem.is_whole_pages() || !target.is_whole_pages() {
        return Err(Failure::usage(format!(
            "--max-mem {max_mem} and --target {target} must be multiples of 4K"
        )));
    }
    if target.0 == 0 || target > max_mem {
        return Err(Failure::usage(format!(
            "invalid --target {target}: it must be above 0 and at most --max-mem ({max_mem})"
        )));
    }
    Ok(Matrix {
        guests: without_repeats(&guests),
        policies: without_repeats(&policies),
        stage: arguments.machine.into(),
        max_mem_bytes: max_mem.0,
        target_bytes: target.0,
        vcpus: arguments.vcpus,
        seed: arguments.seed,
        repeat: arguments.repeat,
        costs: match &arguments.costs {
            Some(path) => costs::read(path)?,
            None => CostModel::default(),
        },
        events: arguments.events.clone(),
        timeline: arguments.machine != Machine::Qemu
            && [&arguments.report, &arguments.out, &arguments.resume].iter().any(|f| f.is_some()),
    })
}

fn without_repeats<T: Clone + PartialEq>(items: &[T]) -> Vec<T> {
    let mut once: Vec<T> = Vec::new();
    for item in items {
        if !once.contains(item) {
            once.push(item.clone());
        }
    }
    once
}

/// How many runs at a time; an error if there is no memory for one of `bytes`.
pub(super) fn jobs<G: Clone + Display, P: Copy + Display>(
    arguments: &ExperimentArguments,
    matrix: &Matrix<G, P>,
    host: &HostFacts,
) -> Result<usize, Failure> {
    let one = matrix.bytes_per_run();
    let available = available_bytes().unwrap_or(host.memory_bytes);
    if one > available {
        return Err(Failure::usage(format!(
            "a guest with --max-mem {} and --target {} takes {} here, and this machine has {} \
             available",
            Size(matrix.max_mem_bytes),
            Size(matrix.target_bytes),
            Size(one).rounded(),
            Size(available).rounded()
        )));
    }
    if matrix.stage != Stage::Software {
        return Ok(1);
    }
    let wanted = arguments.jobs.unwrap_or(host.cpus.max(1)) as usize;
    Ok(wanted.min((available / one) as usize).max(1))
}
