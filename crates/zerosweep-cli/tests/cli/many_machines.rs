//! The commands for many machines in `docs/experiments.md`: on a small matrix they give the same
//! results as one machine.

use std::path::Path;
use std::process::Command;

use crate::support::{Place, stderr};
use serde_json::Value;

/// Sizes at which a matrix takes no time.
const SMALL: &str = "--max-mem 64M --target 16M";
/// What the page asks for, and what is enough here.
const REPEAT: (&str, &str) = ("--repeat 20 ", "--repeat 2 ");

/// The blocks of a language in the section "Many machines".
fn blocks(language: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/experiments.md");
    let page = std::fs::read_to_string(page).unwrap();
    let start = page.find("## Many machines").expect("the section is there");
    let section = page[start + 3..].split("\n## ").next().unwrap();
    let fence = format!("```{language}\n");
    let blocks = section.split(&fence).skip(1);
    blocks.map(|block| block[..block.find("```").unwrap()].to_owned()).collect()
}

/// The command in the Job: the text that is folded into one line.
fn job_command(yaml: &str) -> String {
    let mut lines = yaml.lines().skip_while(|line| line.trim() != "- >-");
    let indent = |line: &str| line.len() - line.trim_start().len();
    let start = indent(lines.next().expect("a folded text"));
    let text: Vec<&str> = lines.take_while(|line| indent(line) > start).map(str::trim).collect();
    text.join(" ")
}

/// Runs a documented command with small sizes, `zerosweep` being this one.
fn run(place: &Place, text: &str, variables: &[(&str, &str)]) {
    place.script(
        "zerosweep",
        &format!(
            "case $2 in merge) exec {program} \"$@\" ;; esac\nexec {program} \"$@\" {SMALL}",
            program = env!("CARGO_BIN_EXE_zerosweep")
        ),
    );
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
    let text = text.replace(REPEAT.0, REPEAT.1);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &text]).current_dir(place.path()).env("PATH", path);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{text}\n{}", stderr(&output));
}

/// The runs of a document, in an order that does not depend on who did what.
fn runs(document: &str) -> Vec<String> {
    let document: Value = serde_json::from_str(document).unwrap();
    let mut runs: Vec<String> =
        document["runs"].as_array().unwrap().iter().map(Value::to_string).collect();
    runs.sort();
    runs
}

/// Joins as documented, and compares with a matrix that was not divided.
fn joined_is_whole(place: &Place) {
    let merge = blocks("sh").into_iter().find(|block| block.contains("experiment merge")).unwrap();
    run(place, &merge, &[]);
    let page = std::fs::read_to_string(place.path().join("report.html")).unwrap();
    assert!(page.contains("zerosweep") && page.contains("<svg"));
    let joined = std::fs::read_to_string(place.path().join("all.json")).unwrap();
    let whole = format!("zerosweep experiment {} --json > whole.json", REPEAT.0);
    run(place, &whole, &[]);
    let whole = std::fs::read_to_string(place.path().join("whole.json")).unwrap();
    assert_eq!(runs(&joined).len(), 72);
    assert!(runs(&joined) == runs(&whole), "the joined runs are not those of one machine");
}

#[test]
fn a_slurm_array() {
    let place = Place::new();
    let script = &blocks("sh")[0];
    assert!(script.starts_with("#!/bin/sh\n") && script.contains("#SBATCH --array=0-15\n"));
    assert!(script.contains(REPEAT.0), "{script}");
    for task in ["0", "1", "2"] {
        let variables = [("SLURM_ARRAY_TASK_ID", task), ("SLURM_ARRAY_TASK_COUNT", "3")];
        run(&place, script, &variables);
        // A second run after its end has nothing to do.
        run(&place, script, &variables);
    }
    joined_is_whole(&place);
}

#[test]
fn an_indexed_job() {
    let place = Place::new();
    let yaml = &blocks("yaml")[0];
    let command = job_command(yaml);
    assert!(command.contains(REPEAT.0), "{command}");
    let completions = yaml.lines().find_map(|line| line.trim().strip_prefix("completions: "));
    let completions: u32 = completions.expect("a number of completions").parse().unwrap();
    assert!(command.contains(&format!("--shard \"$JOB_COMPLETION_INDEX/{completions}\"")));
    assert!(yaml.contains("completionMode: Indexed\n") && yaml.contains("mountPath: /shards\n"));
    let claim = |key: &str| yaml.lines().find(|line| line.trim().starts_with(key)).unwrap();
    assert_eq!(claim("claimName:").trim(), "claimName: zerosweep-shards");
    assert!(yaml.contains("\n  name: zerosweep-shards\n"), "the claim is in it");
    // The mounted volume is a directory here.
    let shards = place.path().join("shards");
    std::fs::create_dir(&shards).unwrap();
    let command = command.replace("/shards/", &format!("{}/", shards.display()));
    for index in 0..completions {
        run(&place, &command, &[("JOB_COMPLETION_INDEX", &index.to_string())]);
    }
    joined_is_whole(&place);
}
