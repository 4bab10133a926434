//! Sizes as people write them: `512M`, `2G`; units are binary, a bare number is bytes.

use std::fmt;

/// Every size of guest memory is a multiple of a page.
pub use zerosweep::PAGE_BYTES;

const UNITS: [(char, u32); 6] = [('E', 60), ('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes, shown exactly in the largest unit that divides it: `512M`, `1536M`, `4100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Reads `512M`, `2G`, `1.5G`, `4096`; for clap.
    ///
    /// # Errors
    /// What is wrong, and how a size is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse_size::Config::new().with_binary().parse_size(text).map(Self).map_err(|error| {
            format!("{error}; sizes are written as 512M or 2G, a bare number is bytes")
        })
    }

    /// The size in few characters, rounded to a tenth: `512M`, `1.5G`, `766.3M`.
    pub fn rounded(self) -> String {
        for (unit, shift) in UNITS {
            let one = 1_u64 << shift;
            if self.0 >= one {
                // In tenths, to the nearest; u128 because 16E in tenths is more than a u64 holds.
                let tenths = (u128::from(self.0) * 10 + u128::from(one) / 2) / u128::from(one);
                return match tenths % 10 {
                    0 => format!("{}{unit}", tenths / 10),
                    tenth => format!("{}.{tenth}{unit}", tenths / 10),
                };
            }
        }
        self.0.to_string()
    }

    /// Whether it is a whole number of guest pages.
    pub fn is_whole_pages(self) -> bool {
        self.0.is_multiple_of(PAGE_BYTES)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A number of 4 KiB pages, rounded like [`Size::rounded`].
pub fn pages(count: u64) -> String {
    Size(count.saturating_mul(PAGE_BYTES)).rounded()
}

/// Like [`pages`], for quantities that can be negative.
pub fn signed_pages(count: i64) -> String {
    let sign = if count < 0 { "-" } else { "" };
    format!("{sign}{}", pages(count.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary() {
        assert_eq!(Size::parse("512M"), Ok(Size(512 << 20)));
        assert_eq!(Size::parse("2G"), Ok(Size(2 << 30)));
        assert_eq!(Size::parse("2g"), Ok(Size(2 << 30)));
        assert_eq!(Size::parse("2GiB"), Ok(Size(2 << 30)));
        assert_eq!(Size::parse("2GB"), Ok(Size(2 << 30)));
        assert_eq!(Size::parse("1.5G"), Ok(Size(1536 << 20)));
        assert_eq!(Size::parse("4096"), Ok(Size(4096)));
        assert_eq!(Size::parse("0"), Ok(Size(0)));
    }

    #[test]
    fn what_is_no_size_says_how_sizes_are_written() {
        for text in ["", "M", "12Q", "-1G", "1G2", "99999999999E", "two"] {
            let message = Size::parse(text).unwrap_err();
            assert!(message.contains("512M"), "{text}: {message}");
        }
    }

    #[test]
    fn sizes_are_shown_exactly() {
        let shown = |bytes| Size(bytes).to_string();
        assert_eq!(shown(2 << 30), "2G");
        assert_eq!(shown(1536 << 20), "1536M");
        assert_eq!(shown(4096), "4K");
        assert_eq!(shown(4100), "4100");
        assert_eq!(shown(0), "0");
        assert_eq!(Size::parse(&shown(u64::MAX)), Ok(Size(u64::MAX)));
    }

    #[test]
    fn rounded_sizes_are_short() {
        let rounded = |bytes| Size(bytes).rounded();
        assert_eq!(rounded(1536 << 20), "1.5G");
        assert_eq!(rounded((766 << 20) + (300 << 10)), "766.3M");
        assert_eq!(rounded((1 << 30) - 1), "1024M");
        assert_eq!(rounded(1023), "1023");
        assert_eq!(rounded(900), "900");
        assert_eq!(rounded(0), "0");
        assert_eq!(rounded(u64::MAX), "16E");
        assert_eq!(signed_pages(-256), "-1M");
        assert_eq!(signed_pages(256), "1M");
    }
}
