//! Tensors in and out of Python without copies. All `unsafe` of the bindings is in this folder.

mod borrow;
mod export;
mod import;
mod raw;

pub(crate) use borrow::{CellSpec, Ids, build_cells, pool};
pub(crate) use export::{Buffer, Kind, Library, Storage, numpy};
pub(crate) use import::Input;
