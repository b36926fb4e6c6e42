//! Whole steps whose lists and plans are made on the device: no host reads a score, a list or a length in
//! between, and one set of parameters serves steps of any length.

mod attended;
mod inputs;
mod launch;
mod pages;
mod slots;

pub(crate) use pages::pages;
pub(crate) use slots::slots;
