//! Centroids of the parts of keys, and encoding with them.

use super::codes::PqSpec;
use crate::cluster::lloyd::lloyd;
use crate::cluster::points::Points;
use crate::cluster::rows::Rows;
use crate::cluster::targets::{Metric, Targets};
use crate::summary::TILE;
use crate::{Error, Executor, Isa};

/// Centroids of each part of the keys of one KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    spec: PqSpec,
    /// `[parts][centroids][part_dim]`
    centroids: Vec<f32>,
}

impl Codebook {
    /// Trains on `keys`: in each part, `iterations` of Lloyd by Euclidean distance, from centroids at even
    /// distances in the sequence (PQCache: at random ones). Parts that are not finite do not count; where
    /// there are fewer keys than centroids the last ones repeat the first and are never used.
    ///
    /// The result depends on neither the number of threads nor the level.
    ///
    /// # Errors
    /// [`Error::Shape`] if the keys have another dimension, [`Error::Range`] without iterations.
    pub fn train(
        spec: PqSpec,
        keys: &Rows,
        iterations: usize,
        isa: Isa,
        exec: &Executor,
    ) -> Result<Codebook, Error> {
        check(spec, keys)?;
        if iterations == 0 {
            return Err(Error::range("iterations", "at least 1", iterations));
        }
        let (count, dim) = (spec.centroids(), spec.part_dim());
        let mut centroids = vec![0f32; spec.parts() * count * dim];
        for (part, to) in centroids.chunks_exact_mut(count * dim).enumerate() {
            let ptrs = part_ptrs(spec, keys, part);
            let points = Points::new(isa, &part_rows(spec, keys, &ptrs)?, false, 0.0, exec);
            let all = 0..points.len;
            let found = lloyd(&points, all, count, Metric::Euclidean, iterations, exec).centroids;
            let mut rows = to.chunks_exact_mut(dim);
            for (row, centroid) in rows.by_ref().zip(found.chunks_exact(points.stride)) {
                points.restored(centroid, row);
            }
            let first = found.get(..points.stride).map(|_| to[..dim].to_vec());
            let rest = to.chunks_exact_mut(dim).skip(found.len() / points.stride);
            rest.zip(first.iter().cycle()).for_each(|(row, first)| row.copy_from_slice(first));
        }
        Ok(Codebook { spec, centroids })
    }

    /// A codebook of given centroids, `[parts][2^bits][dim / parts]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not that many numbers, [`Error::Range`] if one is not finite.
    pub fn from_centroids(spec: PqSpec, centroids: Vec<f32>) -> Result<Codebook, Error> {
        let len = spec.centroids() * spec.dim();
        if centroids.len() != len {
            return Err(Error::shape("centroids", len, centroids.len()));
        }
        match centroids.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(Error::range("centroids", "finite numbers", x)),
            None => Ok(Codebook { spec, centroids }),
        }
    }

    /// Shape of the codes.
    #[must_use]
    pub fn spec(&self) -> &PqSpec {
        &self.spec
    }

    /// `[parts][2^bits][dim / parts]`
    #[must_use]
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Centroids of a part.
    pub(super) fn part(&self, part: usize) -> &[f32] {
        let len = self.spec.centroids() * self.spec.part_dim();
        &self.centroids[part * len..][..len]
    }

    /// Writes the codes of `keys`, which are tokens `first..` of the tiles of `cells` (the nearest centroid
    /// of each part; of equally near ones the lowest), and leaves those of other tokens. Returns the rows
    /// whose keys are not finite, ascending: their codes mean nothing, they must be read always.
    ///
    /// The result depends on neither the number of threads nor the level.
    ///
    /// # Errors
    /// [`Error::Shape`] if the keys have another dimension, or `cells` holds no whole cells or too few.
    pub fn encode(
        &self,
        keys: &Rows,
        first: usize,
        cells: &mut [u8],
        isa: Isa,
        exec: &Executor,
    ) -> Result<Vec<u32>, Error> {
        check(self.spec, keys)?;
        let cell_bytes = self.spec.cell_bytes();
        let tiles = (first + keys.len()).div_ceil(TILE);
        if !cells.len().is_multiple_of(cell_bytes) || cells.len() < tiles * cell_bytes {
            let expected = format!("at least {tiles} cells of {cell_bytes} bytes");
            return Err(Error::shape("cells", expected, format!("{} bytes", cells.len())));
        }
        let mut unencoded = Vec::new();
        for part in 0..self.spec.parts() {
            let labels = self.labels(keys, part, &mut unencoded, isa, exec)?;
            exec.chunks(&mut cells[..tiles * cell_bytes], cell_bytes, |tile, cell| {
                let from = (tile * TILE).max(first);
                for token in from..((tile + 1) * TILE).min(first + keys.len()) {
                    self.spec.put(cell, part, token % TILE, labels[token - first]);
                }
            });
        }
        unencoded.sort_unstable();
        unencoded.dedup();
        Ok(unencoded)
    }

    /// Codes of one part; 0 where it is not finite, which is noted.
    fn labels(
        &self,
        keys: &Rows,
        part: usize,
        unencoded: &mut Vec<u32>,
        isa: Isa,
        exec: &Executor,
    ) -> Result<Vec<u8>, Error> {
        let ptrs = part_ptrs(self.spec, keys, part);
        let rows = part_rows(self.spec, keys, &ptrs)?;
        let centroids = self.part(part);
        let top = centroids.iter().fold(0f32, |top, x| top.max(x.abs()));
        let points = Points::new(isa, &rows, false, top, exec);
        let mut labels = vec![0u32; points.len];
        let targets = points.taken(centroids);
        let targets = Targets::new(&points, Metric::Euclidean, &targets, exec);
        targets.assign(&points, 0, &mut labels, exec);
        let mut codes = vec![0u8; keys.len()];
        points.tokens.iter().zip(labels).for_each(|(&t, label)| codes[t as usize] = label as u8);
        unencoded.extend(&points.unclustered);
        Ok(codes)
    }
}

fn check(spec: PqSpec, keys: &Rows) -> Result<(), Error> {
    if keys.dim() != spec.dim() {
        return Err(Error::shape("keys", format!("rows of {}", spec.dim()), keys.dim()));
    }
    Ok(())
}

/// Where a part of each key begins.
fn part_ptrs(spec: PqSpec, keys: &Rows, part: usize) -> Vec<*const u8> {
    let at = part * spec.part_dim() * keys.dtype().size();
    (0..keys.len()).map(|i| keys.ptr(i).wrapping_add(at)).collect()
}

fn part_rows<'a>(spec: PqSpec, keys: &Rows<'a>, ptrs: &'a [*const u8]) -> Result<Rows<'a>, Error> {
    // SAFETY: a part of a readable row is readable, for as long as the row.
    unsafe { Rows::new(keys.dtype(), spec.part_dim(), ptrs) }
}
