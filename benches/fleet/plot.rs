//! The figures that grow, or should not, with the fleet, as one picture.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Result;
use crate::phases::{Fleet, Measured, Phase};
use crate::report::at;

const SIZE: (u32, u32) = (900, 620);
const COLOURS: [RGBColor; 2] = [RGBColor(31, 90, 166), RGBColor(196, 78, 24)];

/// One curve: its name, and its value for a fleet. `None`: that fleet did not measure it.
type Curve = (&'static str, fn(&Fleet) -> Option<f64>);

/// The panels: a title with the unit, and one or two curves.
const PANELS: [(&str, &[Curve]); 4] = [
    ("all pods start at once: seconds until all are in", &[("start", |f| seconds(f, Phase::Boot))]),
    ("one pod is killed: ms until it is buried", &[("median", |f| burials(f, 0.5)), ("p99", |f| burials(f, 0.99))]),
    (
        "seconds until all are back after a restart",
        &[("fast", |f| seconds(f, Phase::Fast)), ("immediate", |f| seconds(f, Phase::Immediate))],
    ),
    (
        "at rest, for each pod and second",
        &[
            ("statements", |f| of(f, Phase::Idle).map(|m| m.during.statements / f.pods as f64)),
            ("ms of the server's cores", |f| of(f, Phase::Idle).map(|m| 1000.0 * m.during.server_cpu / f.pods as f64)),
        ],
    ),
];

fn of(fleet: &Fleet, phase: Phase) -> Option<&Measured> {
    fleet.phases.iter().find(|m| m.phase == phase)
}

fn seconds(fleet: &Fleet, phase: Phase) -> Option<f64> {
    of(fleet, phase)?.took.map(|took| took.as_secs_f64())
}

fn burials(fleet: &Fleet, share: f64) -> Option<f64> {
    of(fleet, Phase::Kills).map(|m| at(&m.burials, share)).filter(|ms| ms.is_finite())
}

/// Writes the picture.
pub(crate) fn write(fleets: &[Fleet], path: &Path) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, (title, curves)) in area.split_evenly((2, 2)).iter().zip(PANELS) {
        draw(panel, title, curves, fleets)?;
    }
    area.present()?;
    Ok(())
}

fn draw(panel: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, curves: &[Curve], fleets: &[Fleet]) -> Result<()> {
    let points = |of: &fn(&Fleet) -> Option<f64>| -> Vec<(f64, f64)> {
        fleets.iter().filter_map(|fleet| Some((fleet.pods as f64, of(fleet)?))).collect()
    };
    let all: Vec<_> = curves.iter().flat_map(|(_, of)| points(of)).collect();
    let most = |which: fn(&(f64, f64)) -> f64| all.iter().map(which).fold(0.0, f64::max) * 1.1 + f64::EPSILON;
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..most(|p| p.0), 0.0..most(|p| p.1))?;
    chart.configure_mesh().x_desc("pods").x_labels(6).y_labels(6).light_line_style(WHITE).draw()?;
    for ((name, of), colour) in curves.iter().zip(COLOURS) {
        let points = points(of);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
