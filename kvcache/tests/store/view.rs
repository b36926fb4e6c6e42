//! Draft views: taken out, written, read, put in.

use half::bf16;
use kvist::policies::{MagicDec, SnapKv};
use kvist::{
    AttendInfo, AttendOptions, Boxed, Cache, DType, Error, Geometry, HeadView, Select, Sequence,
    View,
};
use serde_json::{Value, json};

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, rows};

const WIDTH: usize = HEADS * GROUP * DIM;
const PROMPT: usize = 400;

fn magicdec() -> Select {
    MagicDec { budget: 80, window: 8, pool: 3 }.into()
}

fn query(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n * WIDTH).map(|_| 2.0 * random.normal()).collect()
}

fn append(s: &mut Sequence, k: &[bf16]) {
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(k)).unwrap());
}

fn ask(s: &Sequence, layer: usize, q: &[f32]) -> AttendInfo {
    let options = AttendOptions { selected: true, ..AttendOptions::default() };
    attend(s, layer, q, &options).1
}

/// A prompt that was attended to.
fn prompted(cache: &Cache, random: &mut Random) -> Sequence {
    let mut s = cache.sequence();
    append(&mut s, &random.rows(PROMPT * ROW, 1.0));
    let q = query(random, 40);
    (0..2).for_each(|layer| drop(ask(&s, layer, &q)));
    s
}

/// One step of a draft: a token, and what each layer selects.
fn step(s: &mut Sequence, random: &mut Random) -> Vec<Vec<Vec<u32>>> {
    append(s, &random.rows(ROW, 1.0));
    let q = query(random, 1);
    (0..2).map(|layer| ask(s, layer, &q).selected.unwrap()).collect()
}

#[test]
fn a_view_drafts_elsewhere_as_it_did_here() {
    let mut random = Random(1);
    let cache_here = cache(magicdec(), 64 << 20);
    let s = prompted(&cache_here, &mut random);
    assert_eq!(s.view(), None, "nothing was drafted yet");
    let mut draft = s.fork();
    let read = step(&mut draft, &mut random.clone());
    let view = draft.view().unwrap();
    assert_eq!((view.len(), view.heads().len(), s.view()), (PROMPT, 2, None));
    for (heads, read) in view.heads().iter().zip(&read) {
        for (head, read) in heads.iter().zip(read) {
            let HeadView { from, positions } = head.clone().unwrap();
            assert_eq!((from as usize, positions.len()), (PROMPT - 8, 71));
            let all: Vec<u32> = positions.into_iter().chain(from..PROMPT as u32 + 1).collect();
            assert_eq!(&all, read);
        }
    }
    // Written and read, in a cache where nobody saw the prompt's queries.
    let text = serde_json::to_string(&view).unwrap();
    let back: View = serde_json::from_str(&text).unwrap();
    assert_eq!(back, view);
    let cache_there = cache(magicdec(), 64 << 20);
    let mut other = cache_there.sequence();
    append(&mut other, &Random(1).rows(PROMPT * ROW, 1.0));
    other.set_view(&back).unwrap();
    assert_eq!(step(&mut other, &mut random.clone()), read);
    assert_eq!(other.view().as_ref(), Some(&view));
    // A refused draft leaves it as it is, to the last token.
    other.truncate(PROMPT).unwrap();
    draft.truncate(PROMPT).unwrap();
    assert_eq!((other.view().as_ref(), draft.view().as_ref()), (Some(&view), Some(&view)));
    assert_eq!(step(&mut other, &mut random.clone()), read);
    // A fork has it; a shorter sequence does not.
    assert_eq!(other.fork().view(), Some(view));
    other.truncate(PROMPT - 1).unwrap();
    assert_eq!(other.view(), None);
}

#[test]
fn verified_queries_choose_the_next_view() {
    let mut random = Random(2);
    let cache = cache(magicdec(), 64 << 20);
    let mut s = prompted(&cache, &mut random);
    let mut first = s.fork();
    step(&mut first, &mut random);
    // Four drafts are verified, two of them refused.
    append(&mut s, &random.rows(4 * ROW, 1.0));
    let q = query(&mut random, 4);
    (0..2).for_each(|layer| drop(ask(&s, layer, &q)));
    s.truncate(PROMPT + 2).unwrap();
    let mut next = s.fork();
    let read = step(&mut next, &mut random);
    let (before, after) = (first.view().unwrap(), next.view().unwrap());
    assert_eq!((before.len(), after.len()), (PROMPT, PROMPT + 2));
    assert_ne!(before.heads(), after.heads());
    // The window holds the last eight queries that were seen, less the refused two.
    let from = |view: &View| view.heads()[0][0].as_ref().unwrap().from as usize;
    assert_eq!((from(&before), from(&after)), (PROMPT - 8, PROMPT - 4));
    assert!(read.iter().flatten().all(|head| head.len() == 80));
    // The old view serves as well, and is read whatever the budget.
    let wider = SnapKv { budget: 200, window: 8, pool: 3 };
    let mut old = s.fork_with(&wider.into()).unwrap();
    old.set_view(&before).unwrap();
    assert!(step(&mut old, &mut random).iter().flatten().all(|head| head.len() == 80 + 2));
}

#[test]
fn views_that_do_not_fit_are_refused() {
    let mut random = Random(3);
    let own = cache(magicdec(), 64 << 20);
    let mut draft = prompted(&own, &mut random).fork();
    step(&mut draft, &mut random);
    let view = draft.view().unwrap();

    let refused = |s: &mut Sequence, view: &View| {
        let before = s.view();
        let error = s.set_view(view).unwrap_err();
        assert_eq!(s.view(), before);
        error
    };
    let mut short = own.sequence();
    append(&mut short, &random.rows(399 * ROW, 1.0));
    let expected = Error::Length { what: "view", layer: 0, len: 399, found: PROMPT };
    assert_eq!(refused(&mut short, &view), expected);
    let mut boxed = draft.fork_with(&Boxed::with_budget(100).into()).unwrap();
    let text = refused(&mut boxed, &view).to_string();
    assert!(text.contains("choose once") && text.contains("layer 0 of select \"boxed\""), "{text}");
    let geometry = Geometry::new(3, HEADS * GROUP, HEADS, DIM, DType::Bf16);
    let deep = Cache::builder(geometry).select(magicdec()).build().unwrap();
    let text = refused(&mut deep.sequence(), &view).to_string();
    assert_eq!(text, "view must be of 3 layers, 2 KV heads, found of 2 layers, 2 KV heads");
    // Layers without a view need none.
    let geometry = Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16);
    let dense = Cache::builder(geometry).select(magicdec()).dense_layers(&[0]).build().unwrap();
    let mut s = dense.sequence();
    append(&mut s, &random.rows(PROMPT * ROW, 1.0));
    assert!(refused(&mut s, &view).to_string().contains("layer 0 of select \"magicdec\""));
    let upper = View::new(400, vec![vec![None; 2], view.heads()[1].clone()]).unwrap();
    s.set_view(&upper).unwrap();
    assert_eq!(s.view(), Some(upper));
}

#[test]
fn hostile_text_is_refused() {
    let head = |from: u64, positions: Value| json!({"from": from, "positions": positions});
    let text = |heads: Value| json!({"kvist_view": 1, "len": 100, "heads": heads}).to_string();
    let problem = |text: &str| serde_json::from_str::<View>(text).unwrap_err().to_string();
    let good = text(json!([[head(90, json!([0, 5, 89])), null], [null, head(0, json!([]))]]));
    let view: View = serde_json::from_str(&good).unwrap();
    let again: Value = serde_json::to_value(&view).unwrap();
    assert_eq!(again, serde_json::from_str::<Value>(&good).unwrap());

    let in_layer = |positions: Value| problem(&text(json!([[null], [head(90, positions)]])));
    let text_of = in_layer(json!([3, 3]));
    let want = "view must be of ascending positions below 90 in layer 1, found 3 before 3";
    assert_eq!(text_of, want);
    assert!(in_layer(json!([7, 6])).contains("7 before 6"));
    assert!(in_layer(json!([5, 90])).contains("90 before 90"));
    assert!(in_layer(json!([-1])).contains("invalid value"));
    assert!(in_layer(json!([4_294_967_296u64])).contains("invalid value"));
    let behind = problem(&text(json!([[head(101, json!([]))]])));
    assert_eq!(behind, "view must be from at most 100, its length, in layer 0, found 101");
    let ragged = problem(&text(json!([[null, null], [null]])));
    assert_eq!(ragged, "view must be of 2 KV heads, as in layer 0, in layer 1, found 1");
    assert!(problem(&good.replace("\"kvist_view\":1", "\"kvist_view\":2")).contains("must be 1"));
    assert!(problem(&good.replace("len", "length")).contains("unknown field"));
    assert!(problem("{}").contains("missing field"));
    assert!(problem("[[[[[[").contains("at line 1"));
}
