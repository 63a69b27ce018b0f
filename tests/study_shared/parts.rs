//! Promise: independent parts of a study produce the same report as one process.

use super::*;

#[test]
fn parts_come_to_the_report_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, config) = config(folder.path(), |text| text);
    let expected = alone(&config);
    let parts = parts(&config, 3, folder.path());
    // All cells, and each in one part only.
    let count = |folder: &Path| {
        let files = config.cells();
        let stored = |cell: &&Cell| {
            folder.join(config.result_file(cell).strip_prefix(&config.out).unwrap()).is_file()
        };
        files.iter().filter(stored).count()
    };
    assert_eq!(parts.iter().map(|part| count(part)).collect::<Vec<_>>(), [4, 4, 4]);
    assert!(!parts[0].join("report.html").exists());
    // A directory stays that of its part.
    let again = |number, of| part_of(&at(&config, parts[0].clone()), number, of);
    again(1, 3).unwrap();
    for (number, of) in [(2, 3), (1, 2)] {
        let error = again(number, of).unwrap_err().to_string();
        let expected = format!("it is part 1/3, not part {number}/{of}");
        assert!(error.contains(&expected), "{error}");
    }
    assert_eq!(count(&parts[0]), 4);

    let joined = at(&config, folder.path().join("joined"));
    let made = join(&joined, &parts, "the command", &Context::default()).unwrap();
    assert_eq!(made.comparisons, expected.comparisons);
    assert_eq!(read(&joined.out), made);
    assert!(joined.out.join("report.html").is_file() && !joined.out.join("cells").exists());
    // The program does the same, by the settings of the parts, wherever they are by now.
    let moved = folder.path().join("moved");
    std::fs::rename(&parts[1], &moved).unwrap();
    let by_program = |directories: &[&Path], out: &str| {
        let mut call = command("study");
        call.arg("--report").args(directories).arg("--out").arg(folder.path().join(out));
        call.output().unwrap()
    };
    let output = by_program(&[&parts[0], &moved, &parts[2]], "by-program");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(read(&folder.path().join("by-program")).comparisons, expected.comparisons);
    // The joined directory is a study like others: it goes on with more.
    let more = StudyConfig { seeds: vec![1, 2, 3, 4], ..joined.clone() };
    assert_eq!(alone(&more).comparisons[0].students[0].mixtures[0].by_seed.len(), 4);

    // A part that is not named is missed, by its cells.
    let output = by_program(&[&parts[0], &parts[2]], "without");
    let told = text(&output);
    assert!(
        !output.status.success()
            && told.contains("5 of the 15 cells of the study are in no directory"),
        "{told}"
    );
    assert!(told.contains("small, Long, 100% long, seed 1") && told.contains("--part"), "{told}");
    assert!(!folder.path().join("without").exists(), "nothing is made");
    // So is a directory of something else.
    let told = text(&by_program(&[&parts[0], folder.path()], "without"));
    assert!(told.contains("does not hold a part of a study"), "{told}");
    // Other settings are told by name.
    let other = text(
        &command("study")
            .arg("--config")
            .arg(&settings)
            .args(["--set", "run.train.learning_rate=0.5", "--report"])
            .args([&parts[0], &moved, &parts[2]])
            .arg("--out")
            .arg(folder.path().join("other"))
            .output()
            .unwrap(),
    );
    assert!(other.contains("train.learning_rate was") && other.contains("part1"), "{other}");
}

#[test]
fn parts_of_different_days_fit_together_unless_a_template_sees_the_day() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("template.jinja");
    let turn = "{% for m in messages %}{{ m.content }} {% endfor %}";
    let (_, config) = config(folder.path(), |text| {
        let data = format!("[run.data]\nchat_template = {:?}\n", template.display().to_string());
        text.replace("[1, 2, 3]", "[1]").replace("[run.data]\n", &data)
    });
    for (sees_day, head) in [(false, ""), (true, "{{ strftime_now('%Y') }} ")] {
        std::fs::write(&template, format!("{head}{turn}")).unwrap();
        let place = folder.path().join(format!("sees-day-{sees_day}"));
        let older = place.join("part2");
        std::fs::create_dir_all(&older).unwrap();
        // As a part leaves it that began long ago.
        std::fs::write(older.join(".mixdistill-study"), "2020-02-29\n").unwrap();
        let parts = parts(&config, 2, &place);
        let joined = at(&config, place.join("joined"));
        let made = join(&joined, &parts, "the command", &Context::default());
        if sees_day {
            let error = made.unwrap_err().to_string();
            assert!(
                error.contains("date was \"2020-02-29\"") && error.contains("part2"),
                "{error}"
            );
        } else {
            let whole = at(&config, place.join("alone"));
            let expected = alone(&whole);
            assert_eq!(made.unwrap().comparisons, expected.comparisons);
            // Nor do the days of a cell's duplicates matter.
            let directories = [&parts[..], &[whole.out]].concat();
            let both = at(&config, place.join("both"));
            let made = join(&both, &directories, "the command", &Context::default());
            assert_eq!(made.unwrap().comparisons, expected.comparisons);
            // The study continues from cells of two days.
            let stored = std::fs::read_to_string(joined.result_file(&joined.cells()[1])).unwrap();
            assert!(stored.contains("2020-02-29"), "{stored}");
            assert_eq!(alone(&joined).comparisons, expected.comparisons);
        }
    }
}

#[test]
fn a_cell_that_two_parts_have_must_be_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (_, config) = config(folder.path(), |text| text.replace("[1, 2, 3]", "[1]"));
    let expected = alone(&config);
    // Two directories that both have everything, made by themselves.
    let [one, other] = ["one", "other"].map(|name| at(&config, folder.path().join(name)));
    let directories = [&one, &other].map(|each| {
        study_part(each, Part::whole(), &Context::default()).unwrap();
        each.out.clone()
    });
    let joined = |name: &str| {
        let joined = at(&config, folder.path().join(name));
        join(&joined, &directories, "the command", &Context::default())
    };
    assert_eq!(joined("equal").unwrap().comparisons, expected.comparisons);
    // The report tells machines that are not alike.
    let stored = other.result_file(&config.cells()[1]);
    edit(&stored, |cell| cell["machine"]["processor"] = "Another".into());
    std::fs::remove_file(one.result_file(&config.cells()[1])).unwrap();
    let made = joined("machines").unwrap();
    let warned =
        |text: &str| made.warnings.iter().any(|w| w.contains(text) && w.contains("Another (1)"));
    assert!(warned("processors differ"), "{:?}", made.warnings);
    assert!(!expected.warnings.iter().any(|w| w.contains("processors")));
    // Where the numbers are others, too, nobody knows which are right.
    edit(&other.result_file(&config.cells()[0]), |cell| {
        let hits = &mut cell["answers"][0]["hits"][0];
        *hits = (1.0 - hits.as_f64().unwrap()).into();
    });
    let error = joined("unequal").unwrap_err().to_string();
    assert!(error.contains("made twice") && error.contains("answers"), "{error}");
    assert!(error.contains("one") && error.contains("other"), "{error}");
}

#[test]
fn parts_that_begin_at_once_pretrain_once_in_a_common_cache() {
    let folder = tempfile::tempdir().unwrap();
    let pretraining =
        "[students.pretraining]\nseed = 7\n[students.pretraining.train]\nsteps = 30\n";
    let (_, mut config) = config(folder.path(), |text| {
        text.replace("[1, 2, 3]", "[1]")
            .replace("[run.model]", &format!("{pretraining}[run.model]"))
    });
    let cache = folder.path().join("cache");
    config.pretrained_cache = Some(cache.clone());
    let parts: Vec<StudyConfig> =
        (1..=3).map(|n| at(&config, folder.path().join(format!("part{n}")))).collect();
    let begin = std::sync::Barrier::new(parts.len());
    let told: Vec<String> = std::thread::scope(|scope| {
        let threads = parts.iter().zip(1..).map(|(part, number)| {
            let begin = &begin;
            scope.spawn(move || {
                let mut notices = Notices::default();
                begin.wait();
                let context = Context::new(&mut notices, &StopFlag::default());
                let made = study_part(part, Part::new(number, 3).unwrap(), &context);
                drop(context);
                made.unwrap();
                notices.0
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let waited = told.iter().filter(|text| text.contains("waiting: another process")).count();
    assert_eq!(waited, 2, "{told:?}");
    let runs = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(runs.filter(|path| path.is_dir()).count(), 1);
    let directories: Vec<PathBuf> = parts.iter().map(|part| part.out.clone()).collect();
    let joined = at(&config, folder.path().join("joined"));
    let made = join(&joined, &directories, "the command", &Context::default()).unwrap();
    assert_eq!(made.comparisons, alone(&at(&config, folder.path().join("alone"))).comparisons);
}

/// What is told.
#[derive(Default)]
struct Notices(String);

impl Observer for Notices {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Notice(text) = event {
            self.0 += &format!("{text}\n");
        }
        Ok(())
    }
}
