//! A server under test, and requests to it with whatever headers a test wishes for.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, reason = "shared by several test programs")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A `zerosweep serve --json`; dropping it kills it.
pub struct Serve {
    pub child: Child,
    pub address: String,
    pub url: String,
    /// Empty when it was not told.
    pub token: String,
    /// What it said on standard output.
    pub said: String,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub text: String,
    /// Null when it is not JSON.
    pub json: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Serve {
    /// Starts it and waits until it says where it is.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        while !said.ends_with("}\n") && reader.read_line(&mut said).unwrap() > 0 {}
        let document: Value = serde_json::from_str(&said).unwrap_or_else(|error| {
            let mut why = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut why);
            panic!("{error}: {said}{why}")
        });
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        Self { child, address: text("address"), url: text("url"), token: text("token"), said }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    /// With the token; `Null` has no body.
    pub fn change(&self, path: &str, body: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let with = ("authorization", bearer.as_str());
        match body {
            Value::Null => self.send("POST", path, &[with], ""),
            body => {
                let json = ("content-type", "application/json");
                self.send("POST", path, &[with, json], &body.to_string())
            }
        }
    }

    /// `Host` is the address unless a header says otherwise.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = self.request(method, path, headers, body);
        let (status, headers) = read_head(&mut stream);
        let mut text = String::new();
        let length = headers.get("content-length").map(|length| length.parse::<u64>().unwrap());
        stream.take(length.unwrap_or(u64::MAX)).read_to_string(&mut text).unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status, headers, text, json }
    }

    /// Opens a stream of events.
    pub fn events(&self, path: &str) -> Events {
        Events { stream: self.request("GET", path, &[], ""), status: None }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_head(stream: &mut BufReader<TcpStream>) -> (u16, BTreeMap<String, String>) {
    let mut lines = stream.lines().map(|line| line.unwrap());
    let first = lines.next().expect("the server answers");
    let status = first.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.take_while(|line| !line.is_empty()).map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    (status, headers.collect())
}

/// Server-sent events; the chunks' sizes between their lines are skipped.
pub struct Events {
    stream: BufReader<TcpStream>,
    status: Option<u16>,
}

impl Events {
    pub fn status(&mut self) -> u16 {
        *self.status.get_or_insert_with(|| read_head(&mut self.stream).0)
    }

    /// The data of the next event of that name.
    pub fn next_event(&mut self, name: &str) -> Value {
        assert_eq!(self.status(), 200);
        let wanted = format!("event: {name}");
        let mut is_wanted = false;
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "the stream has ended");
            let line = line.trim_end();
            if let Some(data) = line.strip_prefix("data: ").filter(|_| is_wanted) {
                return serde_json::from_str(data).unwrap();
            }
            if line.starts_with("event: ") {
                is_wanted = line == wanted;
            }
        }
    }
}
