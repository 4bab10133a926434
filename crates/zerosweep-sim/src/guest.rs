//! A domain on the software machine, as its guest sees it.

use std::fmt;

use zerosweep::{
    BuildError, Config, ConfigError, Domain, Event, Exclusive, Fault, FaultError, Gfn, Host,
    InvalidTouch, Mfn, Order, Session, TargetError,
};

use crate::SoftwareMachine;

/// A touch that had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TouchError {
    /// No frame could be found for the page.
    Exhausted,
    /// The touch could not be served.
    Fault(FaultError),
}

impl fmt::Display for TouchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted => f.write_str("no frame is left, and none can be reclaimed"),
            Self::Fault(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TouchError {}

/// A guest that could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewGuestError {
    /// The configuration of the domain is invalid.
    Config(ConfigError),
    /// Its memory could not be promised.
    Build(BuildError),
    /// Its cache could not be filled.
    Target(TargetError),
}

impl fmt::Display for NewGuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Build(error) => error.fmt(f),
            Self::Target(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NewGuestError {}

/// A guest all of whose memory is PoD at first, with a cache filled to the target.
pub struct SoftwareGuest {
    /// The domain.
    pub domain: Domain,
    /// The machine below it.
    pub machine: SoftwareMachine,
}

impl SoftwareGuest {
    /// A guest of `config.max_pages` on a host with just as many frames as its target.
    ///
    /// # Errors
    /// When the configuration is invalid, or the guest's memory or its cache cannot be set up.
    pub fn new(config: Config) -> Result<Self, NewGuestError> {
        let machine = SoftwareMachine::new(config.target);
        Self::on(machine, config)
    }

    /// A guest on `machine`.
    ///
    /// # Errors
    /// When the configuration is invalid, or the guest's memory or its cache cannot be set up.
    pub fn on(machine: SoftwareMachine, config: Config) -> Result<Self, NewGuestError> {
        let domain = Domain::new(config).map_err(NewGuestError::Config)?;
        let mut guest = Self { domain, machine };
        let mut session = guest.session();
        for (gfn, order) in Order::runs(config.max_pages) {
            session.populate_on_demand(gfn, order).map_err(NewGuestError::Build)?;
        }
        session.set_target(config.target).map_err(NewGuestError::Target)?;
        Ok(guest)
    }

    /// Returns a session, which has the operations on the domain.
    pub fn session(&mut self) -> Session<Exclusive<'_, SoftwareMachine>> {
        self.domain.with(&mut self.machine)
    }

    /// Reads, as the guest, the word at `offset` bytes into the page; a multiple of 8.
    ///
    /// # Errors
    /// When the page has no frame and gets none.
    pub fn read(&mut self, gfn: Gfn, offset: usize) -> Result<u64, TouchError> {
        let mfn = self.touch(gfn)?;
        Ok(self.machine.word(mfn, offset / 8))
    }

    /// Writes, as the guest, the word at `offset` bytes into the page; a multiple of 8.
    ///
    /// # Errors
    /// When the page has no frame and gets none.
    pub fn write(&mut self, gfn: Gfn, offset: usize, value: u64) -> Result<(), TouchError> {
        let mfn = self.touch(gfn)?;
        self.machine.set_word(mfn, offset / 8, value);
        Ok(())
    }

    /// Touches a page, as the guest. If this is a fault, it is served until the page has a frame.
    ///
    /// # Errors
    /// When it gets none.
    ///
    /// A page that was given back may still be mapped (rule [R12]). With
    /// [`InvalidTouch::Increase`] the guest may use such a page again, and no fault shows it.
    /// Otherwise this is an error of the guest's. Hardware would not show it; this machine does.
    ///
    /// [R12]: zerosweep::rules#r12
    pub fn touch(&mut self, gfn: Gfn) -> Result<Mfn, TouchError> {
        touch(&mut Exclusive::new(&mut self.domain, &mut self.machine), gfn)
    }
}

/// A guest, and what happened to it.
pub struct Recorder<'a> {
    /// The guest.
    pub guest: &'a mut SoftwareGuest,
    /// What happened, in order.
    pub events: Vec<Event>,
}

impl<'a> Recorder<'a> {
    /// A recorder to which nothing has happened.
    pub fn new(guest: &'a mut SoftwareGuest) -> Self {
        Self { guest, events: Vec::new() }
    }
}

impl Host for Recorder<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.guest.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        work(&mut self.guest.machine)
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

/// As [`SoftwareGuest::touch`], for a host of any kind with the software machine.
///
/// # Errors
/// See there.
pub fn touch<H: Host<Machine = SoftwareMachine>>(
    host: &mut H,
    gfn: Gfn,
) -> Result<Mfn, TouchError> {
    // There is no clock: every touch may find what the guest has zeroed since the last one.
    host.domain().allow_sweep();
    touch_at_rest(host, gfn)
}

/// As [`touch`], but after a sweep that found nothing, no other one begins until the engine allows
/// it.
///
/// # Errors
/// See there.
pub fn touch_at_rest<H: Host<Machine = SoftwareMachine>>(
    host: &mut H,
    gfn: Gfn,
) -> Result<Mfn, TouchError> {
    loop {
        if let Some((mfn, _)) = host.machine(|machine| machine.translate(gfn)) {
            let domain = host.domain();
            let refuses = domain.invalid_touch() == InvalidTouch::Refuse;
            if refuses && domain.p2m().is_out(gfn) {
                return Err(TouchError::Fault(FaultError::Unmapped));
            }
            return Ok(mfn);
        }
        match Session::new(&mut *host).fault(gfn) {
            Ok(Fault::Exhausted) => return Err(TouchError::Exhausted),
            // With one thread nothing is in transit between two operations.
            Ok(Fault::Present { .. } | Fault::InTransit | Fault::Again) => {}
            Err(error) => return Err(TouchError::Fault(error)),
        }
    }
}
