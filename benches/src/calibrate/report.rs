//! What a profile leads to, in numbers and in words.

use std::fmt;

use kvist::policies::{Class, Error, Expected, HeadStats};
use kvist::{Profile, Select};
use serde::Serialize;

/// What is to be expected of a profile on the text it was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The selector.
    pub select: String,
    /// Its budget.
    pub budget: usize,
    /// Tokens of the context, mean over the steps.
    pub tokens: usize,
    /// Steps measured.
    pub steps: usize,
    /// Every head reads the same number of tokens: as many in all as with the profile.
    pub before: Expected,
    /// With the profile.
    pub after: Expected,
    /// By class, those that there are.
    pub classes: Vec<ClassReport>,
    /// All heads, layer by layer.
    pub heads: Vec<HeadReport>,
}

/// The heads of one class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassReport {
    /// `dense`, `streaming` or `select`.
    pub class: &'static str,
    /// How many heads.
    pub heads: usize,
    /// Tokens read, mean.
    pub tokens: f64,
    /// Missed mass where all heads of the model read the same number of tokens, mean.
    pub before: f64,
    /// Missed mass with the profile, mean.
    pub after: f64,
}

/// One KV head.
#[derive(Clone, Debug, Serialize)]
pub struct HeadReport {
    /// Layer of the model.
    pub layer: usize,
    /// KV head.
    pub head: usize,
    /// `dense`, `streaming` or `select`.
    pub class: &'static str,
    /// Effective support of its attention, in tokens.
    pub support: f64,
    /// Tokens read.
    pub tokens: usize,
    /// Missed mass where all heads of the model read the same number of tokens.
    pub before: f64,
    /// Missed mass with the profile.
    pub after: f64,
}

fn name(class: Class) -> &'static str {
    match class {
        Class::Dense => "dense",
        Class::Streaming { .. } => "streaming",
        _ => "select",
    }
}

impl Report {
    /// `layers` are the model's numbers of the layers measured.
    pub(super) fn new(
        profile: &Profile,
        stats: &[Vec<HeadStats>],
        select: &Select,
        layers: &[usize],
    ) -> Result<Report, Error> {
        let after = profile.expected(stats, select)?;
        let equal = after.tokens.round() as usize;
        let selects = profile.selects(select, &[])?;
        let mut heads = Vec::new();
        for (layer, classes) in profile.heads().iter().enumerate() {
            for (head, &class) in classes.iter().enumerate() {
                let s = &stats[layer][head];
                let (tokens, after) = s.expected(class, &selects[layer][head]);
                heads.push(HeadReport {
                    layer: layers[layer],
                    head,
                    class: name(class),
                    support: s.support,
                    tokens,
                    before: s.missed_at(equal),
                    after,
                });
            }
        }
        let missed = mean(heads.iter().map(|h| h.before));
        let of_class = |class| ClassReport::of(class, &heads);
        let (first, n) = (&stats[0][0], ["dense", "streaming", "select"]);
        Ok(Report {
            model: profile.model().to_owned(),
            select: select.name().to_owned(),
            budget: select.budget().unwrap_or(0),
            tokens: first.tokens,
            steps: first.steps,
            before: Expected { tokens: after.tokens, missed },
            after,
            classes: n.into_iter().filter_map(of_class).collect(),
            heads,
        })
    }

    /// Whether less is missed than with equal budgets.
    #[must_use]
    pub fn gains(&self) -> bool {
        self.after.missed < self.before.missed
    }
}

impl ClassReport {
    fn of(class: &'static str, heads: &[HeadReport]) -> Option<ClassReport> {
        let mine: Vec<&HeadReport> = heads.iter().filter(|h| h.class == class).collect();
        let of = |f: fn(&HeadReport) -> f64| mean(mine.iter().map(|h| f(h)));
        (!mine.is_empty()).then(|| ClassReport {
            class,
            heads: mine.len(),
            tokens: of(|h| h.tokens as f64),
            before: of(|h| h.before),
            after: of(|h| h.after),
        })
    }
}

fn mean(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len().max(1) as f64;
    x.sum::<f64>() / n
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { model, select, budget, tokens, steps, .. } = self;
        writeln!(
            f,
            "{model}, {select} with a budget of {budget}: {steps} steps at {tokens} tokens\n"
        )?;
        writeln!(f, "  class       heads   tokens   missed before    after")?;
        let row = |f: &mut fmt::Formatter<'_>, class: &str, heads, tokens, before, after| {
            writeln!(f, "  {class:<10} {heads:>6} {tokens:>8.0} {before:>15.5} {after:>8.5}")
        };
        for c in &self.classes {
            row(f, c.class, c.heads, c.tokens, c.before, c.after)?;
        }
        let all = (self.after.tokens, self.before.missed, self.after.missed);
        row(f, "all", self.heads.len(), all.0, all.1, all.2)?;
        writeln!(f, "\n  before: every head reads {:.0} tokens, as many in all\n", all.0)?;
        writeln!(f, "  layer  tokens read by each KV head")?;
        for heads in self.heads.chunk_by(|a, b| a.layer == b.layer) {
            let shown = heads.iter().map(|h| match h.class {
                "select" => h.tokens.to_string(),
                class => format!("{} ({class})", h.tokens),
            });
            let shown: Vec<String> = shown.collect();
            writeln!(f, "  {:>5}  {}", heads[0].layer, shown.join(", "))?;
        }
        if !self.gains() {
            writeln!(f, "\n  nothing is gained on this text: equal budgets miss no more")?;
        }
        Ok(())
    }
}
