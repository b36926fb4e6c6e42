//! What a store would gain for a model on this machine, and where it would not.

use kvist::policies::gain::{Rate, Rates, Tier, break_even_tokens};
use serde::Serialize;

use super::finding::Findings;
use super::links::Link;
use super::model::Model;
use crate::text::{count, time};

/// Tokens of the session that capacity is told in.
pub const SESSION_TOKENS: u64 = 8192;
/// Bytes that the store keeps of a block in memory beside the block.
const ENTRY: u64 = 128;
/// Largest record that a store takes unless told otherwise.
const RECORD_MAX: u64 = 64 << 20;
/// Largest segment of a store, which is a sixteenth of its room; one is kept free.
const SEGMENT_MAX: u64 = 256 << 20;

/// What is known of the model, the store and the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) model: &'a Model,
    pub(super) block_tokens: u32,
    pub(super) links: &'a [Link],
    /// Bytes before over bytes after lossless coding, and where that was seen.
    pub(super) ratio: Option<(f64, &'static str)>,
    /// Tokens that the engine computes in a second of prefill.
    pub(super) prefill: Option<f64>,
    pub(super) host_bytes: Option<u64>,
    pub(super) disk_bytes: Option<u64>,
}

/// What a store would gain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// Bytes of a token's keys and values.
    pub token_bytes: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Its bytes.
    pub block_bytes: u64,
    /// Bytes before over bytes after lossless coding.
    pub lossless_ratio: Option<f64>,
    /// Where that was seen: `directory`, or `made_up` for made-up normal numbers.
    pub lossless_ratio_from: Option<&'static str>,
    /// Tokens that the engine computes in a second, if given.
    pub prefill_rate: Option<f64>,
    /// Seconds to put a token into host memory: a copy and a checksum.
    pub store_token_s: f64,
    /// Where tokens can come from.
    pub ways: Vec<Way>,
}

/// Loading tokens from a tier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// `host` or `disk`.
    pub from: &'static str,
    /// `raw` or `lossless`.
    pub codec: &'static str,
    /// Seconds per token, on one core, one step after the other.
    pub token_s: f64,
    /// Seconds before the first byte; 0 where that was not measured.
    pub lookup_s: f64,
    /// Tokens loaded in a second: it helps engines that compute fewer.
    pub break_even_rate: f64,
    /// The shortest prefix that is loaded sooner than computed; `None` if the engine's rate is not
    /// given, and where loading is never sooner.
    pub break_even_tokens: Option<u64>,
    /// How many times as long computing takes, for long prefixes.
    pub speedup: Option<f64>,
    /// Tokens that the tier holds, if its size is given.
    pub capacity_tokens: Option<u64>,
}

impl Gain {
    /// `None` if memory was not measured.
    pub(super) fn of(known: &Known) -> Option<Gain> {
        let link = |name: &str| known.links.iter().find(|l| l.name == name);
        let (copy, checksum) = (link("copy")?.bytes_per_s, link("checksum")?.bytes_per_s);
        let token_bytes = known.model.token_bytes();
        let block_bytes = token_bytes * u64::from(known.block_tokens);
        let mut ways = vec![known.way(Path::host(copy))];
        if let (Some(read), Some(delay)) = (link("disk_read_batched"), link("disk_latency")) {
            let checked = in_turn([read.bytes_per_s, checksum]);
            ways.push(known.way(Path::disk("raw", checked, delay.seconds, None, 1.0)));
            if let (Some((ratio, _)), Some(decode)) = (known.ratio, link("decode")) {
                let decode = Some(decode.bytes_per_s);
                // The tier's rate is one of raw bytes, too.
                let raw = checked * ratio;
                ways.push(known.way(Path::disk("lossless", raw, delay.seconds, decode, ratio)));
            }
        }
        Some(Gain {
            token_bytes,
            block_tokens: known.block_tokens,
            block_bytes,
            lossless_ratio: known.ratio.map(|r| r.0),
            lossless_ratio_from: known.ratio.map(|r| r.1),
            prefill_rate: known.prefill,
            store_token_s: token_bytes as f64 / in_turn([copy, checksum]),
            ways,
        })
    }

    /// The way from disk that is fastest.
    #[must_use]
    pub fn disk(&self) -> Option<&Way> {
        let disk = self.ways.iter().filter(|w| w.from == "disk");
        disk.min_by(|a, b| a.token_s.total_cmp(&b.token_s))
    }

    /// Judges it.
    pub(super) fn judge(&self, model: &Model, out: &mut Findings) {
        if self.block_bytes > RECORD_MAX {
            let text = format!(
                "a block of {} tokens has {} bytes, a store takes {RECORD_MAX} at most",
                self.block_tokens, self.block_bytes
            );
            out.error("gain", text, "use smaller blocks");
        }
        let host = self.ways.iter().find(|w| w.from == "host");
        for (name, way) in [("host memory", host), ("disk", self.disk())] {
            if let Some(way) = way {
                self.judge_way(name, way, out);
            }
        }
        if let Some(raw) = self.disk().filter(|w| w.codec == "raw")
            && let Some(ratio) = self.lossless_ratio
        {
            let text = format!(
                "from disk, raw blocks come faster ({} tokens/s) than lossless ones; those take {ratio:.2} \
                 times less room",
                count(raw.break_even_rate)
            );
            out.ok("gain", text);
        }
        self.judge_model(model, out);
        let text = format!(
            "no gain for prompts that begin like no other: each of their tokens costs {} to store",
            time(self.store_token_s)
        );
        out.ok("gain", text);
    }

    fn judge_way(&self, name: &str, way: &Way, out: &mut Findings) {
        let loaded = format!("from {name} ({}) {} tokens/s", way.codec, count(way.break_even_rate));
        match (self.prefill_rate, way.break_even_tokens) {
            (None, _) => {
                let text = format!("{loaded}: it helps if the engine prefills slower than that");
                out.ok("gain", text);
            }
            (Some(prefill), Some(tokens)) => {
                let times = way.speedup.unwrap_or(1.0);
                let text = format!(
                    "{loaded}, computed {}: {times:.1} times sooner for long prefixes, sooner {}",
                    count(prefill),
                    self.from(tokens)
                );
                out.ok("gain", text);
            }
            (Some(prefill), None) => {
                let text = format!("{loaded}, computed {}: no gain", count(prefill));
                let advice = match way.from {
                    "disk" => "leave the disk out: what comes from there is computed sooner",
                    _ => "do not switch kvist on for this engine and model: computing is sooner",
                };
                out.warn("gain", text, advice);
            }
        }
    }

    /// A prefix is found in whole blocks.
    fn from(&self, tokens: u64) -> String {
        match tokens <= u64::from(self.block_tokens) {
            true => "from the first block on".to_owned(),
            false => format!("from {tokens} tokens on"),
        }
    }

    fn judge_model(&self, model: &Model, out: &mut Findings) {
        if model.window_layers > 0 {
            let text = format!(
                "{} of {} layers attend to a window: their older tokens are stored for nothing",
                model.window_layers, model.layers
            );
            let advice = "engines keep such layers apart; kvist.vllm does not serve models of several \
                          kinds of layers";
            out.warn("gain", text, advice);
        }
        if model.other_layers > 0 {
            let text = format!(
                "{} layers keep a state, or share another's keys and values: they are not stored",
                model.other_layers
            );
            out.warn(
                "gain",
                text,
                "what a layer keeps as a state of fixed size cannot be restored from keys and values",
            );
        }
    }
}

/// Rate of steps that follow one another.
fn in_turn<const N: usize>(rates: [f64; N]) -> f64 {
    rates.iter().map(|r| r.recip()).sum::<f64>().recip()
}

/// A way before it is weighed.
#[derive(Clone, Copy, Debug)]
struct Path {
    tier: Tier,
    codec: &'static str,
    /// Raw bytes in a second.
    rate: f64,
    lookup: f64,
    /// Raw bytes decoded in a second.
    decode: Option<f64>,
    /// Raw bytes per byte stored.
    ratio: f64,
}

impl Path {
    fn host(rate: f64) -> Path {
        Path { tier: Tier::Host, codec: "raw", rate, lookup: 0.0, decode: None, ratio: 1.0 }
    }

    fn disk(codec: &'static str, rate: f64, lookup: f64, decode: Option<f64>, ratio: f64) -> Path {
        Path { tier: Tier::Disk, codec, rate, lookup, decode, ratio }
    }
}

impl Known<'_> {
    fn way(&self, path: Path) -> Way {
        let token = self.model.token_bytes() as f64;
        let token_s = token / path.rate + path.decode.map_or(0.0, |d| token / d);
        let mut rates =
            Rates { prefill: self.prefill.map(per_second).unwrap_or_default(), ..Rates::default() };
        *rates.tier_mut(path.tier) = per_second(path.rate);
        rates.decode = path.decode.map(per_second).unwrap_or_default();
        Way {
            from: if path.tier == Tier::Host { "host" } else { "disk" },
            codec: path.codec,
            token_s,
            lookup_s: path.lookup,
            break_even_rate: token_s.recip(),
            break_even_tokens: break_even_tokens(&rates, path.tier, token, path.lookup, 0.0),
            speedup: self.prefill.map(|p| (p * token_s).recip()),
            capacity_tokens: self.capacity(path),
        }
    }

    fn capacity(&self, path: Path) -> Option<u64> {
        let block = self.model.token_bytes() * u64::from(self.block_tokens);
        let blocks = match path.tier {
            Tier::Host => self.host_bytes? / (block + ENTRY),
            _ => {
                let room = self.disk_bytes?;
                let room = room.saturating_sub((room / 16).min(SEGMENT_MAX));
                (room as f64 * path.ratio / block as f64) as u64
            }
        };
        Some(blocks * u64::from(self.block_tokens))
    }
}

fn per_second(amount: f64) -> Rate {
    // In thousands of seconds, so that slow rates keep their digits.
    Rate::of((amount * 1e3) as u64, 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &'static str, bytes_per_s: f64, seconds: f64) -> Link {
        let (what, limit_is) = (String::new(), "");
        Link {
            name,
            what,
            bytes_per_s,
            seconds,
            call_bytes: 0,
            repeats: 1,
            spread: 0.0,
            limit: None,
            limit_is,
        }
    }

    /// 2 layers, 1 KV head, 64 + 64 numbers of 2 bytes: 512 bytes a token, 8192 a block.
    fn gain(prefill: Option<f64>) -> Gain {
        let links = [
            link("copy", 1e9, 0.0),
            link("checksum", 4e9, 0.0),
            link("decode", 2e9, 0.0),
            link("disk_latency", 0.0, 0.001),
            link("disk_read_batched", 1e9, 0.0),
        ];
        let model = Model::parse("2,1,64,bf16").unwrap();
        let known = Known {
            model: &model,
            block_tokens: 16,
            links: &links,
            ratio: Some((1.6, "made_up")),
            prefill,
            host_bytes: Some(10 * (8192 + 128) + 8000),
            disk_bytes: Some(16 * 81920),
        };
        Gain::of(&known).unwrap()
    }

    fn close(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-9
    }

    #[test]
    fn times_are_those_of_a_hand() {
        let gain = gain(Some(100_000.0));
        assert_eq!((gain.token_bytes, gain.block_bytes), (512, 8192));
        // A copy of 512 ns and a checksum of 128 ns.
        assert!(close(gain.store_token_s, 640e-9));
        let [host, raw, lossless] = &gain.ways[..] else { panic!("{:?}", gain.ways) };
        assert!(close(host.token_s, 512e-9) && host.lookup_s == 0.0);
        assert!(close(host.break_even_rate, 1.0 / 512e-9));
        // Computed in 10 us: 19.5 times as long; every token is worth it.
        assert!(close(host.speedup.unwrap(), 10e-6 / 512e-9));
        assert_eq!(host.break_even_tokens, Some(1));
        // Read 512 ns, checksum 128 ns; 1 ms of delay is 1 ms / 9.36 us = 106.8 tokens.
        assert!(close(raw.token_s, 640e-9));
        assert_eq!(raw.break_even_tokens, Some(107));
        // 320 bytes read and checked in 400 ns, 512 decoded in 256 ns: 656 ns; 1 ms / 9.344 us = 107.02.
        assert!(close(lossless.token_s, 656e-9));
        assert_eq!(lossless.break_even_tokens, Some(108));
        assert_eq!(gain.disk().unwrap().codec, "raw");
    }

    #[test]
    fn capacity_is_in_whole_blocks() {
        let gain = gain(None);
        let capacity: Vec<u64> = gain.ways.iter().map(|w| w.capacity_tokens.unwrap()).collect();
        // Ten blocks; 15 x 10 blocks, one segment being kept; 1.6 times as many.
        assert_eq!(capacity, [160, 2400, 3840]);
        assert!(gain.ways.iter().all(|w| w.break_even_tokens.is_none() && w.speedup.is_none()));
    }

    fn judged(gain: &Gain, model: &Model) -> Vec<(&'static str, String)> {
        let mut out = Findings::default();
        gain.judge(model, &mut out);
        out.0.iter().map(|f| (f.level.name(), f.text.clone())).collect()
    }

    #[test]
    fn what_does_not_gain_is_said() {
        let mut model = Model::parse("2,1,64,bf16").unwrap();
        let lines = judged(&gain(None), &model);
        assert!(lines[1].1.contains("helps if the engine prefills slower"), "{lines:?}");
        // 1 million tokens a second: 1 us each, 512 ns from memory, 640 ns from disk.
        let lines = judged(&gain(Some(1e6)), &model);
        assert!(lines[0].1.contains("2.0 times sooner"), "{lines:?}");
        // 1.7 million: 588 ns; memory still gains, the disk does not.
        let lines = judged(&gain(Some(1.7e6)), &model);
        assert_eq!((lines[0].0, lines[1].0), ("ok", "warning"));
        assert!(lines[1].1.contains("no gain"), "{lines:?}");
        let lines = judged(&gain(Some(2e6)), &model);
        assert_eq!((lines[0].0, lines[1].0), ("warning", "warning"));
        model.window_layers = 1;
        model.other_layers = 3;
        let lines = judged(&gain(None), &model);
        assert!(
            lines.iter().any(|l| l.0 == "warning" && l.1.contains("1 of 2 layers")),
            "{lines:?}"
        );
        assert!(
            lines.iter().any(|l| l.0 == "warning" && l.1.contains("3 layers keep")),
            "{lines:?}"
        );
    }

    #[test]
    fn blocks_that_no_store_takes_are_an_error() {
        let model = Model::parse("128,64,512,f32").unwrap();
        let links = [link("copy", 1e9, 0.0), link("checksum", 1e9, 0.0)];
        let known = Known {
            model: &model,
            block_tokens: 16,
            links: &links,
            ratio: None,
            prefill: None,
            host_bytes: None,
            disk_bytes: None,
        };
        let gain = Gain::of(&known).unwrap();
        assert_eq!(judged(&gain, &model)[0].0, "error");
        assert!(Gain::of(&Known { links: &[], ..known }).is_none());
    }
}
