use super::*;
use crate::{Boxed, Quest, Select, Streaming};

fn shape(layers: usize, kv_heads: usize) -> Shape {
    Shape { layers, q_heads: 3 * kv_heads, kv_heads, dim_k: 64 }
}

const STREAM: Class = Class::Streaming { sinks: 4, recent: 96 };

fn share(share: f32) -> Class {
    Class::Select { share }
}

fn profile(heads: Vec<Vec<Class>>) -> Profile {
    Profile::new("org/Tiny-1B", shape(heads.len(), heads[0].len()), heads).unwrap()
}

fn tokens(selects: &[Vec<Select>]) -> Vec<usize> {
    selects.iter().flatten().map(Select::floor_tokens).collect()
}

fn boxed(budget: usize) -> Select {
    Boxed::with_budget(budget).into()
}

#[test]
fn a_profile_goes_through_json() {
    let p = profile(vec![vec![Class::Dense, STREAM], vec![share(0.5), share(1.75)]]);
    let text = p.to_json();
    assert_eq!(Profile::from_json(&text).unwrap(), p);
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        Profile::from_json(&text.replace(from, to)).unwrap_err().to_string()
    };
    assert!(
        refused("profile\": 1", "profile\": 2").starts_with("profile: expected version 1, found 2")
    );
    assert!(refused("\"share\": 0.5", "\"share\": 0").contains("share must be finite and above 0"));
    assert!(refused("\"share\": 0.5", "\"share\": 1e999").contains("profile: "));
    assert!(refused("\"share\": 0.5", "\"shares\": 1").contains("profile: "));
    assert!(refused("\"recent\": 96", "\"recent\": 0").contains("recent tokens"));
    assert!(refused("streaming", "steaming").contains("unknown variant `steaming`"));
    assert!(refused("\"layers\": 2", "\"layers\": 3").contains("expected 3 layers, found 2"));
    assert!(
        refused("\"q_heads\": 6", "\"q_heads\": 7")
            .contains("q_heads must be a multiple of kv_heads = 2, found 7")
    );
    assert!(refused("org/Tiny-1B", "").contains("model must be 1..=256 bytes"));
    for text in ["", "[", "{}", "null"] {
        let error = Profile::from_json(text).unwrap_err().to_string();
        assert!(error.starts_with("profile: "), "{error}");
    }
}

#[test]
fn other_models_and_shapes_are_named() {
    let p = profile(vec![vec![share(1.0); 2]; 3]);
    for model in ["org/Tiny-1B", "tiny-1b", "/models/TINY-1B"] {
        p.check(Some(model.as_bytes()), shape(3, 2)).unwrap();
    }
    p.check(None, shape(3, 2)).unwrap();
    let text = |model: Option<&str>, shape| {
        p.check(model.map(str::as_bytes), shape).unwrap_err().to_string()
    };
    assert_eq!(
        text(Some("big"), shape(3, 2)),
        "the profile was made for model \"org/Tiny-1B\", this cache has \"big\""
    );
    assert_eq!(
        text(None, shape(4, 2)),
        "the profile was made for geometry 3 layers, 6 query and 2 KV heads of 64, this cache has 4 layers, \
         6 query and 2 KV heads of 64"
    );
}

#[test]
fn budgets_are_shared_over_heads_and_layers() {
    let p = profile(vec![vec![Class::Dense, STREAM], vec![share(0.5), share(1.5)]]);
    // 3 x 300 tokens, of which the stream takes 100.
    let selects = p.selects(&boxed(300), &[]).unwrap();
    assert_eq!(tokens(&selects), [usize::MAX, 100, 200, 600]);
    assert_eq!(selects[0][1], Streaming { sinks: 4, recent: 96 }.into());
    // A dense layer takes its heads and their tokens out.
    let selects = p.selects(&boxed(300), &[true, false]).unwrap();
    assert_eq!(tokens(&selects), [usize::MAX, usize::MAX, 150, 450]);
    assert_eq!(tokens(&p.selects(&boxed(81), &[true, false]).unwrap())[2..], [81, 81]);
    let huge = p.selects(&boxed(usize::MAX), &[]).unwrap();
    assert!(tokens(&huge)[2] > 1 << 30 && huge[1][0] != Select::Full);
    // Without a fixed budget there is nothing to share.
    let full = p.selects(&Select::Full, &[]).unwrap();
    assert_eq!(tokens(&full), [usize::MAX, 100, usize::MAX, usize::MAX]);
    let mass = Select::Boxed(Boxed { top_p: Some(0.9), ..Boxed::default() });
    assert_eq!(p.selects(&mass, &[]).unwrap()[1], [mass.clone(), mass]);
    let quest: Select = Quest { budget: 64, ..Quest::default() }.into();
    assert_eq!(tokens(&p.selects(&quest, &[true]).unwrap())[2..], [32, 96]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let p = profile(vec![vec![STREAM, share(1.0)]]);
    let text = |select: &Select| p.selects(select, &[]).unwrap_err().to_string();
    assert_eq!(
        text(&boxed(90)),
        "boxed: budget must be at least 91 with this profile, for 1 streaming and 1 other heads, found 90"
    );
    assert_eq!(tokens(&p.selects(&boxed(91), &[]).unwrap()), [100, 82]);
    for name in ["tidaldecode", "tokenselect", "arkvale", "hshare", "dsa"] {
        assert!(text(&Select::parse(name).unwrap()).contains("several heads or layers"), "{name}");
    }
    assert!(text(&Boxed::with_max_missed_mass(0.1).into()).contains("cannot be proven"));
    let plain = profile(vec![vec![share(1.0)]]);
    plain.selects(&Boxed::with_max_missed_mass(0.1).into(), &[]).unwrap();
    assert!(p.selects(&boxed(10), &[]).unwrap_err().to_string().contains("sinks + recent"));
}

#[test]
fn duo_streams_the_lowest_gates() {
    let gates = vec![vec![0.1, 0.9], vec![0.1, 0.05]];
    let duo = |sparsity| Profile::duo("m", shape(2, 2), &gates, sparsity);
    let stream = Class::Streaming { sinks: 128, recent: 256 };
    let (full, all) = (share(1.0), vec![vec![stream; 2]; 2]);
    assert_eq!(duo(0.0).unwrap().heads(), vec![vec![full; 2]; 2]);
    assert_eq!(duo(0.5).unwrap().heads(), [[stream, full], [full, stream]]);
    assert_eq!(duo(0.75).unwrap().heads(), [[stream, full], [stream, stream]]);
    assert_eq!(duo(1.0).unwrap().heads(), all);
    for bad in [f64::NAN, -0.1, 1.1] {
        assert!(duo(bad).unwrap_err().to_string().contains("sparsity must be 0 to 1"));
    }
    let error =
        |gates: &[Vec<f64>]| Profile::duo("m", shape(2, 2), gates, 0.5).unwrap_err().to_string();
    assert_eq!(
        error(&[vec![0.0, f64::NAN], vec![0.0; 2]]),
        "profile: gates must be finite, found NaN"
    );
    assert_eq!(error(&[vec![0.0; 2]]), "profile: gates: expected 2 layers, found 1");
    assert_eq!(
        error(&[vec![0.0; 2], vec![0.0]]),
        "profile: gates of layer 1: expected 2 KV heads, found 1"
    );
}
