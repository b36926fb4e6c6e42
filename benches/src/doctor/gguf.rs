//! The shape of a model from the header of a GGUF file (llama.cpp's format, versions 2 and 3).
//! Source: the specification in ggml's `docs/gguf.md`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use kvist::format::BlockDType;

use super::model::Model;

/// Longest text that is kept; longer ones are skipped. No name or shape needs more.
const TEXT_MAX: u64 = 1 << 16;
/// Most entries of a header, and most elements of its arrays together: a vocabulary has some 100,000.
const ENTRIES_MAX: u64 = 1 << 20;
const ELEMENTS_MAX: u64 = 1 << 26;

/// A value, as far as it matters.
#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
    Other,
}

/// The shape, or what is wrong with the file.
pub(super) fn read(path: &Path) -> Result<Model, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    model(&header(BufReader::new(file))?)
}

fn model(all: &HashMap<String, Entry>) -> Result<Model, String> {
    let name = "general.architecture";
    let Some(Entry::Text(kind)) = all.get(name) else {
        return Err(format!("no {name} in its header"));
    };
    let number = |name: &str| match all.get(&format!("{kind}.{name}")) {
        Some(Entry::Number(n)) => u32::try_from(*n).ok(),
        _ => None,
    };
    let needed = |name: &str| number(name).ok_or_else(|| format!("no {kind}.{name} in its header"));
    let blocks = needed("block_count")?;
    let heads = number("attention.head_count");
    let per_layer = match all.get(&format!("{kind}.attention.head_count_kv")) {
        // Layers without attention have no KV heads.
        Some(Entry::Numbers(n)) => n.iter().filter(|&&n| n > 0).copied().collect(),
        Some(Entry::Number(n)) => vec![*n; (blocks as usize).min(1 << 20)],
        _ => vec![u64::from(needed("attention.head_count")?); (blocks as usize).min(1 << 20)],
    };
    let kv_heads = per_layer.iter().copied().max().unwrap_or(0);
    if per_layer.iter().any(|&n| n != kv_heads) {
        return Err("layers with different numbers of KV heads: give --geometry instead".to_owned());
    }
    let dim_k = match number("attention.key_length") {
        Some(dim) => dim,
        None => needed("embedding_length")?
            .checked_div(heads.unwrap_or(0))
            .ok_or_else(|| format!("no {kind}.attention.head_count in its header"))?,
    };
    let window = number("attention.sliding_window").unwrap_or(0) > 0;
    let layers = per_layer.len() as u32;
    let mut assumed =
        vec!["f16, llama.cpp's default: the file does not say how KV is kept".to_owned()];
    if window {
        let text = "every layer attends to a window: the file does not say which do";
        assumed.push(text.to_owned());
    }
    Ok(Model {
        source: String::new(),
        layers,
        window_layers: if window { layers } else { 0 },
        other_layers: blocks.saturating_sub(layers),
        kv_heads: u32::try_from(kv_heads).map_err(|e| e.to_string())?,
        dim_k,
        dim_v: number("attention.value_length").unwrap_or(dim_k),
        dtype: BlockDType::F16,
        assumed,
    })
}

/// All entries of a header.
fn header(input: impl Read) -> Result<HashMap<String, Entry>, String> {
    let mut reader = Reader { input, elements: 0 };
    let cut = |e: io::Error| format!("its header is cut short: {e}");
    let magic: [u8; 4] = reader.array().map_err(cut)?;
    if &magic != b"GGUF" {
        return Err(format!("expected a GGUF file, found one that begins with {magic:?}"));
    }
    let version = reader.u32().map_err(cut)?;
    if !(2..=3).contains(&version) {
        return Err(format!("expected GGUF version 2 or 3, found {version}"));
    }
    let _tensors = reader.u64().map_err(cut)?;
    let count = reader.u64().map_err(cut)?;
    if count > ENTRIES_MAX {
        return Err(format!("expected at most {ENTRIES_MAX} entries, found {count}"));
    }
    let mut all = HashMap::new();
    for _ in 0..count {
        let name = reader.text().map_err(cut)?;
        let kind = reader.u32().map_err(cut)?;
        let value = reader.value(kind, true).map_err(cut)?;
        if let Some(name) = name {
            all.insert(name, value);
        }
    }
    Ok(all)
}

struct Reader<R> {
    input: R,
    /// Elements of arrays so far.
    elements: u64,
}

impl<R: Read> Reader<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// `None` if it is too long to matter.
    fn text(&mut self) -> io::Result<Option<String>> {
        let len = self.u64()?;
        let mut input = (&mut self.input).take(len);
        let mut bytes = Vec::new();
        if len <= TEXT_MAX {
            input.read_to_end(&mut bytes)?;
        } else {
            io::copy(&mut input, &mut io::sink())?;
        }
        if input.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((len <= TEXT_MAX).then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// A value of a type; arrays only at the top.
    fn value(&mut self, kind: u32, top: bool) -> io::Result<Entry> {
        Ok(match kind {
            0 | 1 | 7 => Entry::Number(u64::from(self.array::<1>()?[0])),
            2 | 3 => Entry::Number(u64::from(u16::from_le_bytes(self.array()?))),
            4 | 5 => Entry::Number(u64::from(self.u32()?)),
            6 => {
                self.u32()?;
                Entry::Other
            }
            8 => self.text()?.map_or(Entry::Other, Entry::Text),
            10 | 11 => Entry::Number(self.u64()?),
            12 => {
                self.u64()?;
                Entry::Other
            }
            9 if top => self.list()?,
            other => return Err(io::Error::other(format!("a value of unknown type {other}"))),
        })
    }

    fn list(&mut self) -> io::Result<Entry> {
        let (kind, len) = (self.u32()?, self.u64()?);
        self.elements = self.elements.saturating_add(len);
        if self.elements > ELEMENTS_MAX {
            return Err(io::Error::other(format!("arrays of more than {ELEMENTS_MAX} elements")));
        }
        let mut numbers = Vec::new();
        for _ in 0..len {
            match self.value(kind, false)? {
                Entry::Number(n) if numbers.len() < 4096 => numbers.push(n),
                _ => {}
            }
        }
        Ok(Entry::Numbers(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Writer(Vec<u8>, u64);

    impl Writer {
        fn text(out: &mut Vec<u8>, text: &str) {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        }

        fn entry(mut self, name: &str, kind: u32, value: &[u8]) -> Writer {
            Writer::text(&mut self.0, name);
            self.0.extend(kind.to_le_bytes());
            self.0.extend(value);
            self.1 += 1;
            self
        }

        fn word(self, name: &str, value: &str) -> Writer {
            let mut text = Vec::new();
            Writer::text(&mut text, value);
            self.entry(name, 8, &text)
        }

        fn number(self, name: &str, n: u32) -> Writer {
            self.entry(name, 4, &n.to_le_bytes())
        }

        fn numbers(self, name: &str, numbers: &[u32]) -> Writer {
            let mut list =
                [4u32.to_le_bytes().to_vec(), (numbers.len() as u64).to_le_bytes().to_vec()]
                    .concat();
            numbers.iter().for_each(|n| list.extend(n.to_le_bytes()));
            self.entry(name, 9, &list)
        }

        fn file(self) -> Vec<u8> {
            let mut all = b"GGUF".to_vec();
            all.extend(3u32.to_le_bytes());
            all.extend(291u64.to_le_bytes());
            all.extend(self.1.to_le_bytes());
            [all, self.0].concat()
        }
    }

    fn llama() -> Writer {
        let writer = Writer::default().word("general.architecture", "llama");
        let words = [
            8u32.to_le_bytes().to_vec(),
            1u64.to_le_bytes().to_vec(),
            2u64.to_le_bytes().to_vec(),
            b"hi".to_vec(),
        ]
        .concat();
        let writer = writer.entry("tokenizer.ggml.tokens", 9, &words).entry(
            "llama.rope.freq_base",
            6,
            &[0; 4],
        );
        writer
            .number("llama.block_count", 32)
            .number("llama.attention.head_count", 32)
            .number("llama.embedding_length", 4096)
    }

    fn shape(file: &[u8]) -> Result<(u32, u32, u32, u32), String> {
        let model = model(&header(file)?)?;
        Ok((model.layers, model.kv_heads, model.dim_k, model.dim_v))
    }

    #[test]
    fn shapes_are_read() {
        assert_eq!(shape(&llama().file()), Ok((32, 32, 128, 128)));
        let kv = || llama().number("llama.attention.head_count_kv", 8);
        assert_eq!(shape(&kv().file()), Ok((32, 8, 128, 128)));
        let dims = kv()
            .number("llama.attention.key_length", 192)
            .number("llama.attention.value_length", 64);
        assert_eq!(shape(&dims.file()), Ok((32, 8, 192, 64)));
        let mixed = llama().numbers("llama.attention.head_count_kv", &[0, 8, 0, 8]);
        assert_eq!(shape(&mixed.file()), Ok((2, 8, 128, 128)));
        let uneven = llama().numbers("llama.attention.head_count_kv", &[4, 8]);
        assert!(shape(&uneven.file()).unwrap_err().contains("--geometry"));
    }

    #[test]
    fn hostile_headers_are_refused_without_reading_on() {
        let good = llama().number("llama.attention.head_count_kv", 8).file();
        for len in 0..good.len() {
            assert!(shape(&good[..len]).is_err(), "cut at {len}");
        }
        let changed = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            shape(&bytes).unwrap_err()
        };
        assert!(changed(0, b"GGML").contains("expected a GGUF file"));
        assert!(changed(4, &[9]).contains("found 9"));
        assert!(changed(16, &[0xff; 8]).contains("entries"));
        assert!(changed(24, &[0xff; 8]).contains("cut short"), "a name of 2^64 bytes");
        let deep = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
        let nested = Writer::default().entry("x", 9, &deep).file();
        assert!(shape(&nested).unwrap_err().contains("unknown type 9"));
        let endless = [0u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
        assert!(
            shape(&Writer::default().entry("x", 9, &endless).file())
                .unwrap_err()
                .contains("elements")
        );
        assert!(shape(&Writer::default().file()).unwrap_err().contains("general.architecture"));
    }
}
