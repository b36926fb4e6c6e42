//! K14: lossless tiles decoded to their places, against the CPU's decoder: the same bits, the same refusals.

use bytemuck::Zeroable;
use kvist_kernels::cuda::params::{ExpwParams, ExpwTile};
use kvist_kernels::cuda::work::{ExpwSpec, expw_status};
use kvist_kernels::entropy::Expw;
use kvist_kernels::{DType, Isa};

use crate::machine::{Fault, Grid, Kernels, Memory, Report, SCHEDULES, Schedule};
use crate::tiles::{KINDS, Kind, Rng, tile};
use crate::toolchain;

/// A tile's bytes, coded or raw.
struct Item {
    plan: Expw,
    bytes: Vec<u8>,
    raw: bool,
}

/// How tiles lie: bytes beside the first of each, bytes between rows, bytes of the widest row.
#[derive(Clone, Copy, Debug)]
struct Arrangement {
    skew: usize,
    gap: usize,
    width: usize,
}

fn kernels(dtype: DType) -> Kernels {
    let spec = ExpwSpec { dtype };
    Kernels::sized("expw.cu", &spec.macros(), spec.shared_bytes())
}

fn item(dtype: DType, tokens: usize, dim: usize, kind: Kind) -> Item {
    let plan = Expw::new(dtype, tokens, dim).unwrap();
    let tile = tile(&plan, kind, (tokens * dim) as u64);
    let mut out = vec![0u8; plan.max_encoded()];
    match plan.encode(Isa::Generic, &tile, &mut out) {
        Some(len) => Item { plan, bytes: out[..len].to_vec(), raw: false },
        None => Item { plan, bytes: tile, raw: true },
    }
}

/// What the rows hold, or why not.
fn oracle(item: &Item) -> Result<Vec<u8>, String> {
    let mut tile = vec![0u8; item.plan.decoded_len()];
    if item.raw {
        return Ok(item.bytes.clone());
    }
    let done = item.plan.decode(Isa::Generic, &item.bytes, &mut tile);
    done.map(|()| tile).map_err(|e| e.to_string())
}

/// Output and statuses. Every tile may read its own bytes only.
fn run(
    kernels: &Kernels,
    dtype: DType,
    (items, place): (&[Item], Arrangement),
    blocks: usize,
    (schedule, left_out): (Schedule, u32),
) -> (Vec<u8>, Vec<u32>, Report) {
    let row = place.width + place.gap;
    let step = items.iter().map(|i| i.bytes.len()).max().unwrap().next_multiple_of(16) + 16;
    let rows = items.iter().map(|i| i.plan.tokens()).max().unwrap();
    // Sixteen bytes an element, so that the first lies well.
    let mut coded = vec![0u128; items.len() * step / 16];
    let coded: &mut [u8] = bytemuck::cast_slice_mut(&mut coded);
    let mut out = vec![0xa5a5_a5a5u128; items.len() * (rows * row).div_ceil(16) + 2];
    let out: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
    out.fill(0xa5);
    let mut status = vec![77u32; items.len()];
    let mut tiles = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let from = i * step + place.skew;
        coded[from..][..item.bytes.len()].copy_from_slice(&item.bytes);
        tiles.push(ExpwTile {
            from: from as u64,
            to: (i * rows * row) as u64,
            bytes: item.bytes.len() as u32,
            tokens: item.plan.tokens() as u32,
            dim: item.plan.dim() as u32,
            raw: u32::from(item.raw),
        });
    }
    let own = |t: &ExpwTile| Memory::read(&coded[t.from as usize..][..t.bytes as usize]);
    let mut memory: Vec<Memory> = tiles.iter().map(own).collect();
    memory.extend([Memory::read(&tiles), Memory::write(&mut status), Memory::write(out)]);
    let params = ExpwParams {
        coded: coded.as_ptr() as u64,
        coded_bytes: coded.len() as u64,
        out: out.as_ptr() as u64,
        out_bytes: out.len() as u64,
        tiles: tiles.as_ptr() as u64,
        status: status.as_ptr() as u64,
        out_row: row as i64,
        tiles_n: items.len() as u32,
        zero: 0,
    };
    let shared_bytes = ExpwSpec { dtype }.shared_bytes();
    let grid = Grid { blocks, shared_bytes, schedule, left_out };
    let report = kernels.run("expw_decode", &params, grid, &memory);
    (out.to_vec(), status, report)
}

fn check(
    kernels: &Kernels,
    dtype: DType,
    items: &[Item],
    place: Arrangement,
    schedules: &[Schedule],
) {
    let row = place.width + place.gap;
    let rows = items.iter().map(|i| i.plan.tokens()).max().unwrap();
    for (blocks, &schedule) in schedules.iter().enumerate() {
        let (out, status, report) = run(kernels, dtype, (items, place), blocks + 1, (schedule, 0));
        report.expect_clean(&(dtype, place, schedule));
        for (i, (item, &status)) in items.iter().zip(&status).enumerate() {
            let want = oracle(item);
            let got = expw_status(status).map_err(|e| e.to_string());
            assert_eq!(got, want.as_ref().map(|_| ()).map_err(Clone::clone), "tile {i}");
            let Ok(want) = want else { continue };
            let row_bytes = item.plan.dim() * dtype.size();
            for (t, got) in out[i * rows * row..][..rows * row].chunks(row).enumerate() {
                let want = want.chunks(row_bytes).nth(t).unwrap_or(&[]);
                assert!(got[..want.len()] == *want, "tile {i}, row {t}");
                assert!(got[want.len()..].iter().all(|&b| b == 0xa5), "beside tile {i}, row {t}");
            }
        }
    }
}

/// All kinds of numbers, in shapes that end anywhere, at addresses of any kind.
pub(crate) fn grid() {
    for dtype in DType::ALL {
        let kernels = kernels(dtype);
        // The longest has three bands, the second of which goes around the ring.
        let shapes =
            [(1, 1), (9, 31), (33, 3), (20, 32), (64, 1), (40, 13), (17, 72), (64, 129), (8, 576)];
        let of = |&(tokens, dim)| KINDS.map(|kind| item(dtype, tokens, dim, kind));
        let items: Vec<Item> = shapes.iter().flat_map(of).collect();
        let (raw, coded): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|i| i.raw);
        assert!(raw.len() > 5 && coded.len() > 20, "{} {}", raw.len(), coded.len());
        let width = 576 * dtype.size();
        check(&kernels, dtype, &items, Arrangement { skew: 0, gap: 0, width }, &SCHEDULES[..2]);
        let odd = Arrangement { skew: 7, gap: dtype.size(), width };
        check(&kernels, dtype, &items, odd, &SCHEDULES[2..3]);
        let tiles = [item(dtype, 64, 128, Kind::Normal), item(dtype, 128, 128, Kind::WildRows)];
        let width = 128 * dtype.size();
        check(&kernels, dtype, &tiles, Arrangement { skew: 16, gap: 32, width }, &SCHEDULES);
    }
}

/// One type, for the sanitizers.
pub(crate) fn small() {
    let items = [(3, 11), (5, 72), (1, 64)].map(|(t, d)| item(DType::Bf16, t, d, Kind::Specials));
    let place = Arrangement { skew: 3, gap: 2, width: 144 };
    check(&kernels(DType::Bf16), DType::Bf16, &items, place, &SCHEDULES);
}

/// Tiles cut short, with bytes too many, with bits turned over, and made up: refused where the CPU refuses, and
/// never read beyond their bytes.
pub(crate) fn hostile() {
    let mut rng = Rng(5);
    for dtype in DType::ALL {
        let kernels = kernels(dtype);
        let good = item(dtype, 24, 13, Kind::WildRows);
        assert!(!good.raw);
        let with = |bytes: Vec<u8>| Item { plan: good.plan, bytes, raw: false };
        let mut items: Vec<Item> =
            (0..good.bytes.len()).step_by(3).map(|n| with(good.bytes[..n].to_vec())).collect();
        items.push(with([&good.bytes[..], &[0]].concat()));
        let bits = |n: usize| (0..8 * n).step_by(7);
        for bit in bits(good.bytes.len()) {
            let mut bytes = good.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            items.push(with(bytes));
        }
        for _ in 0..60 {
            let len = rng.below(900);
            let mut bytes: Vec<u8> = (0..len).map(|_| rng.bits() as u8).collect();
            // A head and counts that pass, now and then.
            bytes.iter_mut().skip(1).take(1).for_each(|width| *width &= 1);
            items.push(with(bytes));
        }
        let refused = items.iter().filter(|i| oracle(i).is_err()).count();
        assert!(refused > 150 && items.len() - refused > 20, "{refused} of {}", items.len());
        let reasons = ["length", "bases", "padding", "counts"];
        let given = |r: &str| items.iter().any(|i| oracle(i).is_err_and(|e| e.contains(r)));
        assert!(reasons.into_iter().all(given) && given("escapes") == (dtype == DType::F16));
        let place = Arrangement { skew: 5, gap: 0, width: 13 * dtype.size() };
        check(&kernels, dtype, &items, place, &SCHEDULES[2..3]);
        let raw = |n: usize| Item { raw: true, ..with(vec![1; n]) };
        let wrong = [raw(0), raw(312 * dtype.size() + 1), raw(312 * dtype.size() - 1)];
        let (out, status, report) = run(&kernels, dtype, (&wrong, place), 2, (SCHEDULES[0], 0));
        report.expect_clean(&dtype);
        assert!(status == [1; 3] && out.iter().all(|&b| b == 0xa5), "{status:?}");
    }
}

/// Tiles that do not lie in the spans are refused before a byte of them is read.
pub(crate) fn outside() {
    let kernels = kernels(DType::Bf16);
    let tile = ExpwTile { from: 0, to: 0, bytes: 10, tokens: 4, dim: 8, raw: 0 };
    let tiles = [
        ExpwTile { from: 23, ..tile },
        ExpwTile { from: u64::MAX, ..tile },
        ExpwTile { bytes: 33, ..tile },
        ExpwTile { to: 1, ..tile },
        ExpwTile { to: 2, ..tile },
        ExpwTile { to: u64::MAX - 1, ..tile },
        ExpwTile { tokens: 0, ..tile },
        ExpwTile { tokens: 5, ..tile },
        ExpwTile { dim: 0, ..tile },
        ExpwTile { dim: 9, ..tile },
        ExpwTile { tokens: 1, dim: 577, ..tile },
        ExpwTile { raw: 1, tokens: 4097, ..tile },
    ];
    let mut status = [77u32; 12];
    let params = ExpwParams {
        coded: 16 << 20,
        coded_bytes: 32,
        out: 16 << 20,
        out_bytes: 64,
        tiles: tiles.as_ptr() as u64,
        status: status.as_ptr() as u64,
        out_row: 16,
        tiles_n: 12,
        ..ExpwParams::zeroed()
    };
    let memory = [Memory::read(&tiles), Memory::write(&mut status)];
    let shared_bytes = ExpwSpec { dtype: DType::Bf16 }.shared_bytes();
    let grid = Grid { blocks: 1, shared_bytes, schedule: SCHEDULES[0], left_out: 0 };
    kernels.run("expw_decode", &params, grid, &memory).expect_clean(&"outside");
    assert_eq!(status, [6; 12]);
    assert!(expw_status(6).unwrap_err().to_string().contains("both spans"));
}

/// Each barrier and wait left out is reported, under every schedule.
pub(crate) fn planted() {
    let kernels = kernels(DType::Bf16);
    let guards = toolchain::guards("expw.cu");
    assert_eq!(guards, [1, 2, 3, 4, 5]);
    let items = [item(DType::Bf16, 128, 128, Kind::Normal)];
    assert!(items[0].bytes.len() > 16 << 10, "once around the ring");
    let place = Arrangement { skew: 0, gap: 0, width: 256 };
    for guard in guards {
        for schedule in SCHEDULES {
            let (.., report) = run(&kernels, DType::Bf16, (&items, place), 1, (schedule, guard));
            assert!(!report.is_clean(), "guard {guard} left out, {schedule:?}");
            assert!(report.count(Fault::InFlight) > 0 || guard != 2, "{}", report.first());
        }
    }
}
