//! Keeps `docs/checklist.md` whole and true: every row of the checklist of features stands there once and says what is so here,
//! and every test that it names is in the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh::root;

const PAGE: &str = "docs/checklist.md";

/// The checklist's areas, and how many rows each has.
const AREAS: [(&str, usize); 29] = [
    ("LC", 26),
    ("JT", 18),
    ("LV", 12),
    ("AL", 12),
    ("IN", 9),
    ("ND", 40),
    ("HA", 16),
    ("SC", 55),
    ("SV", 44),
    ("SS", 14),
    ("SU", 37),
    ("TS", 39),
    ("SH", 30),
    ("RS", 16),
    ("RU", 38),
    ("GL", 11),
    ("NW", 48),
    ("LB", 28),
    ("SE", 10),
    ("CF", 20),
    ("VO", 36),
    ("ST", 43),
    ("TP", 10),
    ("LG", 14),
    ("MO", 8),
    ("BK", 5),
    ("SX", 13),
    ("EN", 13),
    ("EV", 37),
];

/// What a row may say, and whether a test must show it.
const VERDICTS: [(&str, bool); 7] = [
    ("works", true),
    ("differs", true),
    ("refused", true),
    ("not here", false),
    ("not yet", false),
    ("advice", false),
    ("wrong", false),
];
/// In place of ids: what the checklist does not have, and this project does.
const BEYOND: &str = "beyond";
/// In place of tests.
const NONE: &str = "none";

/// Checks everything; the error lists all that is wrong.
pub fn check() -> Result<()> {
    let page = fs::read_to_string(root().join(PAGE))?;
    let (tables, mut faults) = Tables::read(&page);
    faults.extend(id_faults(&tables.rows));
    let files = tracked_files()?;
    let mut places = BTreeMap::new();
    for (name, path) in &tables.places {
        places.insert(*name, Place::read(path, &files)?);
    }
    faults.extend(tables.rows.iter().flat_map(|row| reference_faults(row, &places)));
    if !faults.is_empty() {
        bail!("{PAGE} is not as it should be:\n  {}", faults.join("\n  "));
    }
    println!("{}", summary(&tables.rows));
    Ok(())
}

/// `ids` of the checklist (none of what is beyond it), what is said of them, and the tests that show it.
struct Row<'p> {
    line: usize,
    ids: Vec<String>,
    verdict: &'p str,
    shown_by: &'p str,
}

#[derive(Default)]
struct Tables<'p> {
    rows: Vec<Row<'p>>,
    /// Short names for parts of the tree.
    places: BTreeMap<&'p str, &'p str>,
}

impl<'p> Tables<'p> {
    /// Those of the page, and what is wrong with their form.
    fn read(page: &'p str) -> (Self, Vec<String>) {
        let (mut tables, mut faults, mut header) = (Self::default(), Vec::new(), "");
        for (index, text) in page.lines().enumerate() {
            let Some(cells) = text.strip_prefix('|').and_then(|text| text.trim_end().strip_suffix('|'))
            else {
                header = "";
                continue;
            };
            let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
            if header.is_empty() {
                header = cells[0];
                continue;
            }
            if cells[0].starts_with("---") {
                continue;
            }
            let line = index + 1;
            if let Some(empty) = cells.iter().position(|cell| cell.is_empty()) {
                faults.push(format!("line {line}: cell {} is empty", empty + 1));
            }
            match (header, cells.as_slice()) {
                ("rows", [ids, verdict, _, shown_by]) => match ids_of(ids) {
                    Ok(ids) => tables.rows.push(Row { line, ids, verdict, shown_by }),
                    Err(why) => faults.push(format!("line {line}: {why}")),
                },
                ("place", [name, path, _]) => {
                    tables.places.insert(name, path.trim_matches('`'));
                }
                ("rows" | "place", cells) => {
                    faults.push(format!("line {line}: a row of {} cells", cells.len()));
                }
                _ => {}
            }
        }
        (tables, faults)
    }
}

/// `LC-01, LC-03…LC-05` in full.
fn ids_of(text: &str) -> Result<Vec<String>, String> {
    if text == BEYOND {
        return Ok(Vec::new());
    }
    let mut ids = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('…').unwrap_or((part, part));
        match (id_of(first), id_of(last)) {
            (Some((area, first)), Some((other, last))) if area == other && first <= last => {
                ids.extend((first..=last).map(|number| format!("{area}-{number:02}")));
            }
            _ => return Err(format!("{part:?} is neither an id nor a range of them")),
        }
    }
    Ok(ids)
}

fn id_of(text: &str) -> Option<(&str, usize)> {
    let (area, number) = text.split_once('-')?;
    Some((area, number.parse().ok().filter(|_| number.len() == 2)?))
}

/// Rows of the checklist that are missing, stand here twice, or are none of its own; verdicts that are none.
fn id_faults(rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    let wanted = AREAS.iter().flat_map(|(area, n)| (1..=*n).map(move |number| format!("{area}-{number:02}")));
    let wanted: BTreeSet<String> = wanted.collect();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        if !VERDICTS.iter().any(|(verdict, _)| *verdict == row.verdict) {
            faults.push(format!("line {}: {:?} is no word for what is so", row.line, row.verdict));
        }
        for id in &row.ids {
            if !wanted.contains(id) {
                faults.push(format!("line {}: the checklist has no {id}", row.line));
            }
            if let Some(before) = seen.insert(id, row.line) {
                faults.push(format!("line {}: {id} stands in line {before} too", row.line));
            }
        }
    }
    let missing = wanted.iter().filter(|id| !seen.contains_key(id.as_str()));
    faults.extend(missing.map(|id| format!("{id} is missing")));
    faults
}

/// Tests that the row names and the tree does not have; none where there must be one.
fn reference_faults(row: &Row, places: &BTreeMap<&str, Place>) -> Vec<String> {
    let at = |fault: String| format!("line {}: {fault}", row.line);
    if row.shown_by == NONE {
        let needs_one = VERDICTS.contains(&(row.verdict, true));
        return if needs_one {
            vec![at(format!("no test shows that it {}", row.verdict))]
        } else {
            Vec::new()
        };
    }
    let references = match references(row.shown_by) {
        Ok(references) => references,
        Err(why) => return vec![at(why)],
    };
    let missing = references.into_iter().filter_map(|(place, item)| match places.get(place) {
        None => Some(at(format!("{place:?} is no place"))),
        Some(known) => (!known.has(item)).then(|| at(format!("{place} has no {item}"))),
    });
    missing.collect()
}

/// What ``place: `test`, `test`; other: "words"`` names, each with its place; words keep their quotes.
fn references(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let (mut found, mut rest, mut place) = (Vec::new(), text, "");
    loop {
        rest = rest.trim_start();
        let Some(quote) = rest.chars().next().filter(|first| ['`', '"'].contains(first)) else {
            let Some((name, after)) = rest.split_once(':') else {
                return Err(format!("{text:?} can't be read at {rest:?}"));
            };
            (place, rest) = (name, after);
            continue;
        };
        let Some(length) = rest[1..].find(quote).filter(|length| *length > 0) else {
            return Err(format!("{rest:?} names nothing"));
        };
        let item = if quote == '"' { &rest[..length + 2] } else { &rest[1..=length] };
        found.push((place, item));
        rest = rest[length + 2..].trim_start();
        match rest.chars().next() {
            None => return Ok(found),
            Some(',' | ';') => rest = &rest[1..],
            Some(_) => return Err(format!("{text:?} can't be read at {rest:?}")),
        }
    }
}

/// A part of the tree.
#[derive(Default)]
struct Place {
    tests: BTreeSet<String>,
    /// With and without their ends.
    files: BTreeSet<String>,
    /// Where it is one file: all of it.
    text: String,
}

impl Place {
    fn read(path: &str, files: &[String]) -> Result<Self> {
        let mut place = Self::default();
        let is_below = |file: &&String| {
            file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        for file in files.iter().filter(is_below) {
            let name = file.rsplit('/').next().unwrap_or(file);
            place.files.extend([name, name.split('.').next().unwrap_or(name)].map(str::to_owned));
            if file == path || file.rsplit('.').next() == Some("rs") {
                let text = fs::read_to_string(root().join(file)).with_context(|| file.clone())?;
                place.tests.extend(tests_of(&text).into_iter().map(str::to_owned));
                if file == path {
                    place.text = text;
                }
            }
        }
        if place.files.is_empty() {
            bail!("{PAGE}: there is no {path}");
        }
        Ok(place)
    }

    /// A test, a file, or what the one file says.
    fn has(&self, item: &str) -> bool {
        self.tests.contains(item) || self.files.contains(item) || self.text.contains(item)
    }
}

/// Functions that are tests: by their attribute, or called by the `main` of a test program.
fn tests_of(text: &str) -> Vec<&str> {
    let main = text.split_once("\nfn main() {\n").and_then(|(_, rest)| rest.split_once("\n}\n"));
    let called = main.map_or("", |(body, _)| body);
    let (mut tests, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        let Some(name) = function_name(line) else { continue };
        if is_test || called.contains(&format!(" {name}(")) {
            tests.push(name);
        }
        is_test = false;
    }
    tests
}

fn function_name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
}

fn summary(rows: &[Row]) -> String {
    let count = |verdict: &str| {
        let of_it = rows.iter().filter(|row| row.verdict == verdict);
        of_it.map(|row| row.ids.len()).sum::<usize>()
    };
    let total: usize = rows.iter().map(|row| row.ids.len()).sum();
    let counts = VERDICTS.map(|(verdict, _)| format!("{} {verdict}", count(verdict)));
    let n_tests: usize = rows.iter().filter_map(|row| Some(references(row.shown_by).ok()?.len())).sum();
    format!("{total} rows of the checklist: {}; {n_tests} references to tests", counts.join(", "))
}

fn tracked_files() -> Result<Vec<String>> {
    let output = Command::new("git").args(["ls-files"]).current_dir(root()).output()?;
    let files = String::from_utf8(output.stdout)?;
    Ok(files.lines().filter(|file| root().join(file).exists()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with every row of the checklist but those of `LC`, and these.
    fn page(rows: &str) -> String {
        let others =
            AREAS[1..].iter().map(|(area, n)| format!("| {area}-01…{area}-{n:02} | advice | all | none |\n"));
        let others: String = others.collect();
        format!(
            "| place | path | of |\n|---|---|---|\n| api | `a/tests` | x |\n\n| rows | here | what | shown by |\n|---|---|---|---|\n{others}{rows}"
        )
    }

    fn faults(rows: &str) -> Vec<String> {
        let page = page(rows);
        let (tables, mut faults) = Tables::read(&page);
        let place = Place { tests: ["it_works".to_owned()].into(), ..Place::default() };
        assert_eq!(tables.places, [("api", "a/tests")].into());
        faults.extend(id_faults(&tables.rows));
        let places = BTreeMap::from([("api", place)]);
        faults.extend(tables.rows.iter().flat_map(|row| reference_faults(row, &places)));
        faults
    }

    #[test]
    fn a_whole_page_is_counted() {
        let rows = "| LC-01, LC-03…LC-26 | works | it | api: `it_works` |\n| LC-02 | not here | why | none |\n\
                    | beyond | works | more | api: `it_works` |\n";
        assert_eq!(faults(rows), Vec::<String>::new());
        let page = page(rows);
        let said = summary(&Tables::read(&page).0.rows);
        assert!(
            said.starts_with("702 rows of the checklist: 25 works, 0 differs, 0 refused, 1 not here,"),
            "{said}"
        );
    }

    #[test]
    fn rows_that_are_missing_twice_or_none_are_named() {
        let fault = |rows: &str| faults(rows).join("; ");
        let all_but_two = "| LC-01, LC-03…LC-26 | works | it | api: `it_works` |\n";
        assert_eq!(fault(all_but_two), "LC-02 is missing");
        let with = |row: &str| fault(&format!("{all_but_two}{row}"));
        assert!(with("| LC-02…LC-04 | advice | it | none |\n").contains("LC-03 stands in line 35 too"));
        assert!(with("| LC-02, LC-27 | advice | it | none |\n").contains("the checklist has no LC-27"));
        for odd in ["LC-2", "LC-04…LC-02", "LC-02…JT-03", "LC-02 and more", ""] {
            assert!(
                with(&format!("| {odd} | advice | it | none |\n")).contains("neither an id nor a range"),
                "{odd}"
            );
        }
    }

    #[test]
    fn cells_say_something_that_holds() {
        let with = |cells: &str| {
            faults(&format!("| LC-01…LC-25 | advice | it | none |\n| LC-26 | {cells} |\n")).join("; ")
        };
        assert!(with("works | | api: `it_works`").contains("cell 3 is empty"));
        assert!(with("works | it").contains("a row of 3 cells"));
        assert!(with("hopefully | it | none").contains("\"hopefully\" is no word for what is so"));
        assert!(with("differs | it | none").contains("no test shows that it differs"));
        assert!(with("works | it | api: `it_worked`").contains("api has no it_worked"));
        assert!(with("works | it | web: `it_works`").contains("\"web\" is no place"));
        assert!(with("works | it | it works").contains("can't be read"));
        assert_eq!(with("works | it | api: `it_works`"), "");
    }

    #[test]
    fn tests_are_named_with_their_places() {
        let text = "api: `one`, `two`; cluster: \"a, b; c\", \"d\"";
        let expected = [("api", "one"), ("api", "two"), ("cluster", "\"a, b; c\""), ("cluster", "\"d\"")];
        assert_eq!(references(text), Ok(expected.into()));
        for odd in ["", "api", "api: one", "api: `one", "api: ``", "api: `one` two", "api: `one`,"] {
            assert!(references(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_test_is_a_function_that_is_run_as_one() {
        let text = "fn helper() {}\n#[test]\nfn first() {}\n    #[tokio::test(flavor = \"x\")]\n    async fn second() {}\n\
                    fn main() {\n    runs().await;\n}\nasync fn runs() {}\nasync fn idle() {}\n";
        assert_eq!(tests_of(text), ["first", "second", "runs"]);
        let file = Place {
            text: "(\"a scenario\", x)".into(),
            files: ["life.txt".into()].into(),
            ..Place::default()
        };
        assert!(file.has("\"a scenario\"") && file.has("life.txt") && !file.has("\"scenario\""));
    }
}
