//! Profiles of heads whose attention is known.

use half::bf16;
use kvist::policies::{Class, DuoAttention};

use super::*;
use crate::Rng;

const TOKENS: usize = 700;
const QUERIES: usize = 12;
const DIM: usize = 16;
const BUDGET: usize = 160;

/// Two layers of two KV heads, a query head each. All queries of the first see the first key alone, the second
/// sees all keys alike; of the others the logits have this standard deviation.
fn dump() -> Dump {
    let mut random = Rng::new(3);
    let mut normal =
        |n: usize, scale: f32| -> Vec<f32> { (0..n).map(|_| scale * random.normal()).collect() };
    let deviations: [[Option<f32>; 2]; 2] = [[None, Some(0.0)], [Some(5.0), Some(2.5)]];
    let sink = |of: f32| (0..DIM).map(move |i| if i == 0 { of } else { 0.0 });
    let (mut k, mut v, mut q) = (Vec::new(), Vec::new(), Vec::new());
    for layer in deviations {
        for token in 0..TOKENS {
            for head in layer {
                match head {
                    None => k.extend(sink(if token == 0 { 32.0 } else { 0.0 })),
                    Some(_) => k.extend(normal(DIM, 1.0)),
                }
                v.extend(normal(DIM, 1.0));
            }
        }
        for _ in 0..QUERIES {
            for head in layer {
                match head {
                    None => q.extend(sink(8.0)),
                    Some(deviation) => q.extend(normal(DIM, deviation)),
                }
            }
        }
    }
    let rounded = |x: Vec<f32>| x.into_iter().map(bf16::from_f32).collect();
    Dump {
        model: "made".to_owned(),
        layers: vec![3, 5],
        q_heads: 2,
        kv_heads: 2,
        dim_k: DIM,
        dim_v: DIM,
        tokens: TOKENS,
        queries: QUERIES,
        scale: 0.25,
        soft_cap: 0.0,
        k: rounded(k),
        v: rounded(v),
        q,
    }
}

fn made(how: &Calibration) -> Calibrated {
    let mut told = Vec::new();
    let how = how.measurable().unwrap();
    let made = of_dump(&dump(), &how, |done, of| told.push((done, of))).unwrap();
    assert_eq!(told, [(1, 2), (2, 2)]);
    made
}

#[test]
fn heads_are_read_as_they_attend() {
    let how = Calibration::new(Boxed::with_budget(BUDGET).into());
    let Calibrated { profile, report } = made(&how);
    let [[first, second], [narrow, broad]] = [0, 1].map(|l| [0, 1].map(|h| profile.heads()[l][h]));
    assert_eq!((first, second), (Class::Streaming { sinks: 16, recent: 112 }, Class::Dense));
    let share = |class| match class {
        Class::Select { share } => share,
        other => panic!("expected a share, found {other:?}"),
    };
    assert!(share(broad) > share(narrow), "{broad:?} {narrow:?}");
    // Three heads have a budget, of which the stream takes 128.
    let tokens: Vec<usize> = report.heads.iter().map(|h| h.tokens).collect();
    assert_eq!(tokens[0] + tokens[2] + tokens[3], 3 * BUDGET);
    assert_eq!((report.steps, report.heads[3].layer, report.heads[1].after), (QUERIES, 5, 0.0));
    assert!(report.gains(), "{report}");
    assert!(report.to_string().contains("(streaming)"), "{report}");
    let of_all = report.heads.iter().map(|h| h.after).sum::<f64>() / 4.0;
    assert!((report.after.missed - of_all).abs() < 1e-12);
    // The same file gives the same profile, under the name that is wanted.
    let again = made(&Calibration { model: Some("other".to_owned()), ..how }).profile;
    assert_eq!((again.heads(), again.model()), (profile.heads(), "other"));
}

#[test]
fn duoattention_streams_the_head_that_a_window_covers_best() {
    let sparsity = Some(0.25);
    for select in [DuoAttention { budget: Some(500) }.into(), Boxed::with_budget(500).into()] {
        let profile = made(&Calibration { sparsity, ..Calibration::new(select) }).profile;
        let whole = Class::Select { share: 1.0 };
        let stream = Class::Streaming { sinks: 128, recent: 256 };
        assert_eq!(profile.heads(), [[stream, whole], [whole; 2]]);
    }
    let half = Calibration::new(DuoAttention { budget: Some(500) }.into());
    let streams = |c: &&Class| matches!(c, Class::Streaming { .. });
    assert_eq!(made(&half).profile.heads().iter().flatten().filter(streams).count(), 2);
}

#[test]
fn what_cannot_be_calibrated_is_said_first() {
    let nowhere = Path::new("/nonexistent/file.kvdump");
    let refused = |select: Select| {
        calibrate(nowhere, &Calibration::new(select), |_, _| ()).unwrap_err().to_string()
    };
    assert_eq!(refused(Select::Full), "full: budget must be a number of tokens, found none");
    assert!(refused(DuoAttention::default().into()).contains("budget"));
    assert!(refused(Boxed::with_budget(500).into()).contains("/nonexistent/file.kvdump"));
    let never = |_: usize, _: usize| panic!("nothing is measured");
    for how in [
        Calibration::new(kvist::policies::TokenSelect::default().into()),
        Calibration { sparsity: Some(1.5), ..Calibration::new(Boxed::with_budget(500).into()) },
        Calibration { model: Some(String::new()), ..Calibration::new(Boxed::default().into()) },
    ] {
        assert!(matches!(of_dump(&dump(), &how, never), Err(Error::Policy(_))));
    }
}
