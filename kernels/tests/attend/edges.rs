//! Lengths, rows and channels around the borders of rounds (16 tokens), tiles (64), blocks of query
//! rows (4) and registers (16 or 32 channels).

use half::{bf16, f16};

use crate::common::{Case, base, check};

/// Around every border of a round or tile up to the third tile.
const LENGTHS: [usize; 20] =
    [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 79, 80, 81, 127, 128, 129];

fn check_all(case: &Case) {
    check::<bf16>(case);
    check::<f16>(case);
    check::<f32>(case);
}

#[test]
fn every_length_with_every_number_of_rows() {
    for group in 1..=9 {
        for slots in [false, true] {
            let case = Case {
                group,
                kv_heads: 1,
                dim_k: 48,
                dim_v: 40,
                slots,
                lens: LENGTHS.to_vec(),
                queries: vec![1; LENGTHS.len()],
                ..base()
            };
            check_all(&case);
        }
    }
}

#[test]
fn every_length_with_several_masked_queries() {
    for (group, queries) in [(1, 2), (1, 3), (1, 5), (1, 7), (1, 9), (2, 3), (3, 3), (2, 4)] {
        for window in [0, 1, 16, 20] {
            let case = Case {
                group,
                kv_heads: 1,
                dim_k: 33,
                dim_v: 65,
                causal: true,
                window,
                lens: LENGTHS.to_vec(),
                queries: LENGTHS.map(|n| n.min(queries)).to_vec(),
                ..base()
            };
            check_all(&case);
        }
    }
}

#[test]
fn every_width_of_keys_and_values() {
    let dims = [1, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 80, 95, 96, 97, 112, 129];
    for (i, dim_k) in dims.into_iter().enumerate() {
        let dim_v = dims[(i + 7) % dims.len()];
        for (dim_k, dim_v) in [(dim_k, dim_v), (dim_k, dim_k)] {
            let lens = vec![1, 16, 17, 64, 81];
            let case = Case {
                group: 5,
                kv_heads: 1,
                dim_k,
                dim_v,
                padding: 3,
                hnd: i % 2 == 0,
                queries: vec![1; lens.len()],
                lens,
                ..base()
            };
            check_all(&case);
        }
    }
}

#[test]
fn every_number_of_rows_with_caps_windows_and_sinks() {
    for group in 1..=9 {
        let lens = vec![1, 16, 17, 63, 65, 140];
        let case = Case {
            group,
            kv_heads: 2,
            soft_cap: 5.0,
            sinks: true,
            queries: vec![1, 2, 3, 4, 5, 9],
            lens,
            ..base()
        };
        check_all(&case);
        check_all(&Case { window: 18, causal: true, ..case });
    }
}
