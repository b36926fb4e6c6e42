//! Appending: strided rows of new keys or values into the rows of pages.

use std::ops::Range;

use crate::{DType, Error, Tensor3};

/// Copies rows `rows` of head `head` of `src` (`[rows, heads, dim]`, any strides) to `dst`, contiguous
/// `[rows.len(), dim]`. Nothing is converted.
///
/// # Errors
/// [`Error::DType`] if `src` is not of `dtype`, [`Error::Range`] if `head` or `rows` is outside it,
/// [`Error::Shape`] if `dst` has the wrong number of bytes. `dst` is unchanged then.
pub fn append(
    src: &Tensor3,
    head: usize,
    rows: Range<usize>,
    dtype: DType,
    dst: &mut [u8],
) -> Result<(), Error> {
    check(src, head, &rows, dtype)?;
    let row = src.shape()[2] * dtype.size();
    if dst.len() != rows.len() * row {
        let expected = format!("{} bytes", rows.len() * row);
        return Err(Error::shape("append destination", expected, dst.len()));
    }
    // SAFETY: `dst` holds the rows, contiguous, and is borrowed uniquely.
    unsafe { copy(src, head, rows, dst.as_mut_ptr(), row) }
    Ok(())
}

/// [`append`] to rows `stride` bytes apart.
///
/// # Errors
/// As for [`append`].
///
/// # Safety
/// Each row at `dst + i * stride` must be writable for `dim` elements and overlap nothing in `src`.
pub unsafe fn append_raw(
    src: &Tensor3,
    head: usize,
    rows: Range<usize>,
    dtype: DType,
    dst: *mut u8,
    stride: usize,
) -> Result<(), Error> {
    check(src, head, &rows, dtype)?;
    // SAFETY: passed on from the caller.
    unsafe { copy(src, head, rows, dst, stride) }
    Ok(())
}

fn check(src: &Tensor3, head: usize, rows: &Range<usize>, dtype: DType) -> Result<(), Error> {
    let [n, heads, _] = src.shape();
    if src.dtype() != dtype {
        return Err(Error::DType { what: "append", expected: dtype, found: src.dtype() });
    }
    if head >= heads {
        return Err(Error::range("append head", format!("below {heads}"), head));
    }
    if rows.start > rows.end || rows.end > n {
        let found = format!("{}..{}", rows.start, rows.end);
        return Err(Error::range("append rows", format!("inside 0..{n}"), found));
    }
    Ok(())
}

/// # Safety
/// Rows and head lie inside `src`; the destination rows are writable and overlap nothing.
unsafe fn copy(src: &Tensor3, head: usize, rows: Range<usize>, dst: *mut u8, stride: usize) {
    let bytes = src.shape()[2] * src.dtype().size();
    for (i, row) in rows.enumerate() {
        // SAFETY: passed on from the caller.
        unsafe { src.row_ptr(row, head).copy_to_nonoverlapping(dst.add(i * stride), bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_strided_rows_of_one_head() {
        let data: Vec<f32> = (0..60).map(|i| i as f32).collect();
        // [token][head][dim] = 5 x 3 x 2, read as rows 2 tokens apart, backwards in heads.
        let src = Tensor3::strided(&data[6..], [2, 3, 2], [12, 2]).unwrap();
        let mut dst = [0f32; 4];
        append(&src, 1, 0..2, DType::F32, bytemuck::cast_slice_mut(&mut dst)).unwrap();
        assert_eq!(dst, [8.0, 9.0, 20.0, 21.0]);
        let mut wide = [-1f32; 7];
        // SAFETY: two rows of 2 at a stride of 4 fit into 7.
        unsafe { append_raw(&src, 2, 0..2, DType::F32, wide.as_mut_ptr().cast(), 16).unwrap() };
        assert_eq!(wide, [10.0, 11.0, -1.0, -1.0, 22.0, 23.0, -1.0]);
    }

    #[test]
    fn copies_bits_not_numbers() {
        let bits = [0x7fc1u16, 0x8000, 0xff80];
        let data: &[half::bf16] = bytemuck::cast_slice(&bits);
        let src = Tensor3::contiguous(data, [1, 1, 3]).unwrap();
        let mut dst = [0u16; 3];
        append(&src, 0, 0..1, DType::Bf16, bytemuck::cast_slice_mut(&mut dst)).unwrap();
        assert_eq!(dst, bits);
    }

    #[test]
    fn misuse_is_an_error_that_names_both_sides() {
        let data = [0f32; 12];
        let src = Tensor3::contiguous(&data, [2, 3, 2]).unwrap();
        let mut dst = [0u8; 16];
        let error = |head, rows, dtype, dst: &mut [u8]| {
            append(&src, head, rows, dtype, dst).unwrap_err().to_string()
        };
        assert_eq!(error(0, 0..2, DType::Bf16, &mut dst), "append: expected dtype bf16, found f32");
        assert_eq!(error(3, 0..2, DType::F32, &mut dst), "append head: expected below 3, found 3");
        assert_eq!(
            error(0, 1..3, DType::F32, &mut dst),
            "append rows: expected inside 0..2, found 1..3"
        );
        assert_eq!(
            error(0, 0..1, DType::F32, &mut dst),
            "append destination: expected 8 bytes, found 16"
        );
    }
}
