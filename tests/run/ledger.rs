//! The ledger and the grades that a run reports and stores.

use crate::{lines, quiet, refused, small, with_files};
use mixdistill::context::{Context, StopFlag};
use mixdistill::data::ColumnMap;
use mixdistill::recipe::{RunMode, run};

#[test]
fn the_ledger_has_the_columns_and_every_row_that_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: usize| {
        format!(
            "{{\"question\": \"{i} + {i}?\", \"solution\": \"the answer\", \"gold_answer\": {}, \
             \"reasoning\": \"one step\", \"source\": \"web\"}}\n",
            2 * i
        )
    };
    let long = [(0..30).map(row).collect::<String>().into_bytes(), b"oops\n{}\n".to_vec()].concat();
    let mut config = with_files(folder.path(), &long, &lines(30, "the answer"));
    config.data.max_left_out = 0.1;
    let mut said = crate::common::Said::default();
    let stop = StopFlag::default();
    let summary = run(&config, RunMode::New, &Context::new(&mut said, &stop)).unwrap();
    let source = &summary.ledger.sources[0];
    assert_eq!((source.read, source.usable, source.left_out.rows()), (32, 30, 2));
    assert!(summary.ledger.adds_up());
    let said = said.0.join("\n");
    for line in [
        "long: columns problem=question, reasoning=reasoning, solution=solution, answer=gold_answer",
        "long: columns with text that are not used: source",
        "long: unusable and left out: 2 rows: 1 x not JSON (",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    let stored = std::fs::read_to_string(config.out.join("ledger.json")).unwrap();
    let stored: mixdistill::data::Ledger = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored, summary.ledger);
    // The reasoning is trained, too.
    let trained = |columns: &str| {
        let mut config = config.clone();
        config.data.sources[0].columns = ColumnMap::parse(columns).unwrap();
        let prepared = mixdistill::recipe::Prepared::new(&config, &Context::default()).unwrap();
        prepared.report.sources[0].trained_tokens
    };
    assert!(trained("reasoning=reasoning") > trained("reasoning=none"));
}

#[test]
fn a_source_of_which_no_row_is_left_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let long = lines(30, &"one step, and ".repeat(40));
    let mut config = with_files(folder.path(), &long, &lines(30, "the answer"));
    config.data.max_length = 48;
    let error = refused(&config);
    assert!(
        error.contains("source `long` has no row left: of its 30 records, 30 longer than"),
        "{error}"
    );
}

#[test]
fn grades_of_an_earlier_version_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(&folder.path().join("run"));
    let summary = quiet(&config, RunMode::New).unwrap();
    let after = summary.after.clone().unwrap();
    // An earlier version graded by other rules, but the stored text of the answer stays valid.
    let path = config.out.join("after.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let wrong = text.replace("\"correct\":false", "\"correct\":true");
    std::fs::write(&path, wrong).unwrap();
    let stored = config.out.join("summary.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&stored).unwrap()).unwrap();
    json["after"]["correct"] = 1000.into();
    std::fs::write(&stored, json.to_string()).unwrap();
    let again = quiet(&config, RunMode::Resume).unwrap();
    assert_eq!(again.after.unwrap(), after);
}
