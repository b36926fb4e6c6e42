//! The kernels that kvist ships: what warm-up, prebuilt images and the compile tests walk. Sources are in
//! `kernels/cuda`; the head of each says what it computes and how it is launched.

use super::work::{
    AttendCodesSpec, AttendSpec, BoxedScoreSpec, ColumnsSpec, ExpwSpec, KMeansSpec, PrefillSpec,
    ScoreSpec, TokensSpec, TreeSpec,
};
use super::{Header, Kernel, Macros, Variant};

/// Registers of a multiprocessor, 65,536, over two blocks of 128 threads; 255 is what an instruction names.
const TWO_BLOCKS: u32 = 255;
/// Three blocks of 128 threads.
const THREE_BLOCKS: u32 = 168;
/// Two blocks of 256 threads.
const TWO_WIDE_BLOCKS: u32 = 128;
/// Kernels that hide latency by many warps.
const MANY: u32 = 64;

macro_rules! header {
    ($name:literal) => {
        Header { name: $name, text: include_str!(concat!("../../cuda/", $name)) }
    };
}

/// Every header; each source includes some.
const HEADERS: &[Header] = &[
    header!("kvdev.cuh"),
    header!("params.cuh"),
    header!("numbers.cuh"),
    header!("ring.cuh"),
    header!("state.cuh"),
    header!("sight.cuh"),
    header!("params_prefill.cuh"),
    header!("tall.cuh"),
    header!("params_select.cuh"),
    header!("scan.cuh"),
    header!("params_codec.cuh"),
    header!("codes.cuh"),
];

macro_rules! kernel {
    ($name:literal, $entries:expr, $variants:expr) => {
        Kernel {
            name: $name,
            source: include_str!(concat!("../../cuda/", $name)),
            headers: HEADERS,
            entries: $entries,
            accelerated: false,
            variants: $variants,
        }
    };
}

fn variants(all: impl Iterator<Item = Macros>, registers_max: u32) -> Vec<Variant> {
    all.map(|macros| Variant { macros, registers_max }).collect()
}

fn plain() -> Vec<Variant> {
    vec![Variant { macros: Macros::new(), registers_max: MANY }]
}

/// Attention of few query rows over pages or slots: [`AttendSpec::macros`].
pub static ATTEND_PAGES: Kernel = kernel!("attend_pages.cu", &["attend_pages"], || {
    variants(AttendSpec::all().map(|spec| spec.macros()), TWO_BLOCKS)
});
/// Attention of many query rows over pages, or listed blocks of them: [`PrefillSpec::macros`].
pub static ATTEND_PREFILL: Kernel = kernel!("attend_prefill.cu", &["attend_prefill"], || {
    variants(PrefillSpec::all().map(|spec| spec.macros()), TWO_BLOCKS)
});
/// The same with Hopper's `wgmma`: [`PrefillSpec::hopper`].
pub static ATTEND_PREFILL_HOPPER: Kernel = Kernel {
    accelerated: true,
    variants: || variants(PrefillSpec::hopper().map(|spec| spec.macros()), TWO_BLOCKS),
    ..ATTEND_PREFILL
};
/// Attention of draft trees among themselves: [`TreeSpec::macros`].
pub static ATTEND_TREE: Kernel = kernel!("attend_tree.cu", &["attend_tree"], || {
    variants(TreeSpec::all().map(|spec| spec.macros()), TWO_BLOCKS)
});
/// Merges partial results.
pub static MERGE: Kernel = kernel!("merge.cu", &["merge_units", "merge_parts"], plain);
/// Scores of units, by their boxes or by one row each: [`ScoreSpec::macros`].
pub static SCORE: Kernel = kernel!("score.cu", &["score_units"], || {
    variants(ScoreSpec::all().map(|spec| spec.macros()), THREE_BLOCKS)
});
/// Softmax weights of tokens, summed over the heads of a KV head: [`TokensSpec::macros`].
pub static TOKENS: Kernel = kernel!("tokens.cu", &["score_tokens", "vote_tokens"], || {
    variants(TokensSpec::all().map(|spec| spec.macros()), THREE_BLOCKS)
});
/// Estimates of scores from boxed codes: [`BoxedScoreSpec::macros`].
pub static BOXED: Kernel = kernel!("boxed.cu", &["score_boxed"], || {
    variants(BoxedScoreSpec::all().map(|spec| spec.macros()), THREE_BLOCKS)
});
/// Scores of query heads to one of their KV head.
pub static VOTE: Kernel = kernel!("vote.cu", &["vote"], plain);
/// The highest scores of each row, by count or by mass, as lists of pages.
pub static SELECT: Kernel = kernel!("select.cu", &["top_k", "top_p"], plain);
/// The plan of a call whose lengths only the device knows.
pub static PLAN: Kernel = kernel!("plan.cu", &["plan"], plain);
/// New rows to pages, with their boxes.
pub static WRITE: Kernel = kernel!("write.cu", &["append"], plain);
/// Copies between tiers.
pub static TRANSFER: Kernel = kernel!("transfer.cu", &["copy_items"], plain);
/// The same over K and V in eight bits: [`AttendCodesSpec::macros`].
pub static ATTEND_CODES: Kernel = kernel!("attend_pages.cu", &["attend_codes"], || {
    variants(AttendCodesSpec::all().map(|spec| spec.macros()), TWO_BLOCKS)
});
/// Lossless tiles, decoded to their places: [`ExpwSpec::macros`].
pub static EXPW: Kernel = kernel!("expw.cu", &["expw_decode"], || {
    variants(ExpwSpec::all().map(|spec| spec.macros()), MANY)
});
/// Clusters of keys: [`KMeansSpec::macros`].
pub static KMEANS: Kernel =
    kernel!("kmeans.cu", &["kmeans_targets", "kmeans_assign", "kmeans_update"], || {
        variants(KMeansSpec::all().map(|spec| spec.macros()), TWO_WIDE_BLOCKS)
    });
/// Column sums of attention probabilities: [`ColumnsSpec::macros`].
pub static COLUMNS: Kernel = kernel!("columns.cu", &["columns"], || {
    variants(ColumnsSpec::all().map(|spec| spec.macros()), THREE_BLOCKS)
});
/// Codes of eight and four bits.
pub static QUANT: Kernel = kernel!("quant.cu", &["quant_encode", "quant_decode"], plain);
/// Keys moved to other positions.
pub static ROPE: Kernel = kernel!("rope.cu", &["rope_shift"], plain);

/// Every kernel, with the variants of it that are tested.
pub static SHIPPED: [&Kernel; 19] = [
    &ATTEND_PAGES,
    &ATTEND_PREFILL,
    &ATTEND_PREFILL_HOPPER,
    &ATTEND_TREE,
    &MERGE,
    &SCORE,
    &TOKENS,
    &BOXED,
    &VOTE,
    &SELECT,
    &PLAN,
    &WRITE,
    &TRANSFER,
    &ATTEND_CODES,
    &EXPW,
    &KMEANS,
    &COLUMNS,
    &QUANT,
    &ROPE,
];
