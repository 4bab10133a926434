//! Every kernel that this CPU can run, against the naive scan, at the edges of its range, and on
//! memory that changes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panic, like tests")]

mod agreement;
mod bounds;
mod environment;
mod live;

use zerosweep_scan::Kernel;

/// Two blocks of the widest kernel, with what is before and behind them.
const MANY: usize = if cfg!(miri) { 36 } else { 2 * 64 + 16 };

/// The oracle: one byte at a time.
fn naive(words: &[u64]) -> Option<usize> {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    bytes.enumerate().find(|&(_, byte)| byte != 0).map(|(at, _)| at / 8)
}

fn kernels() -> Vec<Kernel> {
    Kernel::available().collect()
}
