//! `kvist why KEY --dir DIR`: would a block be served, and if not, why?

use std::path::PathBuf;

use kvist::format::BlockKey;
use kvist::inspect::{Answer, State, StoreView, Why};

use crate::show::{age, json};
use crate::{Done, UNUSABLE};

/// Says whether a block would be served from a store's directory, and if not, why.
///
/// Exit status: 0 it would be (or it is sealed, and would be to who has the key), 1 it would not,
/// 2 the question makes no sense.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The block's key: 64 hexadecimal digits.
    key: String,
    /// The store's directory; it may be in use.
    #[arg(long)]
    dir: PathBuf,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Done {
    let key = BlockKey::parse(&args.key).ok_or_else(|| {
        let text = format!("a key is 64 hexadecimal digits, found {:?}", args.key);
        (UNUSABLE, text.into())
    })?;
    let view = StoreView::open(&args.dir).map_err(|e| (UNUSABLE, e.into()))?;
    let why = view.why(&key);
    if args.json {
        json(&why)?;
    } else {
        print(&why);
    }
    Ok(u8::from(matches!(why.answer, Answer::Miss(_))))
}

fn print(why: &Why) {
    match why.answer {
        Answer::Hit => println!("{}: a hit; every check passed", why.key),
        Answer::Sealed => println!("{}: a hit for who has the key; it is sealed", why.key),
        Answer::Miss(reason) => println!("{}: a miss, {}: {reason}", why.key, reason.name()),
        _ => println!("{}: {:?}", why.key, why.answer),
    }
    for copy in &why.copies {
        println!(
            "  {} at byte {}, {} bytes: {}",
            copy.file,
            copy.offset,
            copy.bytes,
            state(&copy.state)
        );
        println!(
            "    {} tokens, {} bytes decoded, codec {} (loss class {}), written {} ago, sequence {}",
            copy.tokens,
            copy.decoded_bytes,
            copy.codec,
            copy.loss_class,
            age(copy.written),
            copy.sequence
        );
        println!(
            "    model {}\n    layout {}\n    tenant {}",
            copy.model, copy.layout, copy.tenant
        );
    }
    for note in &why.notes {
        let file = if note.file.is_empty() { String::new() } else { format!("{}: ", note.file) };
        println!("  note: {file}{}", note.text);
    }
    if !why.copies.is_empty() {
        println!(
            "  a reader of another model, layout or tenant, or one that allows less loss, misses"
        );
    }
}

fn state(state: &State) -> String {
    match state {
        State::Served => "served".to_owned(),
        State::Sealed => "sealed".to_owned(),
        State::Superseded => "superseded by a newer record".to_owned(),
        State::Erased => "its tenant was erased after it was written".to_owned(),
        State::Aside => "its segment was put aside after failed reads".to_owned(),
        State::Damaged { reason, check, offset, bytes } => {
            format!("{}: {check} (bytes {offset}..{})", reason.name(), offset + bytes)
        }
        other => format!("{other:?}"),
    }
}
