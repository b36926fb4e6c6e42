//! Scoring page summaries: bytes of summary read per second by one core.

use kvist_kernels::score::{self, BoxedQuery, CellList, UnitQuery};
use kvist_kernels::summary::{self, BoxedSpec, TILE, UnitKind, UnitSpec};
use kvist_kernels::{DType, Isa};

use crate::data::SHAPES;
use crate::floor::{best_read, read_seconds};
use crate::{Arena, Error, Line, Options, Rng, Shape, Sink, interleave};

/// A kind of summary, and how much of a cell one pass reads.
enum Kind {
    Boxed(BoxedSpec, u32),
    Units(UnitSpec),
}

impl Kind {
    fn cell_bytes(&self) -> usize {
        match self {
            Kind::Boxed(spec, _) => spec.cell_bytes(),
            Kind::Units(spec) => spec.cell_bytes(),
        }
    }

    fn bytes_read(&self) -> usize {
        match self {
            Kind::Boxed(spec, planes) => spec.bytes_read(*planes),
            Kind::Units(spec) => spec.cell_bytes(),
        }
    }

    fn scores_per_tile(&self) -> usize {
        match self {
            Kind::Boxed(..) => TILE,
            Kind::Units(spec) => spec.units(),
        }
    }
}

fn kinds(dim: usize, dtype: DType) -> Result<Vec<(&'static str, Kind)>, Error> {
    let units = |kind| UnitSpec::new(kind, dim, dtype, 16).map(Kind::Units);
    Ok(vec![
        ("boxed, 2 planes", Kind::Boxed(BoxedSpec::new(dim, 2)?, 2)),
        ("boxed, 3 planes", Kind::Boxed(BoxedSpec::new(dim, 3)?, 3)),
        ("boxed, 4 planes", Kind::Boxed(BoxedSpec::new(dim, 4)?, 4)),
        ("box bound (quest)", units(UnitKind::Box)?),
        ("mean", units(UnitKind::Mean)?),
        ("moment2", units(UnitKind::Moment2)?),
    ])
}

pub(crate) fn run(options: &Options, sink: &mut Sink) -> Result<(), Error> {
    for shape in options.shapes(&SHAPES)? {
        for &context in options.context.as_deref().unwrap_or(&[32768]) {
            for &dtype in options.dtype.as_deref().unwrap_or(&[DType::Bf16]) {
                for (name, kind) in kinds(shape.head_dim, dtype)? {
                    row(name, &kind, shape, context, dtype, options, sink)?;
                }
            }
        }
    }
    Ok(())
}

/// Builds the cells of `tiles` tiles of random keys. Few different tiles, repeated: building is not
/// what is measured, and scoring does not care what the codes are.
fn cells(kind: &Kind, dim: usize, dtype: DType, tiles: usize) -> Result<Arena, Error> {
    let keys = crate::arena::encode(dtype, &Rng::new(5).normals(16 * TILE * dim));
    let row = dim * dtype.size();
    let mut arena = Arena::new(tiles * kind.cell_bytes())?;
    for (i, cell) in arena.bytes_mut().chunks_mut(kind.cell_bytes()).take(tiles).enumerate() {
        let first = i % 16 * TILE;
        let rows: Vec<*const u8> = (0..TILE).map(|t| keys[(first + t) * row..].as_ptr()).collect();
        // SAFETY: every pointer starts a whole row of `keys`.
        unsafe {
            match kind {
                Kind::Boxed(spec, _) => summary::build_boxed(spec, dtype, &rows, cell),
                Kind::Units(spec) => summary::build_units(spec, &rows, cell),
            }
        }
    }
    Ok(arena)
}

fn row(
    name: &'static str,
    kind: &Kind,
    shape: Shape,
    context: usize,
    dtype: DType,
    options: &Options,
    sink: &mut Sink,
) -> Result<(), Error> {
    let (dim, group) = (shape.head_dim, shape.group());
    let tiles = context.div_ceil(TILE) * shape.kv_heads;
    // Several layers, so that no cache holds the summaries from one step to the next.
    let layers = (128usize << 20).div_ceil(tiles * kind.cell_bytes());
    let arena = cells(kind, dim, dtype, tiles * layers)?;
    let ids: Vec<u32> = (0..(tiles * layers) as u32).collect();
    let all = CellList::from_slice(arena.bytes(), kind.cell_bytes(), &ids)?;
    let q = Rng::new(6).normals(group * dim);
    let (mut out, mut sigma) =
        (vec![0f32; group * tiles / shape.kv_heads * kind.scores_per_tile()], vec![0f32; tiles]);
    let per_head = tiles / shape.kv_heads;
    let mut layer = 0;
    let step = || {
        for head in 0..shape.kv_heads {
            let from = layer * tiles + head * per_head;
            let cells = all.slice(from, from + per_head);
            match kind {
                Kind::Boxed(spec, planes) => {
                    let query = BoxedQuery::new(Isa::level(), *spec, &q, group);
                    let sigma = &mut sigma[..per_head];
                    score::boxed(&query, &cells, *planes, &mut out, None, Some(sigma));
                }
                Kind::Units(spec) => {
                    let query = UnitQuery::new(Isa::level(), *spec, &q, group, 0.1, false);
                    score::units(&query, &cells, &mut out);
                }
            }
        }
        layer = (layer + 1) % layers;
    };
    let read = best_read(arena.bytes(), 1);
    let (reads, steps) =
        interleave(options.repeats(), || read_seconds(read, arena.bytes(), 1), step);
    let bytes = (tiles * kind.bytes_read()) as f64;
    let rate = |seconds: f64| bytes / seconds * 1e-9;
    let params = shape.params().with("context", context).with("dtype", dtype.name());
    let params = params.with("summary", name);
    let columns = crate::Params::new()
        .with("ms", steps.median * 1e3)
        .with("bytes_per_token", kind.bytes_read() as f64 / TILE as f64);
    sink.push(
        Line::new("score", params, rate(steps.median), "GB/s")
            .floor(arena.bytes().len() as f64 / reads.median * 1e-9)
            .repeated(steps.repeats, steps.spread)
            .best(rate(steps.best))
            .columns(columns),
    );
    Ok(())
}
