//! `verify`: where a node's kernel differs from what it should hold, in words.

use std::fmt::Write as _;

use dataplane_model::Generation;
use dataplane_model::inspect::{Difference, VerifyReport};

/// A line for the node, then one per difference and problem.
pub fn text(report: &VerifyReport) -> String {
    let VerifyReport { hostname, node_id, wanted, applied, n_rows, is_compared, differences, problems } =
        report;
    let mut out = format!("node {hostname} ({node_id}): {n_rows} rows of {}", generation(*wanted));
    if wanted != applied {
        write!(
            out,
            ", the kernel has not held them all yet (the last that it did: {})",
            generation(*applied)
        )
        .expect("a string takes all");
    }
    out.push('\n');
    for difference in differences {
        line(&mut out, &sentence(difference));
    }
    for problem in problems {
        line(&mut out, problem);
    }
    if report.is_sound() {
        line(&mut out, "the kernel holds all of them, and nothing else");
    }
    if !is_compared {
        line(
            &mut out,
            "(whether its assignments are what the managers want, a manager tells: --node or --all)",
        );
    }
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn generation(generation: Generation) -> String {
    format!("generation {}.{}", generation.epoch, generation.index)
}

fn sentence(difference: &Difference) -> String {
    let Difference { table, key, is, should } = difference;
    // Tables with one row have no keys to tell apart.
    let row = if key == "-" { table.clone() } else { format!("{table} {key}") };
    match (is, should) {
        (None, Some(should)) => format!("{row}: is missing, should be: {should}"),
        (Some(is), None) => format!("{row}: should not be there, is: {is}"),
        (is, should) => {
            let or_nothing = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
            format!("{row}: is: {}; should be: {}", or_nothing(is), or_nothing(should))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> VerifyReport {
        let wanted = Generation { epoch: 2, index: 40 };
        let (hostname, node_id) = ("n1".to_owned(), "abc".to_owned());
        VerifyReport {
            hostname,
            node_id,
            wanted,
            applied: wanted,
            n_rows: 12,
            is_compared: true,
            ..VerifyReport::default()
        }
    }

    fn difference(key: &str, is: Option<&str>, should: Option<&str>) -> Difference {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Difference { table: "vips".into(), key: key.into(), is: owned(is), should: owned(should) }
    }

    #[test]
    fn a_sound_node_says_so() {
        let expected = "\
node n1 (abc): 12 rows of generation 2.40
the kernel holds all of them, and nothing else
";
        assert_eq!(text(&report()), expected);
        let alone = text(&VerifyReport { is_compared: false, ..report() });
        assert!(alone.starts_with(expected) && alone.ends_with("--node or --all)\n"), "{alone}");
    }

    #[test]
    fn each_difference_is_a_sentence() {
        let mut report = report();
        report.applied.index = 39;
        report.differences = vec![
            difference("4097/10.0.1.2", None, Some("x")),
            difference("4097/10.0.1.3", Some("y"), None),
            difference("-", Some("y"), Some("x")),
        ];
        report.problems.push("sandbox t1: no room".to_owned());
        let expected = "\
node n1 (abc): 12 rows of generation 2.40, the kernel has not held them all yet (the last that it did: generation 2.39)
vips 4097/10.0.1.2: is missing, should be: x
vips 4097/10.0.1.3: should not be there, is: y
vips: is: y; should be: x
sandbox t1: no room
";
        assert_eq!(text(&report), expected);
    }
}
