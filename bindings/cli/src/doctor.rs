//! `kvist doctor [DIR]`: would a store work here, and what would it gain?

use std::path::PathBuf;

use indicatif::ProgressBar;
use kvist_bench::doctor::{
    Cuda, Directory, Gain, Gpu, Hardware, Host, Level, Link, Model, Options, Report,
    SESSION_TOKENS, doctor,
};
use kvist_bench::text::{bytes, count, rate, time};

use crate::show::{json, table};
use crate::{Done, UNUSABLE};

/// Checks a machine and a directory, measures the links, and says what a store would gain, before one
/// is switched on.
///
/// Nothing is changed; the file that is measured with has no name and goes with the process. With
/// `python -m kvist doctor --host vllm` an engine's configuration is checked, too.
///
/// Exit status: 0 it would work, 1 it would not, 2 the arguments make no sense.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The store's directory; it need not be there yet.
    dir: Option<PathBuf>,
    /// The store's memory, such as 8GiB.
    #[arg(long, value_parser = size)]
    host_bytes: Option<u64>,
    /// The most that its files may take, such as 100GiB.
    #[arg(long, value_parser = size, requires = "dir")]
    disk_bytes: Option<u64>,
    /// A model's directory, config.json or .gguf file.
    #[arg(long, conflicts_with = "geometry")]
    model: Option<PathBuf>,
    /// The model's shape: layers,kv_heads,head_dim,dtype.
    #[arg(long)]
    geometry: Option<String>,
    /// Tokens of a block: the engine's block size.
    #[arg(long, default_value_t = 16)]
    block_tokens: u32,
    /// Tokens that the engine computes in a second of prefill.
    #[arg(long)]
    prefill_rate: Option<f64>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
    /// Measures for one second in place of five, and leaves out what is stored already.
    #[arg(long)]
    quick: bool,
    /// Accepts a directory that other users may write.
    #[arg(long)]
    allow_shared_dir: bool,
    /// The engine makes missing directories above it.
    #[arg(long, hide = true)]
    parents_made: bool,
    /// What the Python command found of an engine.
    #[arg(long, hide = true, value_parser = host)]
    host_report: Option<Host>,
}

fn size(text: &str) -> Result<u64, String> {
    kvist::parse_bytes(text).map_err(|e| e.to_string())
}

fn host(text: &str) -> Result<Host, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

pub(crate) fn run(args: Args) -> Done {
    let unusable = |e: kvist_bench::Error| (UNUSABLE, e.into());
    let model = match (&args.geometry, &args.model) {
        (Some(text), _) => Some(Model::parse(text).map_err(unusable)?),
        (None, Some(path)) => Some(Model::read(path).map_err(unusable)?),
        (None, None) => None,
    };
    let options = Options {
        dir: args.dir,
        allow_shared_dir: args.allow_shared_dir,
        parents_made: args.parents_made,
        host_bytes: args.host_bytes,
        disk_bytes: args.disk_bytes,
        model,
        block_tokens: args.block_tokens,
        prefill_rate: args.prefill_rate,
        quick: args.quick,
        host: args.host_report,
    };
    // Hidden unless standard error is a terminal.
    let spinner = ProgressBar::new_spinner();
    let progress = |step: &str| {
        spinner.set_message(step.to_owned());
        spinner.tick();
    };
    let report = doctor(&options, progress).map_err(unusable)?;
    spinner.finish_and_clear();
    if args.json {
        json(&report)?;
    } else {
        print(&report);
    }
    Ok(u8::from(report.verdict == Level::Error))
}

fn print(report: &Report) {
    if let Some(host) = &report.host {
        println!("{}", host.name);
        let row = |f: &kvist_bench::doctor::Fact| {
            let value = f.value.as_str().map_or_else(|| f.value.to_string(), str::to_owned);
            [f.name.clone(), value].to_vec()
        };
        table(&host.facts.iter().map(row).collect::<Vec<_>>());
    }
    machine(&report.machine);
    cuda(&report.cuda);
    if let Some(found) = &report.directory {
        directory(found);
    }
    links(&report.links);
    if let (Some(model), Some(of)) = (&report.model, &report.gain) {
        gain(model, of);
    }
    verdict(report);
}

fn section(name: &str, rows: &[(&str, String)]) {
    println!("{name}");
    let row = |(name, value): &(&str, String)| vec![(*name).to_owned(), value.clone()];
    table(&rows.iter().map(row).collect::<Vec<_>>());
}

fn machine(of: &Hardware) {
    let machine = &of.machine;
    let memory = &of.memory;
    let group = memory.limit.map_or(String::new(), |limit| {
        format!(
            "; its control group has {} of {}",
            bytes(memory.limit_used.unwrap_or(0)),
            bytes(limit)
        )
    });
    let limit = |n: Option<u64>, of: fn(u64) -> String| n.map_or("no limit".to_owned(), of);
    let rows = [
        ("cpu", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("kernels", format!("{} ({})", machine.isa, of.features.join(" "))),
        ("memory", format!("{} free of {}{group}", bytes(memory.available), bytes(memory.total))),
        ("huge pages", format!("{}; {} reserved", machine.huge_pages, bytes(memory.huge_free))),
        (
            "limits",
            format!(
                "locked memory {}, open files {}",
                limit(of.locked_bytes_max, bytes),
                limit(of.open_files_max, |n| n.to_string())
            ),
        ),
        ("transfers", of.engine.to_owned()),
        ("gpu", gpu(&of.gpu)),
    ];
    section("machine", &rows);
}

fn gpu(of: &Gpu) -> String {
    if of.devices == 0 {
        return "no NVIDIA GPU".to_owned();
    }
    let file = |f: &Option<PathBuf>| {
        f.as_ref().map_or("not found".to_owned(), |f| f.display().to_string())
    };
    let driver = of.driver.as_deref().unwrap_or("unknown");
    format!(
        "{} NVIDIA, driver {driver}, libcuda {}, NVRTC {}",
        of.devices,
        file(&of.libcuda),
        file(&of.libnvrtc)
    )
}

/// What each missing piece costs.
fn cuda(of: &Cuda) {
    let driver = of.driver.as_ref().map(|version| format!("CUDA {version}"));
    let mut rows =
        vec![("driver", driver.unwrap_or("none: everything runs on the CPU".to_owned()))];
    rows.extend(of.devices.iter().map(|d| {
        let what = format!(
            "{}, compute capability {}, {} multiprocessors, {}",
            d.name,
            d.capability,
            d.multiprocessors,
            bytes(d.memory_bytes)
        );
        ("gpu", what)
    }));
    let compiler = of.compiler.as_ref();
    let compiler =
        compiler.map(|c| format!("NVRTC {}, {} ({})", c.version, c.file.display(), c.found));
    rows.push(("compiler", compiler.unwrap_or("none: only prebuilt kernels run".to_owned())));
    let cache = of.cache.as_ref().map(|folder| folder.display().to_string());
    let none = "memory only: every process compiles its kernels anew";
    rows.push(("cache", cache.unwrap_or(none.to_owned())));
    section("cuda", &rows);
}

fn directory(of: &Directory) {
    let owner = of.owner.map_or(String::new(), |uid| {
        format!(", owner {uid}, mode {}", of.mode.as_deref().unwrap_or("unknown"))
    });
    let state = match (of.exists, of.path.exists()) {
        (true, _) => "there",
        (false, true) => "there, but not to be used",
        (false, false) => "not there yet",
    };
    let mut rows = vec![("path", format!("{}, {state}{owner}", of.path.display()))];
    if let Some(v) = &of.volume {
        let files = v.free_files.map_or(String::new(), |n| format!(", {n} files"));
        let (free, all) = (bytes(v.free_bytes), bytes(v.bytes));
        let kind = if v.kind.is_empty() { "unknown" } else { &v.kind };
        rows.push(("file system", format!("{kind}, {free}{files} free of {all}")));
    }
    let direct = of.direct_alignment.map(|n| format!("yes, aligned to {n} bytes"));
    rows.push(("O_DIRECT", direct.unwrap_or("no, or not measured".to_owned())));
    rows.push((
        "in use",
        match (of.in_use, of.holder) {
            (Some(true), Some(pid)) => format!("by process {pid}"),
            (Some(true), None) => "yes".to_owned(),
            (Some(false), _) => "no".to_owned(),
            (None, _) if of.exists => "the system does not say".to_owned(),
            (None, _) => "no".to_owned(),
        },
    ));
    if let Some(s) = &of.store {
        let text = format!(
            "{} records, {} tokens in {}; {} models, {} layouts, {} tenants; {} segments, {} of them \
             without an index, {} unreadable; {} sessions",
            s.records,
            s.tokens,
            bytes(s.file_bytes),
            s.models.len(),
            s.layouts,
            s.tenants,
            s.segments,
            s.unfinished,
            s.unreadable.len(),
            s.sessions
        );
        rows.push(("store", text));
    }
    section("directory", &rows);
}

fn links(of: &[Link]) {
    println!("links");
    let mut rows = vec![row(["what", "measured", "a call", "limit", ""])];
    for link in of {
        rows.push(vec![
            link.what.clone(),
            rate(link.bytes_per_s),
            time(link.seconds),
            link.limit.map_or(String::new(), rate),
            link.limit_is.to_owned(),
        ]);
    }
    table(&rows);
}

fn gain(model: &Model, of: &Gain) {
    println!("gain: {model}, from {}", model.source);
    println!(
        "  {} a token, {} a block of {} tokens",
        bytes(of.token_bytes),
        bytes(of.block_bytes),
        of.block_tokens
    );
    if let Some(ratio) = of.lossless_ratio {
        let from = match of.lossless_ratio_from {
            Some("directory") => "what the directory holds",
            _ => "made-up normal numbers; a model's own may differ",
        };
        println!("  lossless blocks are {ratio:.2} times smaller ({from})");
    }
    let mut rows =
        vec![row(["from", "codec", "a token", "tokens/s", "sooner from", "room for", "sessions"])];
    for way in &of.ways {
        let sooner = match (of.prefill_rate, way.break_even_tokens) {
            (None, _) => "?".to_owned(),
            (Some(_), Some(n)) => format!("{n} token{}", if n == 1 { "" } else { "s" }),
            (Some(_), None) => "never".to_owned(),
        };
        let room = way.capacity_tokens;
        rows.push(vec![
            way.from.to_owned(),
            way.codec.to_owned(),
            time(way.token_s),
            count(way.break_even_rate),
            sooner,
            room.map_or("?".to_owned(), |n| format!("{} tokens", count(n as f64))),
            room.map_or("?".to_owned(), |n| {
                format!("{} of {SESSION_TOKENS}", count(n as f64 / SESSION_TOKENS as f64))
            }),
        ]);
    }
    table(&rows);
}

fn verdict(report: &Report) {
    println!(
        "verdict: {} ({} errors, {} warnings)",
        report.verdict.name(),
        report.errors,
        report.warnings
    );
    for f in &report.findings {
        println!("  {:<7}  {:<9}  {}", f.level.name(), f.about, f.text);
        if !f.advice.is_empty() {
            println!("  {:<7}  {:<9}  -> {}", "", "", f.advice);
        }
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
