//! The cost model: measured with `--calibrate`, read with `--costs`.

use std::path::Path;
use std::process::ExitCode;

use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_lab::calibrate::calibrate;
use zerosweep_lab::cost::CostModel;

use super::documents::Destination;
use crate::cli::ExperimentArguments;

/// Measures this machine, prints the model and saves it with `--out`.
pub(super) fn execute(arguments: &ExperimentArguments) -> Result<ExitCode, Failure> {
    let out = arguments.out.as_ref().map(|path| Destination::new(path)).transpose()?;
    let costs = calibrate().map_err(|error| {
        Failure::work(format!("{error:#}; `zerosweep doctor` says what this machine allows"))
    })?;
    if let Some(out) = out {
        let json = serde_json::to_string_pretty(&costs)
            .map_err(|error| Failure::work(format!("cannot write JSON: {error}")))?;
        out.write(&(json + "\n"))?;
    }
    if arguments.json {
        output::json(&costs)?;
    } else {
        output::text(&table(&costs))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The model in a file.
pub(super) fn read(path: &Path) -> Result<CostModel, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
    let costs: CostModel = serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("{name} is not a cost model that --calibrate wrote: {error}"))
    })?;
    let all = [
        costs.fault_ns,
        costs.map_4k_ns,
        costs.flush_ns,
        costs.scanned_byte_ns,
        costs.cleared_byte_ns,
    ];
    if all.iter().any(|cost| !cost.is_finite() || *cost < 0.0) {
        return Err(Failure::usage(format!("{name}: a cost is negative or not a number")));
    }
    Ok(costs)
}

fn table(costs: &CostModel) -> String {
    let row =
        |what: &str, ns: f64, built_in: f64| format!("{what:34} {ns:>10.3} {built_in:>10.3}\n");
    let ours = CostModel::default();
    [
        format!("{:34} {:>10} {:>10}\n", "cost in ns, measured here", "here", "built in"),
        row("fault", costs.fault_ns, ours.fault_ns),
        row("mapping a 4 KiB page, on top", costs.map_4k_ns, ours.map_4k_ns),
        row("taking a mapping away, and flush", costs.flush_ns, ours.flush_ns),
        row("scanning a byte", costs.scanned_byte_ns, ours.scanned_byte_ns),
        row("clearing a byte", costs.cleared_byte_ns, ours.cleared_byte_ns),
        "\n--out FILE saves it; experiment --costs FILE uses it\n".to_owned(),
    ]
    .concat()
}
