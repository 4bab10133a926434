//! A network device whose queues the host's kernel serves: it writes to guest memory, and reads it,
//! on a thread that is neither a virtual CPU nor QEMU's.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddrV6, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::harness::{Guest, MEBIBYTE, PATIENCE, Place, Spec, stderr, value, wait_until};

const HARDWARE_ADDRESS: &str = "52:54:00:12:34:56";
/// What a kernel makes of it (RFC 4291, modified EUI-64).
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
/// What is sent, and comes back, in each round.
const ROUND_BYTES: usize = 8 << 20;
/// The longest wait for the network.
const SILENCE: Duration = Duration::from_secs(60);
const APPEND: &str = "init_on_free=1 zs.net=1 zs.fill=64M zs.scrub=1 zs.stir=64M zs.clump=256K \
                      zs.first=60 zs.settle=240 zs.end=idle";

/// All that the guest sends back is right, while it boots, scrubs, balloons, and stirs its memory.
#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd, root, vhost-net"]
fn what_the_kernel_sends_and_receives_for_a_guest_is_right() {
    println!();
    let place = Place::new();
    let interface = format!("zs{}", std::process::id());
    let backend = format!("tap,id=n,ifname={interface},script=no,downscript=no,vhost=on");
    let device = format!("virtio-net-pci,netdev=n,mac={HARDWARE_ADDRESS}");
    let qemu = ["-netdev", &backend, "-device", &device];
    let guest = Guest::managed(&place, &Spec { qemu: &qemu, append: APPEND, ..Spec::default() });
    let network = guest.marker("network up ");
    assert!(network.text.contains("eth0"), "{}: has the image virtio_net?", network.text);
    let output = Command::new("ip").args(["link", "set", &interface, "up"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).unwrap();
    let peer = SocketAddrV6::new(ADDRESS, 7, 0, index.trim().parse().unwrap());
    let mut rounds = 0;
    let mut settled = false;
    // Some while it balloons, and one when it is idle.
    while !settled {
        settled = guest.console.has("done ok");
        let stream = wait_until("the guest takes a connection", PATIENCE, || {
            TcpStream::connect_timeout(&peer.into(), Duration::from_secs(5)).ok()
        });
        if let Err(error) = comes_back(stream, rounds) {
            guest.fail(&format!("round {rounds}: {error}"));
        }
        rounds += 1;
    }
    let alive = guest.marker_from(guest.console.len(), "alive ");
    assert_eq!(value(&alive, "bad"), 0.0);
    let status = guest.status();
    println!(
        "  {rounds} rounds of {} MiB there and back; {} faults, peak {} of {} pages",
        ROUND_BYTES as u64 / MEBIBYTE,
        status.counters.faults,
        status.counters.engine.peak_total,
        status.pages.target
    );
    if status.counters.engine.peak_total > status.pages.target || status.borrowed_pages != 0 {
        guest.fail("it is within its target, and nothing is borrowed");
    }
    assert!(place.output(["audit", "vm"]).status.success());
}

/// Sends a pattern of its own in each round, and compares what comes back.
fn comes_back(mut stream: TcpStream, round: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let sent: Vec<u8> = (0..ROUND_BYTES as u64 / 8)
        .flat_map(|word| (word ^ round << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    let mut received = Vec::new();
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            writer.write_all(&sent)?;
            writer.shutdown(Shutdown::Write)
        });
        let result = stream.read_to_end(&mut received);
        sending.join().map_err(|_| io::Error::other("the sender panicked"))??;
        result
    })?;
    if received == sent {
        return Ok(());
    }
    let at = sent.iter().zip(&received).position(|(sent, received)| sent != received);
    Err(io::Error::other(format!(
        "{} bytes came back of {}; the first wrong one is {at:?}",
        received.len(),
        sent.len()
    )))
}
