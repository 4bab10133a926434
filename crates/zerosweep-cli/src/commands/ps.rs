//! `zerosweep ps`: the running guests of this user, and those that services started where this
//! user may see them.

use std::process::ExitCode;

use zerosweep_client::agent::{Client, ClientError};
use zerosweep_client::error::Failure;
use zerosweep_client::list::{Guest, List};
use zerosweep_client::output;
use zerosweep_client::runtime::{self, GuestFiles, HELLO_TIMEOUT};
use zerosweep_client::size::{Size, pages, signed_pages};
use zerosweep_wire::{Operation, Status, runtime as wire};

use crate::cli::ListArguments;
use crate::commands::status::state_word;

/// Longest name in the table; `--json` has them whole.
const NAME_COLUMNS: usize = 18;

/// Prints all guests and removes what dead ones left.
pub(super) fn execute(arguments: &ListArguments) -> Result<ExitCode, Failure> {
    let mut guests = Vec::new();
    for (name, files) in runtime::every_guest()? {
        match ask(&files) {
            Ok((status, agent_uid)) => {
                guests.push(Guest { name, status: Some(status), error: None, agent_uid });
            }
            Err(error) if error.is_nobody_there() => runtime::remove_stale(&files),
            Err(error) => {
                let error = Some(error.to_string());
                guests.push(Guest { name, status: None, error, agent_uid: None });
            }
        }
    }
    wire::directories().iter().for_each(|directory| runtime::remove_free_locks(directory));
    if arguments.json {
        output::json(&List::new(guests))?
    } else {
        output::text(&render(&guests))?
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(files: &GuestFiles) -> Result<(Status, Option<u32>), ClientError> {
    let mut client = Client::connect(&files.socket, HELLO_TIMEOUT)?;
    Ok((client.request(Operation::Status)?, client.other_user()))
}

/// The table, at most 80 columns wide.
fn render(guests: &[Guest]) -> String {
    let width =
        guests.iter().map(|guest| guest.name.len()).max().unwrap_or(0).clamp(4, NAME_COLUMNS);
    let mut table = format!(
        "{:width$} {:>7} {:10} {:20} {:>6} {:>6} {:>6}\n",
        "NAME", "PID", "STATE", "POLICY", "TARGET", "HELD", "OWED"
    );
    for guest in guests {
        let name = shortened(&guest.name);
        match (&guest.status, &guest.error) {
            (Some(status), _) => {
                table += &format!(
                    "{name:width$} {:>7} {:10} {:20} {:>6} {:>6} {:>6}\n",
                    status.pid,
                    state_word(status.state),
                    status.policy,
                    Size(status.target_bytes).rounded(),
                    pages(status.pages.total),
                    signed_pages(status.pages.owed),
                )
            }
            (None, error) => {
                let error = error.as_deref().unwrap_or("does not answer");
                table += &format!("{name:width$} {error}\n");
            }
        }
    }
    for guest in guests {
        if let Some(user) = guest.agent_uid {
            table += &format!("{}: {}\n", guest.name, by_the_word_of(user));
        }
    }
    table
}

/// Says whose figures a guest's are.
pub(super) fn by_the_word_of(user: u32) -> String {
    format!("what the agent of user {user} says")
}

fn shortened(name: &str) -> String {
    if name.len() > NAME_COLUMNS {
        format!("{}…", name.chars().take(NAME_COLUMNS - 1).collect::<String>())
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerosweep_client::test_support::sample_status;

    #[test]
    fn the_table_fits_on_80_columns() {
        let name = "a-guest-with-a-very-long-name-48-bytes-at-longest";
        let status = Some(sample_status(name));
        let long = Guest { name: name.into(), status, error: None, agent_uid: None };
        let error = Some("no answer".into());
        let short = Guest { name: "vm".into(), status: None, error, agent_uid: None };
        let table = render(&[long, short]);
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(table.contains("a-guest-with-a-ve… 4194303 managing   rfc-2011:gate=always"));
        assert!(table.contains("vm                 no answer"), "{table}");
    }

    #[test]
    fn an_empty_table_has_its_heading() {
        assert_eq!(render(&[]).lines().count(), 1);
    }
}
