//! Tensors in and out of Python without copies. All `unsafe` of the bindings is in this folder.

mod borrow;
mod element;
mod export;
mod gpu;
mod import;
mod raw;
mod rows;
mod runs;
mod view;

pub(crate) use borrow::{CellSpec, Ids, build_cells, pool};
pub(crate) use export::{Buffer, Kind, Library, Storage, numpy};
pub(crate) use gpu::lend;
pub(crate) use import::Input;
pub(crate) use rows::{Behind, Blocks, Engine, Order, Tensors, canonical};
pub(crate) use view::View;
