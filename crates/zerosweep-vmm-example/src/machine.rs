//! The virtual machine: puts the parts together, and serves the balloon until the guest ends.
//!
//! | thread | does |
//! | --- | --- |
//! | the first | serves the balloon's queues and changes the target; it never waits for a virtual CPU |
//! | `vcpu0`, `vcpu1`, … | run the guest; wait when no frame can be found |
//! | `commands` | reads the standard input, prints figures |
//!
//! The balloon has a thread of its own, and not the virtual CPU that notifies it, because the
//! rings are guest memory too: to write to them may need a frame. A virtual CPU would wait for one,
//! with the pages in its hands that would be the way out.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context as _, Result, ensure};
use kvm_bindings::kvm_pit_config;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::balloon::{Balloon, Role};
use crate::boot::Boot;
use crate::commands::{self, Command};
use crate::devices::{Devices, Ending, Interrupt};
use crate::figures::Figures;
use crate::ram::Ram;
use crate::target::Target;
use crate::vcpu::{self, Vcpus};
use crate::virtio_mmio::{self, VirtioMmio};
use crate::{acpi, layout};

/// What an event is called that is not the notification of a queue.
const WAKE: u64 = u64::MAX;

/// What the other threads tell the first.
enum Message {
    Ended(Result<Ending>),
    /// Another target, in bytes.
    Target(u64),
}

/// Where they leave it.
struct Mailbox {
    sender: Sender<Message>,
    wake: EventFd,
}

impl Mailbox {
    fn post(&self, message: Message) {
        // Both fail only when the machine has ended.
        let _ = self.sender.send(message);
        let _ = self.wake.write(1);
    }
}

/// What a machine is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// What the guest is told that it has, in bytes; a multiple of 2 MiB.
    pub(crate) max_mem: u64,
    /// What it may hold, in bytes; a multiple of 4 KiB.
    pub(crate) target: u64,
    /// How many virtual CPUs.
    pub(crate) vcpus: u8,
    /// Whether the balloon may give pages to a guest that has none left.
    pub(crate) deflate_on_oom: bool,
}

/// A virtual machine before its start.
pub(crate) struct Machine {
    ram: Ram,
    target: Target,
    balloon: Arc<VirtioMmio<Balloon>>,
    /// KVM writes to these when the guest notifies a queue.
    kicks: Vec<EventFd>,
    /// Written to when there is a message, and when the balloon's configuration may have changed.
    wake: EventFd,
    mailbox: Arc<Mailbox>,
    messages: Receiver<Message>,
    devices: Arc<Devices>,
    vcpus: Vec<VcpuFd>,
    vm: VmFd,
}

impl Machine {
    /// Makes memory, a virtual machine and its devices, and loads the kernel.
    ///
    /// # Errors
    /// What cannot be made or loaded.
    pub(crate) fn new(boot: &Boot<'_>, options: &Options) -> Result<Self> {
        let &Options { max_mem, target, vcpus, deflate_on_oom } = options;
        ensure!(vcpus > 0, "--vcpus 0: a machine has at least one");
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm().context("creating a virtual machine")?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)?;
        vm.set_tss_address(layout::KVM_TSS as usize)?;
        vm.create_irq_chip().context("creating the interrupt controllers")?;
        vm.create_pit2(kvm_pit_config::default()).context("creating the timer")?;

        let ram = Ram::new(max_mem, target)?;
        ram.give_to(&vm)?;
        let entry = boot.load(ram.parts())?;
        acpi::write(ram.parts(), vcpus)?;

        let wake = EventFd::new(EFD_NONBLOCK)?;
        let balloon = Balloon::new(deflate_on_oom);
        let target = Target::new(max_mem, target, &balloon);
        let balloon = Arc::new(VirtioMmio::new(balloon, interrupt(&vm, layout::BALLOON_GSI)?));
        let kicks = kicks(&vm)?;
        let serial = Interrupt(interrupt(&vm, layout::SERIAL_GSI)?);
        let devices = Arc::new(Devices::new(serial, &balloon, wake.try_clone()?));

        let mut fds = Vec::new();
        for id in 0..vcpus {
            let vcpu = vm.create_vcpu(id.into()).context("creating a virtual CPU")?;
            vcpu.set_cpuid2(&vcpu::cpuid(&kvm, id, vcpus)?)?;
            fds.push(vcpu);
        }
        vcpu::start_at(&fds[0], entry)?;
        let (vcpus, (sender, messages)) = (fds, channel());
        let mailbox = Arc::new(Mailbox { sender, wake: wake.try_clone()? });
        Ok(Self { ram, target, balloon, kicks, wake, mailbox, messages, devices, vcpus, vm })
    }

    /// Runs the guest to its end. Returns the figures.
    ///
    /// # Errors
    /// A virtual CPU or the balloon cannot go on.
    pub(crate) fn run(mut self) -> Result<Figures> {
        let mailbox = Arc::clone(&self.mailbox);
        let ended = Arc::new(move |ending| mailbox.post(Message::Ended(ending)));
        let fds = std::mem::take(&mut self.vcpus);
        let vcpus = Vcpus::start(fds, self.ram.memory(), &self.devices, &(ended as _))?;
        let mailbox = Arc::clone(&self.mailbox);
        let (memory, balloon) = (Arc::clone(self.ram.memory()), Arc::clone(&self.balloon));
        commands::listen(move |command| match command {
            // Not by the first thread: it must not wait for somebody who does not read.
            Command::Figures => eprintln!("{}", Figures::take(&memory, balloon.device(), None)),
            Command::Target(bytes) => mailbox.post(Message::Target(bytes)),
            Command::Quit => mailbox.post(Message::Ended(Ok(Ending::Asked))),
        })?;

        let ending = self.serve();
        vcpus.stop();
        let (memory, balloon) = (self.ram.memory(), self.balloon.device());
        let figures = ending.map(|ending| Figures::take(memory, balloon, Some(ending)));
        let Self { ram, vm, .. } = self;
        // The virtual machine goes first: its page tables refer to the memory.
        drop(vm);
        ram.memory().stop();
        figures
    }

    /// Serves queues and messages until a virtual CPU says how the machine has ended.
    fn serve(&mut self) -> Result<Ending> {
        let epoll = Epoll::new()?;
        let queues = (0..).zip(&self.kicks);
        for (mark, fd) in queues.chain([(WAKE, &self.wake)]) {
            let event = EpollEvent::new(EventSet::IN, mark);
            epoll.ctl(ControlOperation::Add, std::os::fd::AsRawFd::as_raw_fd(fd), event)?;
        }
        let mut events = [EpollEvent::default(); 8];
        loop {
            let count = match epoll.wait(-1, &mut events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                count => count?,
            };
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        self.wake.read()?;
                        if let Some(ending) = self.messages()? {
                            return Ok(ending);
                        }
                        self.target.follow(self.balloon.device(), self.ram.memory())?;
                    }
                    queue => self.serve_queue(queue as usize)?,
                }
            }
        }
    }

    /// Serves one ring's worth of a queue.
    fn serve_queue(&self, number: usize) -> Result<()> {
        self.kicks[number].read()?;
        let mut queues = self.balloon.queues();
        let Some(queue) = queues.get_mut(number) else { return Ok(()) };
        let role = Role::OF_QUEUE[number];
        match self.balloon.device().serve(role, queue, self.ram.parts(), &self.ram) {
            Ok(true) => {
                drop(queues);
                self.balloon.tell_used()?;
                // There may be more by now; the other queues and the messages come first.
                self.kicks[number].write(1)?;
            }
            Ok(false) => {}
            Err(error) => {
                eprintln!("the balloon's queue {number} makes no sense: {error}");
                self.balloon.ask_for_reset(queues)?;
            }
        }
        Ok(())
    }

    /// Does what the messages say. Returns how the machine has ended, if it has.
    fn messages(&mut self) -> Result<Option<Ending>> {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Ended(ending) => return ending.map(Some),
                Message::Target(bytes) => {
                    let balloon = self.balloon.device();
                    self.target.want(bytes, balloon, self.ram.memory())?;
                    self.balloon.tell_config()?;
                }
            }
        }
        Ok(None)
    }
}

/// An interrupt that is raised when the descriptor is written to.
fn interrupt(vm: &VmFd, gsi: u32) -> Result<EventFd> {
    let fd = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&fd, gsi).context("registering an interrupt")?;
    Ok(fd)
}

/// Descriptors that KVM writes to when the guest notifies a queue; no virtual CPU stops for it.
fn kicks(vm: &VmFd) -> Result<Vec<EventFd>> {
    let address = IoEventAddress::Mmio(layout::BALLOON + virtio_mmio::NOTIFY);
    let kick = |queue: u32| {
        let fd = EventFd::new(EFD_NONBLOCK)?;
        vm.register_ioevent(&fd, &address, queue).context("registering a notification")?;
        Ok(fd)
    };
    (0..).take(Role::OF_QUEUE.len()).map(kick).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::boot::tests::{Files, kernel};

    const MIB: u64 = 1 << 20;

    /// Runs code at the kernel's entry, on a machine of 64 MiB that may hold 16. Returns the figures.
    fn run(name: &str, code: &[u8], vcpus: u8) -> Value {
        let files = Files::new(name, &kernel(code), &[0x77; 5000]);
        let options = Options { max_mem: 64 * MIB, target: 16 * MIB, vcpus, deflate_on_oom: false };
        let machine = files.boot(|boot| Machine::new(boot, &options)).unwrap();
        serde_json::from_str(&machine.run().unwrap().to_string()).unwrap()
    }

    /// `mov dx, PORT; mov al, VALUE; out dx, al; hlt`.
    fn out(port: u16, value: u8) -> [u8; 8] {
        let [low, high] = port.to_le_bytes();
        [0x66, 0xba, low, high, 0xb0, value, 0xee, 0xf4]
    }

    #[test]
    #[ignore = "needs userfaultfd, KVM"]
    fn a_guest_that_writes_to_all_of_its_memory_powers_off() {
        // mov ebx, 0x400000; 1: mov byte [rbx], 0; add rbx, 0x1000; cmp rbx, 0x3e00000; jb 1b
        let mut code = vec![0xbb, 0, 0, 0x40, 0, 0xc6, 0x03, 0, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0];
        code.extend([0x48, 0x81, 0xfb, 0, 0, 0xe0, 0x03, 0x72, 0xed]);
        code.extend(out(layout::SLEEP, layout::SLEEP_OFF));
        for vcpus in [1, 3] {
            let figures = run("off", &code, vcpus);
            let figure = |name: &str| figures[name].as_u64().unwrap();
            assert_eq!(figures["ended"], "power-off", "{figures}");
            assert_eq!((&figures["audit"], &figures["lifted"]), (&"ok".into(), &Value::Null));
            assert!(figure("superpages_reclaimed") >= 20, "{figures}");
            assert!(figure("held_at_most") <= 16 * MIB, "{figures}");
            assert_eq!(figures["superpages_in_guest"], figures["superpages_in_page_tables"]);
            assert_eq!((figure("borrowed"), figure("target")), (0, 16 * MIB));
        }
    }

    #[test]
    #[ignore = "needs userfaultfd, KVM"]
    fn a_guest_that_resets_ends() {
        let figures = run("reset", &out(layout::RESET, layout::RESET_VALUE), 2);
        assert_eq!(figures["ended"], "reset");
        // An invalid instruction, and no handler.
        let figures = run("fault", &[0x0f, 0x0b], 1);
        assert_eq!(figures["ended"], "triple-fault");
    }
}
