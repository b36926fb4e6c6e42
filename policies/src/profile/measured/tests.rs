use proptest::prelude::*;

use super::*;
use crate::Boxed;
use crate::profile::Missed;

const LEAST: usize = 81;

fn shape(layers: usize, kv_heads: usize) -> Shape {
    Shape { layers, q_heads: 2 * kv_heads, kv_heads, dim_k: 64 }
}

fn boxed(budget: usize) -> Select {
    Boxed::with_budget(budget).into()
}

fn stats(missed: &[(usize, f64)]) -> HeadStats {
    let missed = missed.iter().map(|&(tokens, mean)| Missed { tokens, mean }).collect();
    HeadStats { steps: 4, tokens: 4096, support: 40.0, windows: Vec::new(), missed }
}

fn window(recent: usize, worst: f64) -> Window {
    Window { sinks: 128, recent, mean: 0.999, worst }
}

fn made(stats: Vec<HeadStats>, budget: usize) -> Profile {
    let shape = shape(1, stats.len());
    Profile::measured("m", shape, &[stats], &boxed(budget), &Rules::default()).unwrap()
}

fn refused(stats: HeadStats) -> String {
    let made = Profile::measured("m", shape(1, 1), &[vec![stats]], &boxed(256), &Rules::default());
    made.unwrap_err().to_string()
}

#[test]
fn missed_mass_lies_between_its_points() {
    let s = stats(&[(100, 0.5), (200, 0.1)]);
    let at = [(0, 0.5), (100, 0.5), (150, 0.3), (200, 0.1), (4096, 0.0), (9999, 0.0)];
    for (tokens, missed) in at {
        assert!((s.missed_at(tokens) - missed).abs() < 1e-12, "{tokens}");
    }
    assert!((s.missed_at((200 + 4096) / 2) - 0.05).abs() < 1e-12);
}

#[test]
fn heads_get_what_they_need() {
    let (peaked, broad) = (stats(&[(LEAST, 0.01), (512, 0.0)]), stats(&[(LEAST, 0.9), (939, 0.1)]));
    let profile = made(vec![peaked, broad.clone(), broad], 653);
    let shares: Vec<f32> = profile.heads()[0]
        .iter()
        .map(|class| match class {
            Class::Select { share } => share * 653.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(shares.iter().map(|s| s.round() as usize).collect::<Vec<_>>(), [81, 939, 939]);
}

#[test]
fn classes_follow_the_rules() {
    let plain = stats(&[(LEAST, 0.2), (2048, 0.0)]);
    let streams = |windows| HeadStats { windows, ..plain.clone() };
    let flat = HeadStats { support: 513.0, ..plain.clone() };
    let heads = vec![
        streams(vec![window(896, 1.0), window(256, 0.991), window(128, 0.98)]),
        streams(vec![window(256, 0.98)]),
        streams(vec![window(1024, 1.0)]),
        HeadStats { tokens: 1535, ..streams(vec![window(256, 1.0)]) },
        flat.clone(),
        HeadStats { windows: vec![window(256, 0.995)], ..flat },
        plain.clone(),
    ];
    let profile = made(heads, 512);
    let stream = Class::Streaming { sinks: 128, recent: 256 };
    let row = &profile.heads()[0];
    assert_eq!((row[0], row[4], row[5]), (stream, Class::Dense, stream));
    for class in [row[1], row[2], row[3], row[6]] {
        assert!(matches!(class, Class::Select { .. }), "a window too weak, or too large");
    }
    let never = Rules { streaming: None, dense: None };
    let flat = HeadStats { support: 4000.0, windows: vec![window(128, 1.0)], ..plain };
    let profile = Profile::measured("m", shape(1, 1), &[vec![flat]], &boxed(512), &never);
    assert_eq!(profile.unwrap().heads()[0][0], Class::Select { share: 1.0 });
}

#[test]
fn strange_statistics_are_refused_or_harmless() {
    let good = stats(&[(LEAST, 0.2)]);
    let nan = f64::NAN;
    assert!(refused(HeadStats { support: nan, ..good.clone() }).contains("support"));
    assert!(refused(HeadStats { support: f64::INFINITY, ..good.clone() }).contains("support"));
    assert!(refused(stats(&[(LEAST, nan)])).contains("a mass must be 0 to 1, found NaN"));
    assert!(refused(stats(&[(LEAST, -0.5)])).contains("a mass"));
    assert!(refused(HeadStats { windows: vec![window(1, nan)], ..good.clone() }).contains("mass"));
    assert!(
        refused(HeadStats { windows: vec![window(0, 1.0)], ..good.clone() }).contains("recent")
    );
    assert!(refused(stats(&[])).contains("budgets measured"));
    assert!(refused(stats(&[(200, 0.1), (200, 0.1)])).contains("ascending"));
    assert!(refused(HeadStats { steps: 0, ..good.clone() }).contains("at least 1"));
    let text = "profile: statistics: expected 2 layers, found 1";
    let short =
        Profile::measured("m", shape(2, 1), &[vec![good.clone()]], &boxed(256), &Rules::default());
    assert_eq!(short.unwrap_err().to_string(), text);
    // A context shorter than the least budget, nothing missed anywhere, one point.
    for tokens in [1, 80, 81, 82] {
        let zero = HeadStats { tokens, support: 0.0, ..stats(&[(LEAST, 0.0)]) };
        assert_eq!(made(vec![zero; 3], 200).heads()[0], [Class::Select { share: 1.0 }; 3]);
    }
    let text = Profile::measured("m", shape(1, 1), &[vec![good]], &Select::Full, &Rules::default());
    assert_eq!(
        text.unwrap_err().to_string(),
        "full: budget must be a number of tokens, found none"
    );
}

fn any_head() -> impl Strategy<Value = HeadStats> {
    let points = prop::collection::vec((1usize..400, 0.0f64..1.0), 1..9);
    (points, 0.0f64..2000.0, 1usize..6000, prop::option::of((1usize..900, 0.98f64..1.0))).prop_map(
        |(points, support, tokens, stream)| {
            let (mut at, mut missed) = (0, Vec::new());
            for (wide, mean) in points {
                at += wide;
                missed.push(Missed { tokens: at, mean });
            }
            let windows = stream.map(|(recent, worst)| window(recent, worst));
            let windows = windows.into_iter().collect();
            HeadStats { steps: 3, tokens, support, windows, missed }
        },
    )
}

proptest! {
    /// Whatever was measured: the same budget in all, nobody below the least, the same each time, and by
    /// the same statistics never worse than equal shares where those are convex.
    #[test]
    fn budgets_are_kept_to_the_token(
        stats in prop::collection::vec(prop::collection::vec(any_head(), 3), 1..6),
        budget in 82usize..3000,
    ) {
        let shape = shape(stats.len(), 3);
        let (select, rules) = (boxed(budget), Rules::default());
        let profile = Profile::measured("m", shape, &stats, &select, &rules).unwrap();
        prop_assert_eq!(&profile, &Profile::measured("m", shape, &stats, &select, &rules).unwrap());
        prop_assert_eq!(&profile, &Profile::from_json(&profile.to_json()).unwrap());
        let same = vec![vec![Class::Select { share: 1.0 }; 3]; stats.len()];
        if profile.heads().iter().flatten().all(|c| matches!(c, Class::Select { .. })) {
            let plain = Profile::new("m", shape, same).unwrap().expected(&stats, &select).unwrap();
            let shared = profile.expected(&stats, &select).unwrap();
            prop_assert!(shared.missed <= plain.missed + 1e-9, "{shared:?} {plain:?}");
        }
        for asked in [budget, 600, 4001] {
            let Ok(selects) = profile.selects(&boxed(asked), &[]) else {
                let needs = |c: &Class| match *c {
                    Class::Streaming { sinks, recent } => Some(sinks + recent),
                    Class::Select { .. } => Some(LEAST),
                    Class::Dense => None,
                };
                let needs: Vec<usize> = profile.heads().iter().flatten().filter_map(needs).collect();
                prop_assert!(needs.iter().sum::<usize>() > asked * needs.len());
                continue;
            };
            let all = selects.iter().flatten();
            let read: Vec<usize> =
                all.filter(|s| **s != Select::Full).map(Select::floor_tokens).collect();
            let (sum, whole) = (read.iter().sum::<usize>(), asked * read.len());
            let some = selects.iter().flatten().any(|s| s.name() == "boxed");
            prop_assert!(sum == whole || (sum < whole && !some), "streams alone may read less");
            let boxes = selects.iter().flatten().filter(|s| s.name() == "boxed");
            prop_assert!(boxes.map(Select::floor_tokens).all(|t| t >= LEAST));
        }
        let again = profile.selects(&select, &[]).unwrap();
        let shares = profile.heads().iter().flatten().zip(again.iter().flatten());
        for (class, select) in shares {
            if let Class::Select { share } = class {
                prop_assert_eq!((share * budget as f32).round() as usize, select.floor_tokens());
            }
        }
    }
}
