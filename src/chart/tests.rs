use super::{Axis, Chart, Point, Scale, Series};

fn curve(name: &str, points: &[(f64, f64)]) -> Series {
    let point = |(x, y): &(f64, f64)| Point { x: *x, y: *y, interval: None };
    Series { name: name.into(), points: points.iter().map(point).collect(), marked: true }
}

fn with_intervals(name: &str, points: &[(f64, f64)]) -> Series {
    let mut series = curve(name, points);
    series.points.iter_mut().for_each(|p| p.interval = Some((p.y - 1.0, p.y + 2.0)));
    series
}

fn chart(x: Scale, y: Scale, series: Vec<Series>) -> Chart {
    let axis = |name: &str, scale| Axis { name: name.into(), scale };
    Chart { title: "Title".into(), x: axis("x", x), y: axis("y", y), series }
}

/// Returns the parts of an SVG that are groups of this class, including nested groups.
fn groups<'a>(svg: &'a str, class: &str) -> Vec<&'a str> {
    let begin = format!("<g class=\"{class}\"");
    let starts = svg.match_indices(&begin).map(|(start, _)| start);
    let group = |start: usize| {
        let mut open = 0;
        let mut end = start;
        for line in svg[start..].split_inclusive('\n') {
            open += i32::from(line.starts_with("<g ")) - i32::from(line.starts_with("</g>"));
            end += line.len();
            if open == 0 {
                break;
            }
        }
        &svg[start..end]
    };
    starts.map(group).collect()
}

/// Returns the texts within a part of an SVG.
fn texts(part: &str) -> Vec<String> {
    let texts = part.split("<text ").skip(1);
    let text =
        |rest: &str| rest.split_once('>')?.1.split_once("</text>").map(|(t, _)| t.to_owned());
    texts.filter_map(text).collect()
}

/// Returns all numbers in an attribute, wherever it occurs.
fn numbers(part: &str, attribute: &str) -> Vec<f64> {
    let begin = format!(" {attribute}=\"");
    let values = part.split(&begin).skip(1).filter_map(|rest| rest.split('"').next());
    values
        .flat_map(|v| v.split([' ', ',']).map(|n| n.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// Returns the left, top, right, and bottom of the frame.
fn frame(svg: &str) -> [f64; 4] {
    let rect = svg.split("<rect class=\"frame\"").nth(1).unwrap().split("/>").next().unwrap();
    let [x, y, width, height] =
        ["x", "y", "width", "height"].map(|attribute| numbers(rect, attribute)[0]);
    [x, y, x + width, y + height]
}

/// Checks what must hold for every chart.
fn check(chart: &Chart) -> String {
    let svg = chart.svg();
    let what = format!("{:?} {:?}", chart.x.scale, chart.series.first());
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{what}");
    let [left, top, right, bottom] = frame(&svg);
    assert!(left < right && top < bottom && right <= super::WIDTH, "{what}");
    for class in ["series", "marks", "intervals"] {
        for part in groups(&svg, class) {
            let places = numbers(part, "points");
            let mut across: Vec<f64> = places.iter().step_by(2).copied().collect();
            let mut up: Vec<f64> = places.iter().skip(1).step_by(2).copied().collect();
            for attribute in ["cx", "x1", "x2"] {
                across.extend(numbers(part, attribute));
            }
            for attribute in ["cy", "y1", "y2"] {
                up.extend(numbers(part, attribute));
            }
            assert!(across.iter().all(|x| (left..=right).contains(x)), "{what}: {part}");
            assert!(up.iter().all(|y| (top..=bottom).contains(y)), "{what}: {part}");
        }
    }
    let legend = groups(&svg, "legend");
    let keys = numbers(legend[0], "x").into_iter().chain(numbers(legend[0], "x1"));
    assert!(keys.chain(numbers(legend[0], "cx")).all(|x| x > right), "{what}: over the curves");
    assert_eq!(texts(legend[0]).len(), chart.series.len());
    for class in ["x-ticks", "y-ticks"] {
        let ticks = groups(&svg, class)[0];
        let labels = texts(ticks);
        assert!(!labels.is_empty(), "{what}");
        let different: std::collections::BTreeSet<&String> = labels.iter().collect();
        assert_eq!(different.len(), labels.len(), "{what}: {labels:?}");
        assert!(
            !labels.iter().any(|label| label.starts_with("-0")
                && !label.contains(|c: char| { ('1'..='9').contains(&c) })),
            "{what}: {labels:?}"
        );
    }
    svg
}

#[test]
fn steps_are_whole_numbers() {
    for steps in [&[1.0][..], &[1.0, 2.0], &[1.0, 2.0, 3.0], &[0.0, 4.0], &[0.0, 12_345.0]] {
        let points: Vec<(f64, f64)> = steps.iter().map(|step| (*step, 1.0)).collect();
        let svg = check(&chart(Scale::Whole, Scale::Linear, vec![curve("loss", &points)]));
        let labels = texts(groups(&svg, "x-ticks")[0]);
        assert!(labels.iter().all(|label| !label.contains('.')), "{labels:?}");
    }
}

#[test]
fn shares_lie_between_zero_and_one() {
    // Many curves with intervals at the ends of the axis, which are drawn side by side.
    let ends = [(0.0, 40.0), (0.2, 50.0), (1.0, 45.0)];
    for count in [1, 2, 5, 30] {
        let series = (0..count).map(|i| with_intervals(&format!("student {i}"), &ends)).collect();
        let svg = check(&chart(Scale::Share, Scale::Linear, series));
        let ticks = groups(&svg, "x-ticks")[0];
        assert_eq!(texts(ticks), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }
    // Curves without intervals are drawn exactly at their shares.
    let svg =
        check(&chart(Scale::Share, Scale::Linear, vec![curve("a", &ends), curve("b", &ends)]));
    let ticks = numbers(groups(&svg, "x-ticks")[0], "x1");
    for marks in groups(&svg, "marks") {
        assert_eq!(numbers(marks, "cx"), [ticks[0], ticks[1], ticks[5]]);
    }
}

#[test]
fn a_flat_chart_has_ticks_that_differ() {
    for y in [0.0, -0.0, 1e-9, -1e-9, 3.0, -3.0, 1e12] {
        let points = [(1e6, y), (2e6, y)];
        for scale in [Scale::Linear, Scale::AroundZero] {
            check(&chart(Scale::Logarithmic, scale, vec![curve("flat", &points)]));
            check(&chart(Scale::Logarithmic, scale, vec![curve("one", &points[..1])]));
        }
    }
    let zero = check(&chart(Scale::Linear, Scale::AroundZero, vec![curve("a", &[(0.0, 0.0)])]));
    assert_eq!(texts(groups(&zero, "y-ticks")[0]), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
    assert_eq!(groups(&zero, "zero").len(), 1);
}

#[test]
fn what_is_no_number_is_not_drawn_and_is_said() {
    let nan = [(1.0, 2.0), (2.0, f64::NAN), (3.0, 4.0), (4.0, 5.0), (f64::INFINITY, 1.0)];
    let mut series = curve("a", &nan);
    series.points[0].interval = Some((f64::NEG_INFINITY, 3.0));
    let svg = check(&chart(Scale::Whole, Scale::Linear, vec![series]));
    // The line is interrupted there: a single point, then a line of two points.
    assert_eq!(numbers(groups(&svg, "series")[0], "points").len(), 4);
    assert_eq!(numbers(groups(&svg, "series")[0], "cx").len(), 1);
    assert_eq!(numbers(groups(&svg, "marks")[0], "cx").len(), 3);
    assert!(groups(&svg, "intervals").is_empty());
    assert!(svg.contains("2 points are not drawn"), "{svg}");
    let none = vec![curve("a", &[(1.0, f64::NAN)]), curve("b", &[])];
    for x in [Scale::Linear, Scale::Whole, Scale::Share, Scale::Logarithmic] {
        let svg = check(&chart(x, Scale::Linear, none.clone()));
        assert!(svg.contains("no points") && svg.contains("1 point is not drawn"));
        assert!(check_empty(x).contains("no points"));
    }
}

fn check_empty(x: Scale) -> String {
    chart(x, Scale::AroundZero, vec![]).svg()
}

#[test]
fn any_data_can_be_drawn() {
    let values = [0.0, -0.0, 1e-320, 1e-9, -1e-9, 1.0, 1.0 + 1e-12, -7.5, 1e9, 1e300, f64::MAX];
    for (a, b) in values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))) {
        for x in [Scale::Linear, Scale::Whole, Scale::Share, Scale::Logarithmic] {
            let points = [(a, b), (b, a), (a, a)];
            check(&chart(x, Scale::Linear, vec![curve("a", &points)]));
            let both = vec![with_intervals("a", &points), with_intervals("b", &points)];
            check(&chart(x, Scale::AroundZero, both));
        }
    }
}

#[test]
fn long_names_and_many_curves_stay_beside_the_curves() {
    let points = [(0.0, 1.0), (1.0, 2.0)];
    let long = "a very long name <of> a \"source\" & more of it, longer than any legend is wide";
    let mut all: Vec<Series> =
        (0..100).map(|i| curve(&format!("{long} {i}\u{1}"), &points)).collect();
    all.push(curve("答案很长的来源的名字写在这里看看会不会太宽了吧", &points));
    let mut wide = chart(Scale::Whole, Scale::Linear, all);
    (wide.title, wide.x.name, wide.y.name) = (long.repeat(3), long.repeat(3), long.repeat(3));
    let svg = check(&wide);
    let whole = "<title>a very long name &lt;of&gt; a &quot;source&quot; &amp; more of it";
    assert!(svg.contains(whole) && !svg.contains('\u{1}'), "{svg}");
    let height = numbers(svg.lines().next().unwrap(), "height")[0];
    let lowest = numbers(groups(&svg, "legend")[0], "y").into_iter().fold(0.0, f64::max);
    assert!(lowest < height, "{lowest} {height}");
    let [left, _, right, _] = frame(&svg);
    assert!(right - left > 300.0, "{left} {right}");
    // Curves with the same color have different dashes.
    let keys = groups(&svg, "key");
    let lines: std::collections::BTreeSet<&str> = keys
        .iter()
        .filter(|key| key.contains("stroke="))
        .take(32)
        .map(|key| key.lines().next().unwrap())
        .collect();
    assert_eq!(lines.len(), 32);
}

#[test]
fn a_million_points_are_a_small_file_that_looks_the_same() {
    let loss = |step: usize| 5.0 / (1.0 + step as f64 / 1e5) + (step as f64).sin();
    let points: Vec<(f64, f64)> = (1..=1_000_000).map(|step| (step as f64, loss(step))).collect();
    let svg = check(&chart(Scale::Whole, Scale::Linear, vec![curve("loss", &points)]));
    assert!(svg.len() < 100_000, "{}", svg.len());
    // Too many to mark.
    assert!(groups(&svg, "marks").is_empty());
    let drawn = numbers(groups(&svg, "series")[0], "points");
    let lowest = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let few: Vec<(f64, f64)> = points.iter().filter(|p| p.1 == lowest).copied().collect();
    assert!(few.len() == 1 && drawn.len() > 1_000);
}
