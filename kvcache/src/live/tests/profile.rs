//! Heads that are read in different ways, over two tiers.

use kvist_policies::{Class, Profile, Shape};

use super::*;

fn mixed() -> Profile {
    let shape = Shape { layers: LAYERS, q_heads: HEADS * GROUP, kv_heads: HEADS, dim_k: DIM };
    let (stream, share) =
        (Class::Streaming { sinks: 4, recent: 100 }, |share| Class::Select { share });
    let heads = vec![vec![stream, share(1.5)], vec![Class::Dense, share(0.8)]];
    Profile::new("tiny", shape, heads).unwrap()
}

/// What is not in memory is brought for the heads that read it, and the result is that of one that is
/// all in memory and picks whole pages, too.
#[test]
fn pages_that_left_come_back_for_the_heads_that_read_them() {
    for select in [&selects()[1], &selects()[2]] {
        let memory = Memory::new(Faults { delay: 3, ..Faults::default() }, 7);
        let below = Arc::new(Handle(memory.clone()));
        let cache = builder(select, 400 << 10, 64).profile(mixed()).below(below).build().unwrap();
        let all = Arc::new(Handle(Memory::new(Faults::default(), 1)));
        let roomy = builder(select, 64 << 20, 64).profile(mixed()).below(all).build().unwrap();
        let mut random = Random(31);
        let [s, twin] = filled([&cache, &roomy], 1500, &mut random);
        s.offload().unwrap();
        let options = AttendOptions { selected: true, bound: true, ..AttendOptions::default() };
        for _ in 0..4 {
            let q = query(&mut random, 1);
            for layer in 0..LAYERS {
                let (out, info) = attend(&s, layer, &q, &options).unwrap();
                let (want, of_twin) = attend(&twin, layer, &q, &options).unwrap();
                assert!(near(&out, &want));
                assert_eq!((&info.selected, &info.bytes), (&of_twin.selected, &of_twin.bytes));
                let selected = info.selected.unwrap();
                let read = |head: usize| selected[head].len();
                match layer {
                    // The stream's pages, whole: the first, and those of the last hundred tokens.
                    0 => assert!(read(0) < 64 + 100 + 64 && info.missed_mass_bound.is_none()),
                    _ => {
                        assert_eq!(read(0), 1500);
                        let bounds = info.missed_mass_bound.unwrap();
                        assert!(bounds[..GROUP].iter().all(|&b| b == 0.0));
                        assert!(bounds[GROUP..].iter().all(|&b| b > 0.0));
                    }
                }
            }
        }
        assert!(cache.stats().below_read_bytes > 0);
        drop((s, twin));
        nothing_left(&cache, &memory);
    }
}
