//! A network interface that sends back what it gets: for tests of devices that the host's kernel
//! emulates (`vhost-net`).

use std::fs;
use std::io;
use std::net::{Ipv6Addr, TcpListener};
use std::path::Path;
use std::thread;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};

use crate::console::mark;
use crate::failure::Failure;
use crate::modules::{self, Loaded};

/// Where Linux lists interfaces.
const INTERFACES: &str = "/sys/class/net";
/// The echo service of RFC 862.
const PORT: u16 = 7;
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;
/// The header of a netlink message, and `struct ifinfomsg`.
const MESSAGE_BYTES: u32 = 16 + 16;

/// Loads the driver, switches all interfaces on (each has an IPv6 address then, made of its hardware
/// address), and answers on the echo port.
pub(crate) fn start() -> Result<(), Failure> {
    for name in modules::NET {
        if modules::load(name)? == Loaded::Absent {
            mark(format_args!("network lacks module={name}"));
        }
    }
    let fail = |e: io::Error| Failure::new("network", e);
    let mut up = Vec::new();
    for entry in fs::read_dir(INTERFACES).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let file = Path::new(INTERFACES).join(&name).join("ifindex");
        let index = fs::read_to_string(file).map_err(fail)?;
        let index = index.trim().parse().map_err(|e| Failure::new("network", e))?;
        switch_on(index).map_err(fail)?;
        up.push(name.to_string_lossy().into_owned());
    }
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).map_err(fail)?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let bytes = stream.and_then(|mut from| io::copy(&mut from.try_clone()?, &mut from));
            match bytes {
                Ok(bytes) => mark(format_args!("echoed bytes={bytes}")),
                Err(e) => mark(format_args!("not echoed: {e}")),
            }
        }
    });
    mark(format_args!("network up interfaces={} port={PORT}", up.join(",")));
    Ok(())
}

/// `ip link set … up`, as a message to the kernel.
fn switch_on(interface: u32) -> io::Result<()> {
    // Without a protocol: NETLINK_ROUTE, which is 0.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &up_message(interface), SendFlags::empty(), &kernel)?;
    let mut answer = [0; 256];
    recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    // The message's header, and an error number that is negative, or 0.
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn up_message(interface: u32) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(MESSAGE_BYTES.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    // Sequence number and port, then family, padding and kind of interface: all of them any.
    message.extend([0; 8 + 4]);
    message.extend(interface.to_ne_bytes());
    // The flags, and which of them are meant.
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_as_long_as_it_says() {
        let message = up_message(7);
        assert_eq!(message.len(), MESSAGE_BYTES as usize);
        assert_eq!(message[..4], MESSAGE_BYTES.to_ne_bytes());
        assert_eq!(message[20..24], 7_u32.to_ne_bytes());
    }

    /// The loopback interface of every machine, which is up already, or may be switched on by root
    /// only; one that does not exist.
    #[test]
    fn the_kernel_understands_it() {
        let loopback = switch_on(1).err().and_then(|e| e.raw_os_error());
        assert!(matches!(loopback, None | Some(1)), "{loopback:?}");
        let none = switch_on(i32::MAX as u32).unwrap_err().raw_os_error();
        assert!(matches!(none, Some(1 | 19)), "EPERM or ENODEV: {none:?}");
    }
}
