//! Whether memory that the VMM mapped can be managed, from /proc/self/smaps.
//!
//! Reading smaps walks the page tables of the whole process and allocates: do it when guest RAM is
//! adopted, not on a fault thread.
//!
//! Source: proc_pid_smaps(5), the two-letter flags of `VmFlags`.

use crate::addr::HostAddr;
use crate::error::{Parenthesised, Unsuitable};

/// One mapping of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// The first address.
    pub start: HostAddr,
    /// The address behind the last.
    pub end: HostAddr,
    /// As the kernel writes it, e.g. `rw-p`.
    pub permissions: String,
    /// The inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// The file, or a name in brackets, or nothing.
    pub path: String,
    /// Two-letter flags with a space between, e.g. `rd wr mr mw me dc ac hg`.
    pub flags: String,
}

impl Vma {
    /// Returns whether the two-letter flag `flag` is set.
    #[must_use]
    pub fn has(&self, flag: &str) -> bool {
        self.flags.split_ascii_whitespace().any(|set| set == flag)
    }

    /// Checks that it can be managed.
    ///
    /// # Errors
    /// The first reason why not, with what to do.
    pub fn check(&self) -> Result<(), Unsuitable> {
        let at = self.start;
        let path = || Parenthesised::new(&self.path);
        if self.has("ht") {
            return Err(Unsuitable::Hugetlb { at, path: path() });
        }
        let shared = self.permissions.ends_with('s') || self.has("sh");
        let anonymous_shared = self.path.starts_with("/dev/zero") || self.path.starts_with("/SYSV");
        if shared && (self.inode == 0 || anonymous_shared) {
            return Err(Unsuitable::Shared { at, path: path() });
        }
        if shared || self.inode != 0 {
            return Err(Unsuitable::FileBacked { at, path: path() });
        }
        if !self.permissions.starts_with("rw") {
            return Err(Unsuitable::NotWritable { at, permissions: self.permissions.clone() });
        }
        if self.has("lo") {
            return Err(Unsuitable::Locked { at });
        }
        if self.has("mg") {
            return Err(Unsuitable::Mergeable { at });
        }
        if ["um", "uw", "ui"].iter().any(|flag| self.has(flag)) {
            return Err(Unsuitable::Watched { at });
        }
        Ok(())
    }
}

/// Returns the mappings that `bytes` bytes from `start` on reach into, in the order of addresses.
///
/// # Errors
/// [`Unsuitable::Unreadable`], or [`Unsuitable::NotMapped`] when there is a gap.
pub fn inspect(start: HostAddr, bytes: u64) -> Result<Vec<Vma>, Unsuitable> {
    let unreadable = |error: std::io::Error| Unsuitable::Unreadable { why: error.to_string() };
    let text = std::fs::read("/proc/self/smaps").map_err(unreadable)?;
    covering(parse(&String::from_utf8_lossy(&text))?, start, bytes)
}

/// Checks that all of `bytes` bytes from `start` on can be managed: private, anonymous, readable,
/// writable, not locked, not merged, not watched by another userfaultfd. Returns the mappings.
///
/// # Errors
/// The first reason why not, with what to do.
pub fn check(start: HostAddr, bytes: u64) -> Result<Vec<Vma>, Unsuitable> {
    let mappings = inspect(start, bytes)?;
    mappings.iter().try_for_each(Vma::check)?;
    Ok(mappings)
}

/// Returns the mappings of `all` that reach into the range, which must not have gaps.
fn covering(all: Vec<Vma>, start: HostAddr, bytes: u64) -> Result<Vec<Vma>, Unsuitable> {
    let end = start.checked_add(bytes).ok_or(Unsuitable::NotMapped { at: start })?;
    let mut covered = start;
    let mut found = Vec::new();
    for mapping in all {
        if mapping.end <= covered || covered >= end {
            continue;
        }
        if mapping.start > covered {
            break;
        }
        covered = mapping.end;
        found.push(mapping);
    }
    match covered < end {
        true => Err(Unsuitable::NotMapped { at: covered }),
        false => Ok(found),
    }
}

/// Parses the text of /proc/self/smaps.
fn parse(text: &str) -> Result<Vec<Vma>, Unsuitable> {
    let mut mappings: Vec<Vma> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = mappings.last_mut() {
                flags.trim().clone_into(&mut last.flags);
            }
        } else if let Some(mapping) = parse_header(line) {
            mappings.push(mapping);
        }
    }
    match mappings.iter().all(|mapping| !mapping.flags.is_empty()) {
        true => Ok(mappings),
        false => Err(Unsuitable::Unreadable { why: "it has no VmFlags lines".to_owned() }),
    }
}

/// Parses `start-end perms offset device inode path`. Returns `None` for the lines between.
fn parse_header(line: &str) -> Option<Vma> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok().map(HostAddr::new);
    let mut fields = rest.splitn(5, ' ');
    let permissions = fields.next()?;
    let inode = fields.nth(2)?.parse().ok()?;
    Some(Vma {
        start: address(start)?,
        end: address(end)?,
        permissions: permissions.to_owned(),
        inode,
        path: fields.next().unwrap_or("").trim().to_owned(),
        flags: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0                          [heap]
Size:                  8 kB
VmFlags: rd wr mr mw me ac 
3000-5000 rw-p 00000000 00:00 0 
Size:                  8 kB
VmFlags: rd wr mr mw me dc ac hg dd 
6000-7000 rw-s 00000000 00:01 77                         /memfd:pc.ram with space (deleted)
VmFlags: rd wr sh mr mw me ms ac 
";

    fn mapping(permissions: &str, inode: u64, path: &str, flags: &str) -> Vma {
        Vma {
            start: HostAddr::new(0x1000),
            end: HostAddr::new(0x2000),
            permissions: permissions.to_owned(),
            inode,
            path: path.to_owned(),
            flags: flags.to_owned(),
        }
    }

    #[test]
    fn reads_mappings() {
        let all = parse(SMAPS).unwrap();
        assert_eq!(all.len(), 3);
        assert!(all[1].has("dc") && all[1].has("hg"));
        assert!(!all[0].has("dc") && all[0].path == "[heap]");
        assert_eq!(all[2].path, "/memfd:pc.ram with space (deleted)");
        assert!(matches!(parse("1000-3000 rw-p 0 00:00 0 \n"), Err(Unsuitable::Unreadable { .. })));
    }

    #[test]
    fn finds_gaps() {
        let at = |start, bytes| covering(parse(SMAPS).unwrap(), HostAddr::new(start), bytes);
        assert_eq!(at(0x2000, 0x2000).unwrap().len(), 2);
        assert_eq!(at(0x3000, 0x1000).unwrap().len(), 1);
        let gap = Unsuitable::NotMapped { at: HostAddr::new(0x5000) };
        assert_eq!(at(0x4000, 0x3000), Err(gap));
        let nothing = Unsuitable::NotMapped { at: HostAddr::new(0x8000) };
        assert_eq!(at(0x8000, 0x1000), Err(nothing));
    }

    #[test]
    fn says_why_not() {
        let why = |permissions, inode, path, flags| {
            mapping(permissions, inode, path, flags).check().unwrap_err()
        };
        assert_eq!(mapping("rw-p", 0, "[anon:pc.ram]", "rd wr dc").check(), Ok(()));
        let memfd = why("rw-s", 7, "/memfd:pc.ram (deleted)", "rd wr sh");
        assert!(matches!(memfd, Unsuitable::FileBacked { .. }));
        assert!(memfd.to_string().contains("memfd (/memfd:pc.ram (deleted)): zerosweep manages"));
        assert!(matches!(why("rw-p", 7, "/x", "rd wr"), Unsuitable::FileBacked { .. }));
        let zero = why("rw-s", 7, "/dev/zero (deleted)", "rd wr sh");
        assert!(matches!(zero, Unsuitable::Shared { .. }));
        assert!(matches!(why("rw-p", 9, "/h", "rd wr ht"), Unsuitable::Hugetlb { .. }));
        assert!(matches!(why("r--p", 0, "", "rd mr"), Unsuitable::NotWritable { .. }));
        assert!(matches!(why("rw-p", 0, "", "rd wr lo"), Unsuitable::Locked { .. }));
        assert!(matches!(why("rw-p", 0, "", "rd wr mg"), Unsuitable::Mergeable { .. }));
        assert!(matches!(why("rw-p", 0, "", "rd wr um"), Unsuitable::Watched { .. }));
    }

    #[test]
    fn accepts_a_region_of_our_own() {
        let region = crate::Region::new(2 << 20).unwrap();
        let mappings = check(region.start(), region.bytes()).unwrap();
        // Children do not inherit it (`MADV_DONTFORK`).
        assert!(mappings.iter().all(|mapping| mapping.has("dc")));
    }
}
