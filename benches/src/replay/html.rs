//! The report: one file with plots inside.

use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;

use super::{Row, TierResult};
use crate::Error;

/// Size of a plot in pixels.
const SIZE: (u32, u32) = (640, 360);

/// Writes the report.
pub(super) fn write(path: &Path, rows: &[Row]) -> Result<(), Error> {
    let failed = |problem: String| Error::subject(path.display().to_string(), problem);
    let mut body = String::new();
    for group in rows.chunk_by(|a, b| a.trace == b.trace && a.hints == b.hints) {
        let _ = write!(
            body,
            "<h2>{}</h2><p>Hints that sessions are closed: {}.</p>",
            escape(&group[0].trace),
            escape(&group[0].hints)
        );
        body += &by_capacity(group).map_err(failed)?;
        body += &by_time(group).map_err(failed)?;
        body += &by_tier(group).map_err(failed)?;
        body += &table(group);
    }
    let page = format!(
        "<!doctype html><meta charset=utf-8><title>kvist replay</title><style>body{{font:15px sans-serif;\
         max-width:1320px;margin:2em auto;padding:0 1em}}table{{border-collapse:collapse}}td,th{{padding:.2em .8em;\
         border-bottom:1px solid #ddd;text-align:right}}td:first-child,th:first-child{{text-align:left}}svg{{max-width:100%}}\
         </style><h1>kvist replay</h1><p>A hit is a block that was found with all blocks before it. Compute spared \
         weighs each by what computing it costs, which grows with its place in the prompt.</p>{body}"
    );
    std::fs::write(path, page).map_err(Error::io(format!("writing {}", path.display())))
}

fn names(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    names
}

/// A named line.
type Series = (String, Vec<(f64, f64)>);

/// Hits by capacity, a line for each order.
fn by_capacity(rows: &[Row]) -> Result<String, String> {
    let series = names(rows).into_iter().map(|name| {
        let own = rows.iter().filter(|row| row.name == name);
        let points = own.map(|r| ((r.blocks as f64).log10(), 100.0 * r.outcome.hit_ratio()));
        (name.to_owned(), points.collect())
    });
    plot("hits by room", "blocks", "% of blocks", &series.collect::<Vec<Series>>(), |x| {
        format!("{:.0}", 10f64.powf(*x))
    })
}

/// Hits as the trace goes on, with the most room.
fn by_time(rows: &[Row]) -> Result<String, String> {
    let most = rows.iter().map(|row| row.blocks).max().unwrap_or(0);
    let series = rows.iter().filter(|row| row.blocks == most).map(|row| {
        let parts = row.outcome.by_time.len().max(1) as f64;
        let points = row.outcome.by_time.iter().enumerate();
        let points = points.map(|(i, hits)| (100.0 * (i as f64 + 0.5) / parts, 100.0 * hits));
        (row.name.clone(), points.collect())
    });
    let title = format!("hits as the trace goes on, {most} blocks");
    plot(&title, "% of the trace", "% of blocks", &series.collect::<Vec<Series>>(), |x| {
        format!("{x:.0}")
    })
}

/// Seconds spared less those of reading, a bar for each set of tiers with the most room, a piece for each tier.
fn by_tier(rows: &[Row]) -> Result<String, String> {
    let most = rows.iter().map(|row| row.blocks).max().unwrap_or(0);
    let rows: Vec<&Row> = rows.iter().filter(|row| row.blocks == most).collect();
    let net = |tier: &TierResult| tier.saved_s - tier.read_s;
    let length = |row: &Row, sign: f64| -> f64 {
        row.outcome.tiers.iter().map(|t| (sign * net(t)).max(0.0)).sum()
    };
    let end = |sign| rows.iter().map(|row| length(row, sign)).fold(0.0, f64::max);
    // What reading costs more than computing goes to the left.
    let (left, right) = (-1.05 * end(-1.0), 1.05 * end(1.0).max(f64::MIN_POSITIVE));
    // Room for their names.
    let tiers = rows.first().map_or(0, |row| row.outcome.tiers.len());
    let height = 80 + 36 * rows.len() as u32 + 18 * tiers as u32;
    let mut svg = String::new();
    {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let area = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| text(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .caption("seconds spared less those of reading, by tier", ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(30)
            .build_cartesian_2d(left..right, 0.0..rows.len() as f64 + tiers as f64 / 2.0)
            .map_err(|e| text(&e))?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().disable_y_axis().draw().map_err(|e| text(&e))?;
        for (i, row) in rows.iter().enumerate() {
            let bottom = (rows.len() - 1 - i) as f64;
            let mut ends = [0.0, 0.0];
            for (tier, result) in row.outcome.tiers.iter().enumerate() {
                let side = &mut ends[usize::from(net(result) < 0.0)];
                let from = std::mem::replace(side, *side + net(result));
                let (piece, color) = ([(from, bottom + 0.1), (*side, bottom + 0.55)], tier);
                let bar = Rectangle::new(piece, Palette99::pick(color).filled());
                let drawn = chart.draw_series([bar]).map_err(|e| text(&e))?;
                if i == 0 {
                    let square = move |(x, y)| {
                        let place = [(x, y - 5), (x + 10, y + 5)];
                        Rectangle::new(place, Palette99::pick(color).filled())
                    };
                    drawn.label(result.name).legend(square);
                }
            }
            let name = Text::new(row.name.clone(), (left, bottom + 0.95), ("sans-serif", 13));
            chart.draw_series([name]).map_err(|e| text(&e))?;
        }
        let mut labels = chart.configure_series_labels();
        let labels =
            labels.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.8));
        labels.draw().map_err(|e| text(&e))?;
        area.present().map_err(|e| text(&e))?;
    }
    Ok(svg)
}

fn plot(
    title: &str,
    x_name: &str,
    y_name: &str,
    series: &[Series],
    x_label: impl Fn(&f64) -> String,
) -> Result<String, String> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let least = points().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max);
    // A single point has no extent.
    let (least, most) = if least < most { (least, most) } else { (least - 0.5, least + 0.5) };
    let top = points().map(|p| p.1).fold(1.0, f64::max) * 1.05;
    let mut svg = String::new();
    {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|e| text(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(48)
            .build_cartesian_2d(least..most, 0.0..top)
            .map_err(|e| text(&e))?;
        let mut mesh = chart.configure_mesh();
        let mesh = mesh.x_desc(x_name).y_desc(y_name).x_label_formatter(&x_label);
        mesh.light_line_style(TRANSPARENT).draw().map_err(|e| text(&e))?;
        for (i, (name, points)) in series.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(2);
            let drawn = chart.draw_series(line).map_err(|e| text(&e))?;
            let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2));
            drawn.label(name.as_str()).legend(key);
        }
        let mut labels = chart.configure_series_labels();
        let labels =
            labels.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8));
        labels.draw().map_err(|e| text(&e))?;
        area.present().map_err(|e| text(&e))?;
    }
    Ok(svg)
}

fn table(rows: &[Row]) -> String {
    let heads = "<tr><th>order<th>blocks<th>% hit<th>% of compute spared<th>s spared<th>s of reading<th>by tier";
    let mut text = format!("<table>{heads}");
    for row in rows {
        let out = &row.outcome;
        let tier = |t: &TierResult| {
            let (hits, gb) =
                (100.0 * t.hits as f64 / out.blocks.max(1) as f64, t.written_bytes * 1e-9);
            format!("{} {hits:.2} %, {gb:.0} GB written", t.name)
        };
        let tiers: Vec<String> = out.tiers.iter().map(tier).collect();
        let _ = write!(
            text,
            "<tr><td>{}<td>{}<td>{:.2}<td>{:.2}<td>{:.0}<td>{:.0}<td>{}",
            escape(&row.name),
            row.blocks,
            100.0 * out.hit_ratio(),
            100.0 * out.saved_ratio(),
            out.saved_s,
            out.read_s,
            tiers.join("; ")
        );
    }
    text + "</table>"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
