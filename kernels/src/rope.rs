//! Keys moved to other positions: rotary embeddings (RoFormer, arXiv 2104.09864) turned on by a difference, for
//! caches that close gaps or keep positions inside the window (StreamingLLM, arXiv 2309.17453).
//!
//! Angles are f64 products of difference and frequency, so that a million positions lose nothing; their sines and
//! cosines are rounded to f32, and the pairs turned in f32.

use crate::convert::narrow;
use crate::view::DIM_MAX;
use crate::{Error, Tensor3Mut};

/// Which elements are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// Element `i` and `i + n` of the `2n` that are turned: GPT-NeoX, Llama in transformers ("rotate half").
    Halves,
    /// Elements `2i` and `2i + 1`: GPT-J, Llama's own code ("interleaved").
    Neighbours,
}

/// A rotary embedding of the first `2 * frequencies.len()` elements of a row; the others stay.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Radians per position of each pair (`inv_freq`), after any scaling of long contexts.
    pub frequencies: &'a [f32],
    /// Which elements a pair is.
    pub pairs: Pairs,
}

impl Rope<'_> {
    /// Checks it against rows of `dim` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more pairs than fit, [`Error::Range`] if a frequency is not finite.
    pub fn check(&self, dim: usize) -> Result<(), Error> {
        if 2 * self.frequencies.len() > dim {
            let most = format!("at most {}, for {dim} elements", dim / 2);
            return Err(Error::shape("frequencies", most, self.frequencies.len()));
        }
        match self.frequencies.iter().find(|f| !f.is_finite()) {
            Some(f) => Err(Error::range("frequency", "a finite number", f)),
            None => Ok(()),
        }
    }

    /// The elements of pair `i`.
    #[must_use]
    pub const fn pair(&self, i: usize) -> [usize; 2] {
        match self.pairs {
            Pairs::Halves => [i, i + self.frequencies.len()],
            Pairs::Neighbours => [2 * i, 2 * i + 1],
        }
    }
}

/// Moves row `t` of `rows`, `[tokens, heads, dim]`, by `differences[t]` positions. A row that moves by 0 keeps
/// its bits.
///
/// # Errors
/// [`Error::Shape`] if there is not one difference per token, [`Error::Range`] if `dim` is above 576; those of
/// [`Rope::check`]. Nothing is written then.
pub fn shift(rows: &mut Tensor3Mut, differences: &[i32], rope: &Rope) -> Result<(), Error> {
    let [tokens, heads, dim] = rows.shape();
    if differences.len() != tokens {
        return Err(Error::shape("differences", tokens, differences.len()));
    }
    if dim > DIM_MAX {
        return Err(Error::range("dim", format!("0..={DIM_MAX}"), dim));
    }
    rope.check(dim)?;
    let (mut turns, mut known) = ([(0f32, 0f32); DIM_MAX / 2], None);
    let mut row = [0f32; DIM_MAX];
    for (token, &by) in differences.iter().enumerate().filter(|(_, by)| **by != 0) {
        // Neighbours mostly move together.
        if known.replace(by) != Some(by) {
            for (turn, &f) in turns.iter_mut().zip(rope.frequencies) {
                let (sin, cos) = (f64::from(by) * f64::from(f)).sin_cos();
                *turn = (sin as f32, cos as f32);
            }
        }
        for head in 0..heads {
            let row = &mut row[..dim];
            rows.as_view().read_f32(token, head, row);
            for (i, (sin, cos)) in turns[..rope.frequencies.len()].iter().enumerate() {
                let [a, b] = rope.pair(i);
                (row[a], row[b]) = (row[a] * cos - row[b] * sin, row[b] * cos + row[a] * sin);
            }
            // SAFETY: the view is writable, and token and head are inside it.
            unsafe { narrow(rows.dtype(), row, rows.row_ptr_mut(token, head)) }
        }
    }
    Ok(())
}
