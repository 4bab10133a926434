//! The engine's [rules](zerosweep::rules): a file for each, and a test or more that names it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod r01_build;
mod r02_target;
mod r03_populate;
mod r04_decrease;
mod r05_superpage_check;
mod r06_evacuate;
mod r07_emergency_sweep;
mod r08_full_sweep;
mod r09_no_debt;
mod r10_cheap_no;
mod r11_never_twice;
mod r12_retain;
mod r13_consolidate;
mod r14_in_transit;
mod r15_exhaustion;
mod r16_pinned;
mod r17_offline;
mod r18_teardown;
mod r19_audit;
mod r20_events;
mod r21_reconcile;
mod r22_read;
mod support;
