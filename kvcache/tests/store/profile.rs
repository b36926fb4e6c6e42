//! Heads that are read in different ways beside one another, as a profile says.

use std::collections::BTreeSet;

use half::bf16;
use kvist::policies::{Class, DuoAttention, Shape, Streaming, TokenSelect};
use kvist::{
    AttendInfo, AttendOptions, Boxed, Cache, DType, Error, Geometry, Profile, Quest, Select,
    Sequence,
};
use proptest::prelude::*;

use crate::common::{DIM, GROUP, HEADS, ROW, Random, attend, cache, close, dense, masses, rows};

const STREAM: Class = Class::Streaming { sinks: 8, recent: 56 };

fn share(share: f32) -> Class {
    Class::Select { share }
}

fn shape() -> Shape {
    Shape { layers: 2, q_heads: HEADS * GROUP, kv_heads: HEADS, dim_k: DIM }
}

fn profile(heads: [[Class; HEADS]; 2]) -> Profile {
    Profile::new("tiny", shape(), heads.iter().map(|row| row.to_vec()).collect()).unwrap()
}

/// A stream beside a head with a small share; one that reads everything beside one with a large share.
fn mixed() -> Profile {
    profile([[STREAM, share(0.8)], [Class::Dense, share(1.7)]])
}

fn profiled(select: impl Into<Select>, profile: &Profile) -> Cache {
    Cache::builder(Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16))
        .host_bytes(64 << 20)
        .select(select.into())
        .profile(profile.clone())
        .threads(2)
        .build()
        .unwrap()
}

fn boxed(budget: usize) -> Select {
    Boxed { sinks: 4, recent: 32, ..Boxed::with_budget(budget) }.into()
}

fn filled(cache: &Cache, k: &[bf16]) -> Sequence {
    let mut s = cache.sequence();
    append(&mut s, k);
    s
}

fn append(s: &mut Sequence, k: &[bf16]) {
    (0..2).for_each(|layer| s.append(layer, &rows(k), &rows(k)).unwrap());
}

fn query(random: &mut Random) -> Vec<f32> {
    (0..HEADS * GROUP * DIM).map(|_| 2.0 * random.normal()).collect()
}

fn ask(s: &Sequence, layer: usize, q: &[f32]) -> (Vec<f32>, AttendInfo) {
    attend(s, layer, q, &AttendOptions { selected: true, ..AttendOptions::default() })
}

/// Equal but for the rounding of the kernel, whose parts depend on what else is in the call.
fn near(got: &[f32], want: impl IntoIterator<Item = f64>) -> bool {
    let each = |(&a, b): (&f32, f64)| (f64::from(a) - b).abs() < 0.02 * (1.0 + b.abs());
    got.iter().zip(want).all(each)
}

fn everything(s: &Sequence, q: &[f32]) -> Vec<(Vec<f32>, AttendInfo)> {
    (0..2).map(|layer| ask(s, layer, q)).collect()
}

#[test]
fn every_head_reads_what_its_class_says() {
    let mut random = Random(1);
    let (k, q) = (random.rows(700 * ROW, 2.0), query(&mut random));
    for select in [boxed(200), Quest { budget: 200, unit_tokens: 8 }.into()] {
        let s = filled(&profiled(select.clone(), &mixed()), &k);
        let first = ask(&s, 0, &q).1.selected.unwrap();
        let stream: Vec<u32> = (0..8).chain(644..700).collect();
        assert_eq!(first[0], stream);
        let second = ask(&s, 1, &q).1.selected.unwrap();
        assert_eq!(second[0], (0..700).collect::<Vec<u32>>());
        // 3 x 200 tokens less the stream's 64, as 8 to 17.
        for (chosen, tokens) in [(&first[1], 172), (&second[1], 364)] {
            let plain = filled(&cache(select.clone().with_budget(tokens), 64 << 20), &k);
            assert_eq!(chosen, &ask(&plain, 0, &q).1.selected.unwrap()[1], "{select:?}");
        }
    }
}

#[test]
fn other_selectors_pick_for_their_heads_alone() {
    let mut random = Random(10);
    let (k, q) = (random.rows(3000 * ROW, 2.0), query(&mut random));
    for name in ["twilight", "clusterkv", "retroinfer", "pqcache", "shadowkv", "infinigen"] {
        let select = Select::parse(name).unwrap();
        let fixed = select.budget().is_some();
        let select = if fixed { select.with_budget(1000) } else { select };
        let s = filled(&profiled(select, &mixed()), &k);
        let [first, second] = [0, 1].map(|layer| ask(&s, layer, &q).1.selected.unwrap());
        let stream: Vec<u32> = (0..8).chain(2944..3000).collect();
        assert_eq!(first[0], stream, "{name}");
        assert_eq!(second[0], (0..3000).collect::<Vec<u32>>(), "{name}");
        for chosen in [&first[1], &second[1]] {
            assert!((1..3000).contains(&chosen.len()), "{name} reads {}", chosen.len());
        }
    }
}

#[test]
fn outputs_and_infos_are_those_of_the_tokens_read() {
    let mut random = Random(2);
    let (k, q) = (random.rows(500 * ROW, 2.0), query(&mut random));
    let s = filled(&profiled(boxed(150), &mixed()), &k);
    for layer in 0..2 {
        let (out, info) = ask(&s, layer, &q);
        let selected = info.selected.unwrap();
        let read: Vec<u32> = selected.iter().map(|p| p.len() as u32).collect();
        assert_eq!(info.tokens_read, read);
        assert_eq!(info.bytes.kv, read.iter().map(|&n| u64::from(n)).sum::<u64>() * 4 * DIM as u64);
        // A head whose keys are summarised pays for that, the others do not.
        let plain = filled(&cache(boxed(150), 64 << 20), &k);
        let both = ask(&plain, layer, &q).1.bytes.summary;
        assert!(info.bytes.summary > 0 && info.bytes.summary * 2 <= both + both / 4);
        for head in 0..HEADS * GROUP {
            let p = masses(&k, 500, head, &q);
            let chosen: BTreeSet<u32> = selected[head / GROUP].iter().copied().collect();
            let covered: f64 = chosen.iter().map(|&t| p[t as usize]).sum();
            let want = (0..DIM).map(|c| {
                let value =
                    |t: u32| f64::from(k[t as usize * ROW + head / GROUP * DIM + c].to_f32());
                chosen.iter().map(|&t| p[t as usize] / covered * value(t)).sum()
            });
            assert!(near(&out[head * DIM..][..DIM], want));
        }
    }
    // Nothing is missed by a head that reads everything; of a stream nothing can be said.
    let bound = AttendOptions { bound: true, ..AttendOptions::default() };
    assert_eq!(attend(&s, 0, &q, &bound).1.missed_mass_bound, None);
    let bounds = attend(&s, 1, &q, &bound).1.missed_mass_bound.unwrap();
    assert!(bounds[..GROUP].iter().all(|&b| b == 0.0));
    for (i, &b) in bounds[GROUP..].iter().enumerate() {
        let p = masses(&k, 500, GROUP + i, &q);
        let chosen = &ask(&s, 1, &q).1.selected.unwrap()[1];
        let missed = 1.0 - chosen.iter().map(|&t| p[t as usize]).sum::<f64>();
        assert!(missed <= f64::from(b) + 1e-9, "{missed} {b}");
    }
}

#[test]
fn a_layer_of_dense_heads_is_dense_to_the_bit() {
    let mut random = Random(3);
    let (k, q) = (random.rows(600 * ROW, 2.0), query(&mut random));
    let all = profile([[Class::Dense; 2], [share(1.0), STREAM]]);
    let s = filled(&profiled(boxed(128), &all), &k);
    let full = filled(&cache(Select::Full, 64 << 20), &k);
    assert_eq!(ask(&s, 0, &q), ask(&full, 0, &q));
    assert!(close(&ask(&s, 0, &q).0, &dense(&k, &k, 600, &q)));
    // As long as a sequence is no longer than what each head reads anyway, so is every layer.
    let mut short = filled(&profiled(boxed(128), &all), &k[..60 * ROW]);
    assert_eq!(
        ask(&short, 1, &q),
        ask(&filled(&cache(Select::Full, 64 << 20), &k[..60 * ROW]), 1, &q)
    );
    // Then the stream leaves tokens out first.
    append(&mut short, &k[60 * ROW..100 * ROW]);
    assert_eq!(ask(&short, 1, &q).1.tokens_read, [100, 64]);
}

#[test]
fn only_heads_that_select_have_summaries() {
    let mut random = Random(4);
    let k = random.rows(640 * ROW, 2.0);
    let bytes = |s: &Sequence| s.stats().summary_bytes;
    let plain = filled(&cache(boxed(128), 64 << 20), &k);
    let s = filled(&profiled(boxed(128), &mixed()), &k);
    assert_eq!(bytes(&s) * 2, bytes(&plain));
    assert!(s.stats().overhead_bytes < plain.stats().overhead_bytes);
    assert_eq!(s.cache().stats().summary_bytes, bytes(&s));
    let none = profile([[STREAM, Class::Dense], [STREAM; 2]]);
    assert_eq!(bytes(&filled(&profiled(boxed(128), &none), &k)), 0);
    // A dense layer of the cache keeps none, whatever the profile says.
    let cache = Cache::builder(plain.cache().geometry().clone())
        .select(boxed(128))
        .profile(mixed())
        .dense_layers(&[1])
        .build()
        .unwrap();
    assert_eq!(bytes(&filled(&cache, &k)) * 4, bytes(&plain));
    drop((s, none));
}

/// Whatever is done to a sequence, it reads as one that was made at once.
#[test]
fn sequences_with_mixed_heads_grow_fork_and_shrink() {
    let mut random = Random(5);
    let (k, q) = (random.rows(900 * ROW, 2.0), query(&mut random));
    let cache = profiled(boxed(130), &mixed());
    let fresh = |tokens: usize| everything(&filled(&cache, &k[..tokens * ROW]), &q);
    let mut s = cache.sequence();
    for piece in k[..700 * ROW].chunks(37 * ROW) {
        append(&mut s, piece);
    }
    assert_eq!(everything(&s, &q), fresh(700));
    let mut fork = s.fork();
    assert_eq!(fork.profile(), Some(&mixed()));
    append(&mut fork, &k[700 * ROW..]);
    assert_eq!(everything(&fork, &q), fresh(900));
    for len in [897, 640, 611, 3] {
        fork.truncate(len).unwrap();
        assert_eq!(everything(&fork, &q), fresh(len), "cut to {len}");
    }
    assert_eq!(everything(&s, &q), fresh(700), "the first is as it was");
    drop((fork, s));
    assert_eq!(cache.stats().used_bytes, 0);
}

#[test]
fn forks_change_selector_and_profile() {
    let mut random = Random(6);
    let (k, q) = (random.rows(500 * ROW, 2.0), query(&mut random));
    let plain = filled(&cache(boxed(130), 64 << 20), &k);
    let other = profile([[share(1.2), STREAM], [STREAM, Class::Dense]]);
    for profile in [mixed(), other] {
        let want = everything(&filled(&profiled(boxed(130), &profile), &k), &q);
        let fork = plain.fork_profiled(&boxed(130), &profile).unwrap();
        assert_eq!((everything(&fork, &q), fork.profile()), (want.clone(), Some(&profile)));
        // To another profile, which wants summaries of other heads, and back to none.
        let again = fork.fork_profiled(&boxed(130), &mixed()).unwrap();
        let back = again.fork_profiled(&boxed(130), &profile).unwrap();
        assert_eq!(everything(&back, &q), want);
        let without = back.fork_with(&boxed(130)).unwrap();
        assert_eq!((everything(&without, &q), without.profile()), (everything(&plain, &q), None));
        let quest: Select = Quest { budget: 100, unit_tokens: 16 }.into();
        let quests = back.fork_profiled(&quest, &profile).unwrap();
        assert_eq!(
            everything(&quests, &q),
            everything(&filled(&profiled(quest, &profile), &k), &q)
        );
    }
    let full = plain.fork_profiled(&Select::Full, &mixed()).unwrap();
    assert_eq!(ask(&full, 0, &q).1.tokens_read, [64, 500]);
}

#[test]
fn batches_mix_sequences_with_and_without() {
    let mut random = Random(7);
    let (k, q) = (random.rows(500 * ROW, 2.0), query(&mut random));
    let plain = filled(&cache(boxed(130), 64 << 20), &k);
    let forks = [
        plain.fork_profiled(&boxed(130), &mixed()).unwrap(),
        plain.fork(),
        plain.fork_with(&Select::Full).unwrap(),
    ];
    let (width, rows) = (HEADS * GROUP * DIM, [3, HEADS * GROUP, DIM]);
    let all = q.repeat(3);
    let mut out = vec![0f32; 3 * width];
    let options = AttendOptions { selected: true, ..AttendOptions::default() };
    for layer in 0..2 {
        let infos = plain.cache().attend_batch(
            layer,
            &kvist::Tensor3::contiguous(&all, rows).unwrap(),
            &forks.iter().collect::<Vec<_>>(),
            &[1; 3],
            &options,
            &mut kvist::Tensor3Mut::contiguous(&mut out, rows).unwrap(),
        );
        for (i, info) in infos.unwrap().into_iter().enumerate() {
            let (alone, of_one) = ask(&forks[i], layer, &q);
            assert_eq!(info.selected, of_one.selected);
            assert!(near(&out[i * width..][..width], alone.iter().map(|&x| f64::from(x))));
        }
    }
}

#[test]
fn duoattention_streams_and_reads_the_rest() {
    let mut random = Random(8);
    let (k, q) = (random.rows(600 * ROW, 2.0), query(&mut random));
    let gates = vec![vec![0.9, 0.1], vec![0.2, 0.8]];
    let duo = Profile::duo("tiny", shape(), &gates, 0.5).unwrap();
    let s = filled(&profiled(DuoAttention::default(), &duo), &k);
    assert_eq!(ask(&s, 0, &q).1.tokens_read, [600, 384]);
    assert_eq!(ask(&s, 1, &q).1.tokens_read, [384, 600]);
    assert_eq!(s.stats().summary_bytes, 0);
    let picked = filled(&profiled(DuoAttention { budget: Some(400) }, &duo), &k);
    assert_eq!(ask(&picked, 0, &q).1.tokens_read, [416, 384]);
}

#[test]
fn what_does_not_fit_is_refused_with_names() {
    let build = |select: Select, profile: Profile, model: &str| {
        let geometry = Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16);
        let mut builder = Cache::builder(geometry).select(select).profile(profile);
        if !model.is_empty() {
            builder = builder.model(model);
        }
        builder.build().map(drop).map_err(|e| e.to_string())
    };
    build(boxed(128), mixed(), "").unwrap();
    build(boxed(128), mixed(), "org/Tiny").unwrap();
    assert_eq!(
        build(boxed(128), mixed(), "large").unwrap_err(),
        "the profile was made for model \"tiny\", this cache has \"large\""
    );
    let wider = Shape { layers: 3, ..shape() };
    let other = Profile::new("tiny", wider, vec![vec![share(1.0); HEADS]; 3]).unwrap();
    assert_eq!(
        build(boxed(128), other, "").unwrap_err(),
        "the profile was made for geometry 3 layers, 6 query and 2 KV heads of 32, this cache has 2 layers, \
         6 query and 2 KV heads of 32"
    );
    let tokens = build(TokenSelect::default().into(), mixed(), "").unwrap_err();
    assert!(tokens.contains("several heads or layers at once"), "{tokens}");
    let proven = build(Boxed::with_max_missed_mass(0.1).into(), mixed(), "").unwrap_err();
    assert!(proven.contains("cannot be proven"), "{proven}");
    let small = Boxed { recent: 63, sinks: 4, ..Boxed::with_budget(68) };
    let least = profile([[Class::Streaming { sinks: 4, recent: 200 }, share(1.0)], [STREAM; 2]]);
    let few = build(small.into(), least, "").unwrap_err();
    assert!(few.contains("budget must be at least 100 with this profile"), "{few}");
    let without = Cache::builder(Geometry::new(2, 6, 2, DIM, DType::Bf16));
    let error = without.select(DuoAttention::default().into()).build().unwrap_err();
    assert!(matches!(error, Error::Select(_)));
    assert!(error.to_string().contains("kvist calibrate"), "{error}");
}

fn any_class() -> impl Strategy<Value = Class> {
    prop_oneof![
        Just(Class::Dense),
        (0usize..60, 1usize..200).prop_map(|(sinks, recent)| Class::Streaming { sinks, recent }),
        (0.01f32..10.0).prop_map(share),
        (0.01f32..10.0).prop_map(share),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// The budget of all heads that are not dense is never exceeded, and a certificate holds beside dense heads.
    #[test]
    fn budgets_are_hard(
        seed in any::<u64>(),
        classes in prop::collection::vec(any_class(), 4),
        budget in 68usize..400,
        tokens in 1usize..700,
    ) {
        let mut random = Random(seed);
        let p = profile([[classes[0], classes[1]], [classes[2], classes[3]]]);
        let geometry = Geometry::new(2, HEADS * GROUP, HEADS, DIM, DType::Bf16);
        let built = Cache::builder(geometry).select(boxed(budget)).profile(p).threads(1).build();
        let open = || classes.iter().filter(|c| **c != Class::Dense);
        let stream = |c: &Class| match *c {
            Class::Streaming { sinks, recent } => sinks + recent,
            _ => 68,
        };
        let needed: usize = open().map(stream).sum();
        let Ok(cache) = built else {
            prop_assert!(needed > budget * open().count());
            return Ok(());
        };
        prop_assert!(needed <= budget * open().count());
        let (k, q) = (random.rows(tokens * ROW, 2.0), query(&mut random));
        let s = filled(&cache, &k);
        let mut sum = 0;
        for (layer, classes) in classes.chunks(HEADS).enumerate() {
            let info = ask(&s, layer, &q).1;
            for (class, (n, chosen)) in
                classes.iter().zip(info.tokens_read.iter().zip(info.selected.unwrap()))
            {
                prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]) && chosen.len() == *n as usize);
                match *class {
                    Class::Dense => prop_assert_eq!(*n as usize, tokens),
                    Class::Streaming { sinks, recent } => {
                        prop_assert_eq!(*n as usize, (sinks + recent).min(tokens));
                        sum += *n as usize;
                    }
                    _ => sum += *n as usize,
                }
            }
        }
        prop_assert!(sum <= budget * open().count());
    }
}

#[test]
fn a_streaming_head_reads_as_the_preset_does() {
    let mut random = Random(9);
    let (k, q) = (random.rows(300 * ROW, 2.0), query(&mut random));
    let s = filled(&profiled(boxed(128), &profile([[STREAM; 2], [STREAM; 2]])), &k);
    let preset = Streaming { sinks: 8, recent: 56 };
    let plain = filled(&cache(preset.into(), 64 << 20), &k);
    assert_eq!(everything(&s, &q), everything(&plain, &q));
}
