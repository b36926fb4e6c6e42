//! Blocks of the prefix store in the caller's tensors: one canonical buffer per block, or an engine's
//! paged K and V, whatever their strides.

use kvist::format::{AttentionKind, BlockDType, BlockLayout};
use kvist::{Axis, BlockRows, BlockRowsMut, Destination, Origin, Strides, Tiling};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::element::Element;
use super::runs::{Runs, Shape};
use super::view::{View, row_major};
use crate::error::{dtype_error, raise, shape_error};

/// Order of a page's tokens and KV heads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    TokensFirst,
    HeadsFirst,
}

/// One tensor for all layers, or one per layer.
pub(crate) enum Tensors {
    All(Box<View>),
    PerLayer(Vec<View>),
}

impl Tensors {
    pub(crate) fn new(object: &Bound<PyAny>, what: &'static str) -> PyResult<Tensors> {
        if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
            let views = object.try_iter()?.map(|tensor| View::new(&tensor?, what));
            return Ok(Tensors::PerLayer(views.collect::<PyResult<_>>()?));
        }
        View::new(object, what).map(|view| Tensors::All(Box::new(view)))
    }

    /// Every layer's part.
    fn layers(&self, layout: &BlockLayout, what: &str, expected: &str) -> PyResult<Vec<Part<'_>>> {
        let layers = layout.num_layers();
        let parts: Vec<Part> = match self {
            Tensors::PerLayer(views) => views.iter().map(Part::of).collect(),
            Tensors::All(view) => {
                let part = Part::of(view);
                if part.shape.first() != Some(&layers) {
                    return Err(shape_error(
                        what,
                        &format!("[{layers}, {expected}]"),
                        view.shape(),
                    ));
                }
                (0..layers).map(|layer| part.at(layer)).collect()
            }
        };
        if parts.len() != layers {
            let found = format!("{what}: expected {layers} tensors, found {}", parts.len());
            return Err(raise("ShapeError", found));
        }
        Ok(parts)
    }

    fn views(self) -> Vec<View> {
        match self {
            Tensors::All(view) => vec![*view],
            Tensors::PerLayer(views) => views,
        }
    }
}

/// A tensor with some leading dimensions taken off.
#[derive(Clone, Copy)]
struct Part<'a> {
    ptr: *const u8,
    shape: &'a [usize],
    /// In elements.
    strides: &'a [i64],
    size: usize,
    element: &'a Element,
}

impl<'a> Part<'a> {
    fn of(view: &'a View) -> Part<'a> {
        let (shape, strides, element) = (view.shape(), view.strides(), &view.element);
        Part { ptr: view.ptr, shape, strides, size: element.size(), element }
    }

    /// One element of the first dimension, which has it.
    fn at(self, index: usize) -> Part<'a> {
        let step = self.strides[0].wrapping_mul((index * self.size) as i64);
        let ptr = self.ptr.wrapping_offset(step as isize);
        Part { ptr, shape: &self.shape[1..], strides: &self.strides[1..], ..self }
    }
}

/// Byte strides of K or V in every layer.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Steps {
    block: i64,
    token: i64,
    head: i64,
    /// Where the rows of a tile are not runs.
    tiling: Option<Tiles>,
}

/// The dimensions of a tile, outer and inner part of tokens and channels: `(count, byte stride)`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tiles {
    tokens: [(usize, i64); 2],
    channels: [(usize, i64); 2],
}

impl Tiles {
    fn tiling(&self) -> Tiling {
        let axis = |[(_, outer), (piece, inner)]: [(usize, i64); 2]| Axis {
            piece,
            inner: inner as usize,
            outer: outer as usize,
        };
        Tiling { token: axis(self.tokens), channel: axis(self.channels) }
    }
}

impl Steps {
    /// The rows of a block, of `row` bytes each where they are runs.
    fn shape(&self, layout: &BlockLayout, row: usize) -> PyResult<Shape> {
        let heads = (layout.num_heads(), self.head);
        match self.tiling {
            None => Shape::new(row, &[(layout.block_tokens as usize, self.token), heads]),
            Some(Tiles { tokens: [to, ti], channels: [co, ci] }) => {
                Shape::new(layout.dtype.size(), &[to, ti, co, ci, heads])
            }
        }
    }

    fn tiling(&self) -> Option<Tiling> {
        self.tiling.as_ref().map(Tiles::tiling)
    }
}

/// An engine's paged K and V, checked against a layout.
pub(crate) struct Engine {
    layers: Vec<(*mut u8, *mut u8)>,
    k: Steps,
    v: Steps,
    blocks: usize,
    readonly: bool,
    _views: Vec<View>,
}

/// What `put` and `get` read from and write to.
pub(crate) enum Blocks {
    Canonical(Vec<View>),
    Engine(Box<Engine>, Vec<usize>),
}

/// Elements of a layout as tensors have them; 8-bit floats also come as bytes.
fn check_element(layout: &BlockLayout, element: &Element, what: &str) -> PyResult<()> {
    let fp8 = matches!(layout.dtype, BlockDType::Fp8E4m3 | BlockDType::Fp8E5m2);
    let bytes = fp8 && *element == Element::Block(BlockDType::U8);
    if bytes || *element == Element::Block(layout.dtype) {
        return Ok(());
    }
    Err(dtype_error(what, layout.dtype.name(), &element.name()))
}

impl Engine {
    /// Tensors whose blocks are `[tokens, heads, dim]` or `[heads, tokens, dim]`: with `kv` they
    /// hold both, `[(layers,) 2, blocks, ...]`, else K and V are apart.
    pub(crate) fn new(
        layout: &BlockLayout,
        order: Order,
        kv: Option<Tensors>,
        k: Option<Tensors>,
        v: Option<Tensors>,
    ) -> PyResult<Engine> {
        let latent = layout.attention == AttentionKind::Latent;
        let no_v = layout.dim_v == 0;
        let (k, v, both) = match (kv, k, v) {
            (Some(kv), None, None) if no_v => (kv, None, false),
            (Some(kv), None, None) => (kv, None, true),
            (None, Some(k), None) if no_v => (k, None, false),
            (None, Some(k), Some(v)) if !no_v => (k, Some(v), false),
            _ => {
                let text = if no_v { "kv= alone" } else { "kv=, or k= and v=" };
                let text = format!("blocks: expected {text}, found another combination");
                return Err(raise("OptionError", text));
            }
        };
        let side = Side { layout, order, latent };
        let (k_parts, v_parts) = if both {
            let expected = format!("2, {}", side.expected(layout.dim_k));
            let parts = k.layers(layout, "kv", &expected)?;
            if let Some(part) = parts.iter().find(|part| part.shape.first() != Some(&2)) {
                return Err(shape_error("kv", &format!("[{expected}]"), part.shape));
            }
            let half = |n: usize| parts.iter().map(|part| part.at(n)).collect::<Vec<Part>>();
            (half(0), half(1))
        } else {
            let name = if no_v { "kv" } else { "k" };
            let k_parts = k.layers(layout, name, &side.expected(layout.dim_k))?;
            let v_parts = v.as_ref().map(|v| v.layers(layout, "v", &side.expected(layout.dim_v)));
            let v_parts = v_parts.transpose()?.unwrap_or_else(|| k_parts.clone());
            (k_parts, v_parts)
        };
        let (k_steps, blocks) =
            side.steps(&k_parts, layout.dim_k, if both { "kv" } else { "k" })?;
        let (v_steps, v_blocks) = match no_v {
            true => (k_steps, blocks),
            false => side.steps(&v_parts, layout.dim_v, if both { "kv" } else { "v" })?,
        };
        if v_blocks != blocks {
            let text = format!("v: expected {blocks} blocks, as k has, found {v_blocks}");
            return Err(raise("ShapeError", text));
        }
        let pointers = k_parts.iter().zip(&v_parts);
        let layers = pointers.map(|(k, v)| (k.ptr.cast_mut(), v.ptr.cast_mut())).collect();
        let views: Vec<View> =
            k.views().into_iter().chain(v.into_iter().flat_map(Tensors::views)).collect();
        let readonly = views.iter().any(|view| view.readonly);
        Ok(Engine { layers, k: k_steps, v: v_steps, blocks, readonly, _views: views })
    }

    /// Blocks of the tensors.
    pub(crate) fn len(&self) -> usize {
        self.blocks
    }

    fn strides(&self, id: usize) -> (Strides, Strides) {
        let of = |s: &Steps| Strides {
            offset: (s.block as usize).wrapping_mul(id),
            layer: 0,
            token: s.token as usize,
            head: s.head as usize,
        };
        (of(&self.k), of(&self.v))
    }

    /// Where the rows of some blocks are.
    fn runs(&self, layout: &BlockLayout, ids: &[usize]) -> PyResult<Runs> {
        let size = layout.dtype.size();
        let (k_row, v_row) = (layout.dim_k as usize * size, layout.dim_v as usize * size);
        let starts = |of: fn(&(*mut u8, *mut u8)) -> *mut u8, steps: Steps| {
            let block = move |&id: &usize| (steps.block as usize).wrapping_mul(id);
            let layer = |layer| ids.iter().map(move |id| of(layer).addr().wrapping_add(block(id)));
            self.layers.iter().flat_map(layer).collect::<Vec<usize>>()
        };
        let mut runs = Runs::default();
        let follows = |(k, v): &(*mut u8, *mut u8)| *v == k.wrapping_add(k_row);
        if v_row > 0
            && self.k == self.v
            && self.k.tiling.is_none()
            && self.layers.iter().all(follows)
        {
            runs.add(self.k.shape(layout, k_row + v_row)?, starts(|layer| layer.0, self.k));
            return Ok(runs);
        }
        runs.add(self.k.shape(layout, k_row)?, starts(|layer| layer.0, self.k));
        if v_row > 0 {
            runs.add(self.v.shape(layout, v_row)?, starts(|layer| layer.1, self.v));
        }
        Ok(runs)
    }
}

/// What one side of a layout's pages must look like.
struct Side<'a> {
    layout: &'a BlockLayout,
    order: Order,
    latent: bool,
}

impl Side<'_> {
    fn expected(&self, dim: u32) -> String {
        let (tokens, heads) = (self.layout.block_tokens, self.layout.num_heads());
        match self.order {
            _ if self.latent && heads == 1 => format!("blocks, {tokens}, {dim}"),
            Order::TokensFirst => format!("blocks, {tokens}, {heads}, {dim}"),
            Order::HeadsFirst => format!("blocks, {heads}, {tokens}, {dim}"),
        }
    }

    /// A block's tile cut in pieces: `[blocks, heads, tokens / a, a, dim / b, b]`, or with tokens
    /// first. Its shape without the cuts, and its strides; none if that is not what it is.
    fn cut(&self, part: &Part) -> Option<([usize; 4], [i64; 3], Tiles)> {
        let (&[b, d1, d2, d3, co, ci], &[sb, s1, s2, s3, sco, sci]) = (part.shape, part.strides)
        else {
            return None;
        };
        let (h, sh, tokens) = match self.order {
            Order::HeadsFirst => (d1, s1, [(d2, s2), (d3, s3)]),
            Order::TokensFirst => (d3, s3, [(d1, s1), (d2, s2)]),
        };
        let bytes = |(n, stride): (usize, i64)| (n, stride.wrapping_mul(part.size as i64));
        let tiles =
            Tiles { tokens: tokens.map(bytes), channels: [(co, sco), (ci, sci)].map(bytes) };
        let count = |[a, b]: [(usize, i64); 2]| a.0.saturating_mul(b.0);
        Some(([b, count(tokens), h, co.saturating_mul(ci)], [sb, 0, sh], tiles))
    }

    /// Strides that all layers share, and the number of blocks.
    fn steps(&self, parts: &[Part], dim: u32, what: &str) -> PyResult<(Steps, usize)> {
        let steps = parts.iter().map(|part| self.steps_of(part, dim, what));
        let steps = steps.collect::<PyResult<Vec<(Steps, usize)>>>()?;
        let Some(first) = steps.first() else { return Err(shape_error(what, "layers", &[])) };
        if steps.iter().any(|other| other != first) {
            let text = format!("{what}: expected the same blocks and strides in every layer");
            return Err(raise("ShapeError", text));
        }
        Ok(*first)
    }

    fn steps_of(&self, part: &Part, dim: u32, what: &str) -> PyResult<(Steps, usize)> {
        check_element(self.layout, part.element, what)?;
        let (tokens, heads) = (self.layout.block_tokens as usize, self.layout.num_heads());
        let wrong = || shape_error(what, &format!("[{}]", self.expected(dim)), part.shape);
        let dim = dim as usize;
        if let Some((found, strides, tiles)) = self.cut(part) {
            if found[1..] != [tokens, heads, dim] {
                return Err(wrong());
            }
            let bytes = |stride: i64| stride.wrapping_mul(part.size as i64);
            let tiling = Some(tiles);
            let steps =
                Steps { block: bytes(strides[0]), token: 0, head: bytes(strides[2]), tiling };
            return Ok((steps, found[0]));
        }
        let (found, strides) = match (part.shape, part.strides) {
            (&[b, t, d], &[sb, st, sd]) if self.latent && heads == 1 => {
                ([b, t, 1, d], [sb, st, 0, sd])
            }
            (&[b, t, h, d], &[sb, st, sh, sd]) if self.order == Order::TokensFirst => {
                ([b, t, h, d], [sb, st, sh, sd])
            }
            (&[b, h, t, d], &[sb, sh, st, sd]) => ([b, t, h, d], [sb, st, sh, sd]),
            _ => return Err(wrong()),
        };
        if found[1..] != [tokens, heads, dim] {
            return Err(wrong());
        }
        let bytes = |stride: i64| stride.wrapping_mul(part.size as i64);
        let [block, token, head, channel] = strides.map(bytes);
        // Transposed: a tile whose rows are not runs.
        let tiling = (dim > 1 && strides[3] != 1).then_some(Tiles {
            tokens: [(1, 0), (tokens, token)],
            channels: [(1, 0), (dim, channel)],
        });
        Ok((Steps { block, token, head, tiling }, found[0]))
    }
}

/// One buffer of canonical bytes per block.
pub(crate) fn canonical(layout: &BlockLayout, objects: &Bound<PyAny>) -> PyResult<Vec<View>> {
    let view = |object: PyResult<Bound<PyAny>>| {
        let view = View::new(&object?, "blocks")?;
        if view.element != Element::Block(BlockDType::U8) {
            check_element(layout, &view.element, "blocks")?;
        }
        let count = view.shape().iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = count.and_then(|n| n.checked_mul(view.element.size()));
        if bytes != Some(layout.bytes()) {
            let expected = format!("{} bytes a block", layout.bytes());
            return Err(shape_error("blocks", &expected, view.shape()));
        }
        let dense = row_major(view.shape());
        let dims = view.shape().iter().zip(view.strides()).zip(dense);
        if dims.into_iter().any(|((&n, &stride), dense)| n > 1 && stride != dense) {
            let text = "blocks: expected contiguous buffers, found one with gaps".to_owned();
            return Err(raise("ShapeError", text));
        }
        Ok(view)
    };
    objects.try_iter()?.map(view).collect()
}

impl Blocks {
    /// Number of blocks.
    pub(crate) fn len(&self) -> usize {
        match self {
            Blocks::Canonical(views) => views.len(),
            Blocks::Engine(_, ids) => ids.len(),
        }
    }

    /// To read from.
    pub(crate) fn with_rows<T>(
        &self,
        layout: &BlockLayout,
        read: impl FnOnce(&[BlockRows]) -> T,
    ) -> T {
        match self {
            Blocks::Canonical(views) => {
                let strides = Strides::canonical(layout);
                // SAFETY: the exporter vouches for as many bytes as the layout has, without gaps, and
                // the view keeps it.
                let rows = |view: &View| unsafe { BlockRows::from_raw(view.ptr, strides) };
                read(&views.iter().map(rows).collect::<Vec<_>>())
            }
            Blocks::Engine(engine, ids) => {
                let layers: Vec<(*const u8, *const u8)> =
                    engine.layers.iter().map(|(k, v)| (k.cast_const(), v.cast_const())).collect();
                let (k, v) = (engine.k.tiling(), engine.v.tiling());
                // SAFETY: the exporters vouch for shapes and strides, which are the layout's; ids
                // are below the number of blocks; the views keep the memory.
                let rows = |&id: &usize| unsafe {
                    BlockRows::from_raw_layers(&layers, engine.strides(id)).tiled(k, v)
                };
                read(&ids.iter().map(rows).collect::<Vec<_>>())
            }
        }
    }

    /// Refuses memory that cannot be written to, or where two rows share bytes.
    pub(crate) fn check_writable(&self, layout: &BlockLayout) -> PyResult<()> {
        let (readonly, runs) = match self {
            Blocks::Canonical(views) => {
                let mut runs = Runs::default();
                let starts = views.iter().map(|view| view.ptr.addr()).collect();
                runs.add(Shape::new(layout.bytes(), &[])?, starts);
                (views.iter().any(|view| view.readonly), runs)
            }
            Blocks::Engine(engine, ids) => (engine.readonly, engine.runs(layout, ids)?),
        };
        if readonly {
            let text = "blocks: expected memory that can be written to, found read-only memory";
            return Err(PyBufferError::new_err(text));
        }
        runs.check_disjoint()
    }

    /// To write to, after [`Blocks::check_writable`].
    pub(crate) fn with_rows_mut<T>(
        &self,
        layout: &BlockLayout,
        write: impl FnOnce(&mut [BlockRowsMut]) -> T,
    ) -> T {
        match self {
            Blocks::Canonical(views) => {
                let strides = Strides::canonical(layout);
                // SAFETY: as in `with_rows`; writable, and no two overlap, as was checked.
                let rows =
                    |view: &View| unsafe { BlockRowsMut::from_raw(view.ptr.cast_mut(), strides) };
                write(&mut views.iter().map(rows).collect::<Vec<_>>())
            }
            Blocks::Engine(engine, ids) => {
                let (k, v) = (engine.k.tiling(), engine.v.tiling());
                // SAFETY: as in `with_rows`; writable, and no two rows overlap, as was checked.
                let rows = |&id: &usize| unsafe {
                    BlockRowsMut::from_raw_layers(&engine.layers, engine.strides(id)).tiled(k, v)
                };
                write(&mut ids.iter().map(rows).collect::<Vec<_>>())
            }
        }
    }
}

/// Blocks that are read in the background, or written to, after [`Blocks::check_writable`].
pub(crate) struct Behind {
    pub(crate) blocks: Blocks,
    pub(crate) layout: BlockLayout,
}

impl Destination for Behind {
    fn with_rows(&mut self, write: &mut dyn FnMut(&mut [BlockRowsMut])) {
        self.blocks.with_rows_mut(&self.layout, write);
    }
}

impl Origin for Behind {
    fn with_rows(&mut self, read: &mut dyn FnMut(&[BlockRows])) {
        self.blocks.with_rows(&self.layout, read);
    }
}

// SAFETY: descriptions of memory that the views keep; what is done with it is between the caller and
// the exporter, as with every tensor that several threads see.
unsafe impl Send for Blocks {}
// SAFETY: as above.
unsafe impl Sync for Blocks {}
