//! The shape of a model's keys and values: given, or read from its configuration.

use std::fmt;
use std::path::Path;

use kvist::format::{AttentionKind, BlockDType, BlockLayout};
use serde::Serialize;
use serde_json::{Map, Value};

use super::gguf;
use crate::Error;

/// What a token's keys and values take, in which layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Where the shape comes from.
    pub source: String,
    /// Layers with keys and values of their own.
    pub layers: u32,
    /// Of them, layers that attend to a window only.
    pub window_layers: u32,
    /// Layers that keep a state of fixed size instead, or read another layer's keys and values.
    pub other_layers: u32,
    /// KV heads of a layer; 1 if one latent row serves all.
    pub kv_heads: u32,
    /// Elements of a key row.
    pub dim_k: u32,
    /// Elements of a value row; 0 if values are part of the keys.
    pub dim_v: u32,
    /// Element type.
    #[serde(serialize_with = "name")]
    pub dtype: BlockDType,
    /// What was assumed, as the configuration does not say.
    pub assumed: Vec<String>,
}

fn name<S: serde::Serializer>(dtype: &BlockDType, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(dtype.name())
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Model { layers, kv_heads, dim_k, dim_v, dtype, .. } = self;
        write!(f, "{layers} layers x {kv_heads} KV heads x ({dim_k} + {dim_v}) {}", dtype.name())
    }
}

impl Model {
    /// From `layers,kv_heads,head_dim,dtype`.
    ///
    /// # Errors
    /// [`Error::BadValue`] saying what is wrong.
    pub fn parse(text: &str) -> Result<Model, Error> {
        let bad = |expected: String| Error::BadValue {
            flag: "geometry".to_owned(),
            expected,
            found: text.to_owned(),
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let shape = "layers,kv_heads,head_dim,dtype, such as 32,8,128,bf16";
        let [layers, kv_heads, dim, dtype] = parts[..] else { return Err(bad(shape.to_owned())) };
        let number = |what: &str, n: &str| {
            n.parse::<u32>().map_err(|_| bad(format!("a whole number for {what} ({shape})")))
        };
        let dtype = dtype_named(dtype).ok_or_else(|| {
            bad(format!("one of {} for dtype", BlockDType::ALL.map(BlockDType::name).join(", ")))
        })?;
        let dim = number("head_dim", dim)?;
        let model = Model {
            source: "given".to_owned(),
            layers: number("layers", layers)?,
            window_layers: 0,
            other_layers: 0,
            kv_heads: number("kv_heads", kv_heads)?,
            dim_k: dim,
            dim_v: dim,
            dtype,
            assumed: Vec::new(),
        };
        model.layout(1).validate().map_err(|e| bad(e.to_string()))?;
        Ok(model)
    }

    /// From a model's directory (its `config.json`, or its one `.gguf` file), a `config.json`, or a
    /// `.gguf` file.
    ///
    /// # Errors
    /// [`Error::Model`] saying what is wrong.
    pub fn read(path: &Path) -> Result<Model, Error> {
        let file = if path.is_dir() { file_in(path)? } else { path.to_owned() };
        let read = match file.extension().and_then(|e| e.to_str()) {
            Some("gguf") => gguf::read(&file),
            _ => std::fs::read_to_string(&file).map_err(|e| e.to_string()).and_then(|t| config(&t)),
        };
        let model = read.map_err(|problem| bad(&file, problem))?;
        let model = Model { source: file.display().to_string(), ..model };
        model.layout(1).validate().map_err(|e| bad(&file, e.to_string()))?;
        Ok(model)
    }

    /// Bytes of a token's keys and values in all layers that have any.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        let row = u64::from(self.dim_k + self.dim_v) * self.dtype.size() as u64;
        u64::from(self.layers) * u64::from(self.kv_heads) * row
    }

    /// Blocks of so many tokens.
    #[must_use]
    pub fn layout(&self, block_tokens: u32) -> BlockLayout {
        let attention = if self.dim_v == 0 { AttentionKind::Latent } else { AttentionKind::Full };
        BlockLayout {
            dim_v: self.dim_v,
            attention,
            ..BlockLayout::new(self.dtype, block_tokens, self.layers, self.kv_heads, self.dim_k)
        }
    }
}

fn bad(path: &Path, problem: impl fmt::Display) -> Error {
    Error::Model { path: path.display().to_string(), problem: problem.to_string() }
}

fn file_in(dir: &Path) -> Result<std::path::PathBuf, Error> {
    let config = dir.join("config.json");
    if config.is_file() {
        return Ok(config);
    }
    let entries = dir.read_dir().map_err(|e| bad(dir, e))?.flatten().map(|e| e.path());
    let found: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    match &found[..] {
        [one] => Ok(one.clone()),
        many => {
            let text =
                format!("expected config.json or one .gguf file, found {} of them", many.len());
            Err(bad(dir, text))
        }
    }
}

/// A type as kvist, torch or transformers name it.
fn dtype_named(name: &str) -> Option<BlockDType> {
    let name = name.strip_prefix("torch.").unwrap_or(name);
    let ours = match name {
        "float32" | "float" => "f32",
        "float16" | "half" => "f16",
        "bfloat16" => "bf16",
        "fp8" | "fp8_e4m3" | "float8_e4m3fn" => "fp8-e4m3",
        "fp8_e5m2" | "float8_e5m2" => "fp8-e5m2",
        other => other,
    };
    BlockDType::ALL.into_iter().find(|d| d.name() == ours)
}

/// Names that models have for the same things.
const LAYERS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
const HEADS: [&str; 4] = ["num_attention_heads", "n_head", "num_heads", "n_heads"];
const KV_HEADS: [&str; 3] = ["num_key_value_heads", "num_kv_heads", "n_head_kv"];
const HIDDEN: [&str; 3] = ["hidden_size", "n_embd", "d_model"];

/// The shape in a `config.json` of transformers.
fn config(text: &str) -> Result<Model, String> {
    let all: Value = serde_json::from_str(text).map_err(|e| format!("no JSON: {e}"))?;
    let all = all.as_object().ok_or("expected an object")?;
    // A model of text and more keeps the text's shape apart.
    let inner = ["text_config", "llm_config", "language_config"];
    let of = inner.iter().find_map(|name| all.get(*name)?.as_object()).unwrap_or(all);
    let mut assumed = Vec::new();
    let layers = number(of, &LAYERS)?.ok_or_else(|| missing(&LAYERS))?;
    let (dim_k, dim_v, kv_heads) = match number(of, &["kv_lora_rank"])? {
        Some(rank) => (rank + number(of, &["qk_rope_head_dim"])?.unwrap_or(0), 0, 1),
        None => {
            let (dim, heads) = heads(of)?;
            (dim, number(of, &["v_head_dim"])?.unwrap_or(dim), heads)
        }
    };
    if dim_v == 0 {
        let text = "one latent row per token and layer, as engines keep it; transformers' own cache \
                    keeps whole keys and values";
        assumed.push(text.to_owned());
    }
    let dtype = ["dtype", "torch_dtype"].iter().find_map(|n| of.get(*n).or(all.get(*n))?.as_str());
    let dtype = match dtype {
        Some(name) => dtype_named(name).ok_or_else(|| format!("unknown dtype {name:?}"))?,
        None => {
            assumed.push("bf16: the configuration names no dtype".to_owned());
            BlockDType::Bf16
        }
    };
    let kinds = Kinds::of(of, layers)?;
    Ok(Model {
        source: String::new(),
        layers: kinds.full + kinds.window,
        window_layers: kinds.window,
        other_layers: layers.saturating_sub(kinds.full + kinds.window),
        kv_heads,
        dim_k,
        dim_v,
        dtype,
        assumed,
    })
}

/// Head dimension and KV heads.
fn heads(of: &Map<String, Value>) -> Result<(u32, u32), String> {
    let heads = number(of, &HEADS)?.ok_or_else(|| missing(&HEADS))?;
    let dim = match number(of, &["head_dim"])? {
        Some(dim) => dim,
        None => {
            let hidden = number(of, &HIDDEN)?.ok_or_else(|| missing(&HIDDEN))?;
            hidden.checked_div(heads).ok_or("expected query heads, found 0")?
        }
    };
    let shared = of.get("multi_query").and_then(Value::as_bool) == Some(true);
    let own = number(of, &KV_HEADS)?.unwrap_or(if shared { 1 } else { heads });
    Ok((dim, own))
}

/// Layers that attend to everything, and to a window.
struct Kinds {
    full: u32,
    window: u32,
}

impl Kinds {
    fn of(of: &Map<String, Value>, layers: u32) -> Result<Kinds, String> {
        let shared = number(of, &["num_kv_shared_layers"])?.unwrap_or(0).min(layers);
        let own = (layers - shared) as usize;
        if let Some(types) = of.get("layer_types").and_then(Value::as_array) {
            let named = |word: &str| {
                let is = |t: &&Value| t.as_str().is_some_and(|t| t.contains(word));
                types.iter().take(own).filter(is).count() as u32
            };
            return Ok(Kinds {
                full: named("full_attention"),
                window: named("sliding_attention") + named("chunked_attention"),
            });
        }
        let windowed = of.get("sliding_window").is_some_and(|w| w.as_u64().is_some_and(|w| w > 0))
            && of.get("use_sliding_window").and_then(Value::as_bool) != Some(false);
        let own = own as u32;
        let full = match number(of, &["sliding_window_pattern"])? {
            Some(every) if windowed && every > 0 => own / every,
            _ if windowed => 0,
            _ => own,
        };
        Ok(Kinds { full, window: own - full })
    }
}

fn number(of: &Map<String, Value>, names: &[&str]) -> Result<Option<u32>, String> {
    let Some((name, value)) =
        names.iter().find_map(|n| Some((n, of.get(*n).filter(|v| !v.is_null())?)))
    else {
        return Ok(None);
    };
    let n = value.as_u64().filter(|&n| n <= 1 << 20);
    n.map(|n| Some(n as u32))
        .ok_or_else(|| format!("{name}: expected a whole number up to 1048576, found {value}"))
}

fn missing(names: &[&str]) -> String {
    format!("expected {}, found none", names.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Folder;
    use super::*;

    fn shape(m: &Model) -> (u32, u32, u32, u32, u32, &'static str) {
        (m.layers, m.window_layers, m.kv_heads, m.dim_k, m.dim_v, m.dtype.name())
    }

    #[test]
    fn shapes_are_given_in_a_line() {
        let model = Model::parse("32, 8,128,bf16").unwrap();
        assert_eq!(shape(&model), (32, 0, 8, 128, 128, "bf16"));
        assert_eq!(model.token_bytes(), 131_072, "2 x 32 x 8 x 128 x 2 bytes");
        for (text, word) in [
            ("32,8,128", "layers,kv_heads,head_dim,dtype"),
            ("32,8,128,bf16,1", "layers,kv_heads"),
            ("x,8,128,bf16", "for layers"),
            ("32,-8,128,bf16", "for kv_heads"),
            ("32,8,128,int3", "fp8-e4m3"),
            ("0,8,128,bf16", "layers"),
            ("32,8,100000,bf16", "dim_k"),
            ("1048576,1048576,576,f32", "block layout"),
            ("", "such as 32,8,128,bf16"),
        ] {
            let e = Model::parse(text).unwrap_err().to_string();
            assert!(e.contains("--geometry") && e.contains(word), "{text}: {e}");
        }
    }

    #[test]
    fn configurations_of_many_models_are_read() {
        let llama = r#"{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "hidden_size": 4096, "torch_dtype": "bfloat16"}"#;
        assert_eq!(shape(&config(llama).unwrap()), (32, 0, 8, 128, 128, "bf16"));
        let gpt2 = r#"{"n_layer": 12, "n_head": 12, "n_embd": 768}"#;
        let gpt2 = config(gpt2).unwrap();
        assert_eq!((shape(&gpt2), gpt2.assumed.len()), ((12, 0, 12, 64, 64, "bf16"), 1));
        let falcon = r#"{"num_hidden_layers": 2, "num_attention_heads": 71, "hidden_size": 4544,
            "multi_query": true, "dtype": "float16"}"#;
        assert_eq!(shape(&config(falcon).unwrap()), (2, 0, 1, 64, 64, "f16"));
        let gemma = r#"{"dtype": "bfloat16", "text_config": {"num_hidden_layers": 6, "num_attention_heads": 4,
            "num_key_value_heads": 1, "head_dim": 256, "hidden_size": 640, "sliding_window": 512,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                            "linear_attention", "sliding_attention", "full_attention"]}}"#;
        let gemma = config(gemma).unwrap();
        assert_eq!((shape(&gemma), gemma.other_layers), ((5, 3, 1, 256, 256, "bf16"), 1));
        let deepseek = r#"{"num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512,
            "qk_rope_head_dim": 64, "torch_dtype": "bfloat16"}"#;
        let deepseek = config(deepseek).unwrap();
        assert_eq!(
            (shape(&deepseek), deepseek.token_bytes()),
            ((61, 0, 1, 576, 0, "bf16"), 70_272)
        );
        let mistral = r#"{"num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 64,
            "sliding_window": 4096}"#;
        assert_eq!(config(mistral).unwrap().window_layers, 4);
        let qwen = mistral.replace("4096}", "4096, \"use_sliding_window\": false}");
        assert_eq!(config(&qwen).unwrap().window_layers, 0);
    }

    #[test]
    fn what_is_no_configuration_is_said() {
        for (text, word) in [
            ("", "no JSON"),
            ("[]", "expected an object"),
            ("{}", "num_hidden_layers"),
            (r#"{"num_hidden_layers": 2}"#, "num_attention_heads"),
            (r#"{"num_hidden_layers": -1}"#, "found -1"),
            (r#"{"num_hidden_layers": 1e99}"#, "whole number"),
            (r#"{"num_hidden_layers": 2, "num_attention_heads": 0, "hidden_size": 8}"#, "found 0"),
            (r#"{"n_layer": 2, "n_head": 2, "n_embd": 8, "dtype": "q4"}"#, "unknown dtype"),
        ] {
            let e = config(text).unwrap_err();
            assert!(e.contains(word), "{text}: {e}");
        }
        let folder = Folder::new("model");
        let e = Model::read(&folder.0).unwrap_err().to_string();
        assert!(e.contains("expected config.json or one .gguf file, found 0"), "{e}");
        let e = Model::read(&folder.0.join("nothing.json")).unwrap_err().to_string();
        assert!(e.contains("nothing.json") && e.contains("No such file"), "{e}");
        folder.write("config.json", r#"{"n_layer": 2, "n_head": 2, "n_embd": 4096}"#);
        let e = Model::read(&folder.0).unwrap_err().to_string();
        assert!(e.contains("dim_k must be"), "{e}");
    }
}
