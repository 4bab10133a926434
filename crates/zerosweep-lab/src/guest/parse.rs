//! Guests by name: `linux`, `scrub:dirty_percent=5,clustered`, `all`.

use std::str::FromStr;

use super::{Guest, Hostile, Linux, Model, Scrub, Windows};

/// The guests of `all`.
const ALL: [&str; 6] =
    ["linux", "linux-scrub", "windows", "scrub:dirty_percent=5,clustered", "churn", "hostile"];

/// A guest that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// No guest has that name.
    #[error(
        "unknown guest {0:?}; there are linux, linux-scrub, windows, scrub, churn, hostile, and all"
    )]
    Name(String),
    /// The guest has no such parameter.
    #[error("guest {guest} has no parameter {parameter:?}; it has {known}")]
    Parameter {
        /// The guest.
        guest: String,
        /// What was given.
        parameter: String,
        /// What there is.
        known: &'static str,
    },
    /// The parameter cannot have that value.
    #[error("guest {guest}: {parameter:?} is not a number from 0 to {most}")]
    Value {
        /// The guest.
        guest: String,
        /// What was given.
        parameter: String,
        /// The largest possible value.
        most: u64,
    },
}

/// Reads guests with commas between them. A parameter belongs to the guest before it.
///
/// # Errors
/// The first invalid guest or parameter.
pub fn parse_list(text: &str) -> Result<Vec<Guest>, GuestError> {
    let mut written: Vec<String> = Vec::new();
    for part in text.split(',') {
        let name = part.split(':').next().unwrap_or_default().trim();
        match written.last_mut() {
            Some(last) if last.contains(':') && !is_guest(name) => {
                last.push(',');
                last.push_str(part);
            }
            _ => written.push(part.to_owned()),
        }
    }
    let mut guests = Vec::new();
    for text in written {
        match text.trim() {
            "all" => {
                for name in ALL {
                    guests.push(name.parse()?);
                }
            }
            text => guests.push(text.parse()?),
        }
    }
    Ok(guests)
}

fn is_guest(name: &str) -> bool {
    name == "all" || default_model(name).is_some()
}

fn default_model(name: &str) -> Option<Model> {
    Some(match name {
        "linux" => Model::Linux(Linux::PLAIN),
        "linux-scrub" => Model::Linux(Linux::SCRUB),
        "churn" => Model::Linux(Linux::CHURN),
        "windows" => Model::Windows(Windows::default()),
        "scrub" => Model::Scrub(Scrub::default()),
        "hostile" => Model::Hostile(Hostile::default()),
        _ => return None,
    })
}

impl FromStr for Guest {
    type Err = GuestError;

    fn from_str(text: &str) -> Result<Self, GuestError> {
        let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
        let unknown = || GuestError::Name(name.to_owned());
        let mut model = default_model(name).ok_or_else(unknown)?;
        for parameter in parameters.split(',').filter(|_| text.contains(':')) {
            set(name, &mut model, parameter)?;
        }
        Ok(Self { name: text.to_owned(), model })
    }
}

/// Changes one parameter.
fn set(guest: &str, model: &mut Model, parameter: &str) -> Result<(), GuestError> {
    let (key, value) = parameter.split_once('=').map_or((parameter, None), |(k, v)| (k, Some(v)));
    let number = |most: u64| {
        let number = value.and_then(|value| value.parse().ok()).filter(|&number| number <= most);
        let (guest, parameter) = (guest.to_owned(), parameter.to_owned());
        number.ok_or(GuestError::Value { guest, parameter, most })
    };
    let known = match (model, key, value) {
        (Model::Scrub(scrub), "clustered", None) => {
            scrub.clustered = true;
            return Ok(());
        }
        (Model::Linux(linux), "init_on_free", None) => {
            linux.init_on_free = true;
            return Ok(());
        }
        (model, key, _) => match number_of(model, key) {
            Ok((setting, most)) => {
                *setting = number(most)?;
                return Ok(());
            }
            Err(known) => known,
        },
    };
    Err(GuestError::Parameter { guest: guest.to_owned(), parameter: parameter.to_owned(), known })
}

/// A parameter that is a number, and its largest value; or what parameters there are.
fn number_of<'a>(model: &'a mut Model, key: &str) -> Result<(&'a mut u64, u64), &'static str> {
    match (model, key) {
        (Model::Scrub(scrub), "dirty_percent") => Ok((&mut scrub.dirty_percent, 100)),
        (Model::Scrub(_), _) => Err("dirty_percent=N and clustered"),
        (Model::Windows(windows), "dirty_percent") => Ok((&mut windows.dirty_percent, 100)),
        (Model::Windows(_), _) => Err("dirty_percent=N"),
        (Model::Hostile(hostile), "moves") => Ok((&mut hostile.moves, 64)),
        (Model::Hostile(hostile), "deep") => Ok((&mut hostile.deep, 1 << 20)),
        (Model::Hostile(_), _) => Err("moves=N and deep=N"),
        (Model::Linux(linux), "user_percent") => Ok((&mut linux.user_percent, 100)),
        (Model::Linux(Linux { fill_percent: Some(percent), .. }), "fill_percent") => {
            Ok((percent, 100))
        }
        (Model::Linux(Linux { fill_percent: Some(_), .. }), _) => {
            Err("user_percent=N, fill_percent=N and init_on_free")
        }
        (Model::Linux(_), _) => Err("user_percent=N and init_on_free"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_stay_with_their_guest() {
        let guests = parse_list("linux,scrub:dirty_percent=5,clustered,hostile:moves=2").unwrap();
        let names: Vec<&str> = guests.iter().map(Guest::name).collect();
        assert_eq!(names, ["linux", "scrub:dirty_percent=5,clustered", "hostile:moves=2"]);
        let scrub = Model::Scrub(Scrub { dirty_percent: 5, clustered: true });
        assert_eq!(guests[1].model(), scrub);
        assert_eq!(guests[2].model(), Model::Hostile(Hostile { moves: 2, deep: 8 }));
    }

    #[test]
    fn all_are_six() {
        assert_eq!(parse_list("all").unwrap().len(), 6);
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (text, part) in [
            ("", "unknown guest \"\""),
            ("beos", "unknown guest \"beos\"; there are linux"),
            ("linux,,churn", "unknown guest \"\""),
            ("scrub:", "no parameter \"\"; it has dirty_percent=N"),
            ("scrub:dirty_percent=101", "not a number from 0 to 100"),
            ("scrub:dirty_percent", "not a number from 0 to 100"),
            ("scrub:clustered=1", "no parameter \"clustered=1\""),
            ("linux:fill_percent=3", "it has user_percent=N and init_on_free"),
            ("windows:dirty_percent=-1", "not a number"),
        ] {
            let message = parse_list(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
