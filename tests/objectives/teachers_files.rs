//! Teacher logits in files: written by several processes, read back unchanged, and refused if
//! damaged.

use crate::common;
use crate::{TEMPERATURE, plain_rows, teacher};
use mixdistill::data::{Row, TopTokens};
use mixdistill::train::{LogitTeacher, TeacherLogits, TeacherLogitsHeader, TeacherLogitsWriter};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn write(folder: &Path, rows: &[Row], k: usize) -> TeacherLogitsWriter {
    let header = TeacherLogitsHeader::new("a teacher", "its hash", 23, k, TEMPERATURE).unwrap();
    let mut writer = TeacherLogitsWriter::open(folder, header).unwrap();
    let missing: Vec<Row> = rows.iter().filter(|row| !writer.holds(row)).cloned().collect();
    let tops = teacher(k).top_tokens(&missing).unwrap();
    for pair in missing.into_iter().zip(tops).collect::<Vec<_>>().chunks(3) {
        writer.write(pair).unwrap();
    }
    writer
}

#[test]
fn a_teacher_in_files_teaches_as_the_model_does() {
    let folder = tempfile::tempdir().unwrap();
    let rows = plain_rows();
    // Begun, and gone on with by another process; what is there is not written again.
    write(folder.path(), &rows[..5], 6);
    let writer = write(folder.path(), &rows, 6);
    assert!(rows.iter().all(|row| writer.holds(row)));
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let part = |n: usize| format!("part-{n:06}.safetensors");
    assert_eq!(names, [".lock".into(), part(0), part(1), part(2), "teacher.json".into()]);

    let mut logits = TeacherLogits::open(folder.path()).unwrap();
    assert_eq!((logits.len(), logits.header().top_k), (8, 6));
    assert!(logits.top_tokens(&rows).unwrap() == teacher(6).top_tokens(&rows).unwrap());
    // A row's number and label do not matter, its tokens do.
    let renamed = Row { number: 99, label: "other".into(), ..rows[0].clone() };
    assert!(logits.read(&renamed).unwrap() == logits.read(&rows[0]).unwrap());
    let mut foreign = rows[0].clone();
    foreign.tokens[4] += 1;
    let error = logits.read(&foreign).unwrap_err().to_string();
    assert!(error.contains("no logits for row 0"), "{error}");
}

#[test]
fn teachers_files_that_cannot_be_used_are_refused_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, path) = (plain_rows(), folder.path().join("logits"));
    write(&path, &rows, 2);
    let other = TeacherLogitsHeader::new("a teacher", "its hash", 23, 3, TEMPERATURE).unwrap();
    let error = TeacherLogitsWriter::open(&path, other).unwrap_err().to_string();
    assert!(error.contains("top_k was 2, is 3"), "{error}");
    // The same teacher by another name is the same.
    let renamed = TeacherLogitsHeader::new("./a teacher", "its hash", 23, 2, TEMPERATURE).unwrap();
    let writer = TeacherLogitsWriter::open(&path, renamed.clone()).unwrap();
    let error = TeacherLogitsWriter::open(&path, renamed).unwrap_err().to_string();
    assert!(error.contains("another process is using it"), "{error}");
    drop(writer);
    assert!(TeacherLogitsHeader::new("a", "b", 23, 24, 1.0).is_err());
    assert!(TeacherLogitsHeader::new("a", "b", 23, 2, 0.0).is_err());
    // A folder with other things in it stays as it is.
    let header = TeacherLogitsHeader::new("a teacher", "its hash", 23, 2, TEMPERATURE).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    assert!(TeacherLogitsWriter::open(folder.path(), header).is_err());

    let damage = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let file = path.join(name);
        let before = std::fs::read(&file).unwrap();
        let mut bytes = before.clone();
        change(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        let read = TeacherLogits::open(&path)
            .and_then(|mut logits| logits.top_tokens(&rows))
            .map(|_| ())
            .expect_err("it is damaged")
            .to_string();
        std::fs::write(&file, before).unwrap();
        read
    };
    let part = "part-000000.safetensors";
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from));
            *bytes = text.replace(from, to).into_bytes();
        }
    };
    let json = "teacher.json";
    for (name, change) in [
        (json, &(|bytes: &mut Vec<u8>| bytes.truncate(9)) as &dyn Fn(&mut Vec<u8>)),
        (json, &replaced("\"version\": 1", "\"version\": 9")),
        (json, &replaced("\"top_k\": 2", "\"top_k\": 0")),
        (json, &replaced("\"top_k\": 2", "\"top_k\": 18446744073709551615")),
        (json, &replaced("\"top_k\": 2", "\"top_k\": 3")),
        (json, &replaced("\"vocabulary\": 23", "\"vocabulary\": 5")),
        (part, &|bytes: &mut Vec<u8>| bytes.truncate(40)),
        (part, &|bytes: &mut Vec<u8>| bytes.clear()),
        (part, &|bytes: &mut Vec<u8>| bytes[0..8].fill(0xff)),
        (part, &|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 100)),
        // One bit of a number.
        (part, &|bytes: &mut Vec<u8>| {
            let end = bytes.len();
            bytes[end - 8] ^= 1;
        }),
    ] {
        let error = damage(name, change);
        assert!(error.contains(name) || error.contains("logits"), "{name}: {error}");
    }
    // What a teacher cannot have said is not written.
    let mut writer =
        TeacherLogitsWriter::open(&folder.path().join("new"), logits_header()).unwrap();
    let mut top = teacher(2).top_tokens(&rows[..1]).unwrap().remove(0);
    top.log_probs[0] = 0.0;
    let error = writer.write(&[(rows[0].clone(), top)]).unwrap_err().to_string();
    assert!(error.contains("add up to"), "{error}");

    // Files of other names are no parts, and are not written over.
    std::fs::copy(path.join(part), path.join("part-000000_old.safetensors")).unwrap();
    let before = std::fs::read(path.join(part)).unwrap();
    let more = common::rows(&[(17, 4)]);
    write(&path, &more, 2);
    assert!(std::fs::read(path.join(part)).unwrap() == before);
    assert_eq!(TeacherLogits::open(&path).unwrap().len(), 9);

    // A part that is cut short under the run is an error.
    let mut open = TeacherLogits::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(path.join(part)).unwrap().set_len(900).unwrap();
    let error = open.top_tokens(&rows).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains(part), "{error}");
}

fn logits_header() -> TeacherLogitsHeader {
    TeacherLogitsHeader::new("a teacher", "its hash", 23, 2, TEMPERATURE).unwrap()
}

#[test]
fn thousands_of_rows_in_a_part_are_read_without_looking_through_it() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..4000u32)
        .map(|n| Row { tokens: vec![1, n % 23, n / 23 % 23, n / 529], prompt: 2, ..Row::default() })
        .collect();
    let top = |row: &Row| TopTokens {
        k: 1,
        tokens: row.tokens[2..].iter().map(|t| t % 23).collect(),
        log_probs: [0.5f32.ln(); 4].to_vec(),
    };
    let header = TeacherLogitsHeader::new("a teacher", "its hash", 23, 1, 1.0).unwrap();
    let mut writer = TeacherLogitsWriter::open(folder.path(), header).unwrap();
    let pairs: Vec<(Row, TopTokens)> = rows.iter().map(|row| (row.clone(), top(row))).collect();
    writer.write(&pairs).unwrap();
    let start = std::time::Instant::now();
    let mut logits = TeacherLogits::open(folder.path()).unwrap();
    for row in &rows {
        assert!(logits.read(row).unwrap() == top(row));
    }
    println!("4000 rows of one part read in {:.0?}", start.elapsed());
}

#[test]
fn a_folder_of_many_parts_is_read_with_few_of_them_open() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..100u32)
        .map(|n| Row { tokens: vec![1, n % 23, n / 23], prompt: 2, ..Row::default() })
        .collect();
    // Each row's is another, so that what is read from another part shows.
    let top = |row: &Row| {
        let likely = 0.1 + row.tokens[1] as f32 / 40.0;
        let log_probs = vec![likely.ln(), (1.0 - likely).ln()];
        TopTokens { k: 1, tokens: vec![row.tokens[2]], log_probs }
    };
    let header = TeacherLogitsHeader::new("a teacher", "its hash", 23, 1, 1.0).unwrap();
    let mut writer = TeacherLogitsWriter::open(folder.path(), header).unwrap();
    for row in &rows {
        writer.write(&[(row.clone(), top(row))]).unwrap();
    }
    drop(writer);
    let mut logits = TeacherLogits::open(folder.path()).unwrap();
    // Linux lists the files that a process has open; elsewhere none are found.
    let few_are_open = || {
        let files = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let files = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        files.filter(|path| path.starts_with(folder.path())).count() < 32
    };
    assert!(logits.len() == 100 && few_are_open());
    let leaps = (0..100).map(|n| n * 77 % 100);
    for n in (0..100).chain((0..100).rev()).chain(leaps) {
        assert!(logits.read(&rows[n]).unwrap() == top(&rows[n]), "row {n}");
        assert!(logits.read(&rows[n]).unwrap() == top(&rows[n]), "row {n} again");
    }
    assert!(few_are_open());

    // What became of a part while it was not open is found: removed, cut short, or another.
    let part = |n: usize| folder.path().join(format!("part-{n:06}.safetensors"));
    let open = |n: usize| std::fs::OpenOptions::new().write(true).open(part(n)).unwrap();
    std::fs::remove_file(part(0)).unwrap();
    open(1).set_len(100).unwrap();
    std::fs::copy(part(3), part(2)).unwrap();
    // Later by more than a file system's clock may be coarse.
    open(2).set_modified(SystemTime::now() + Duration::from_secs(9)).unwrap();
    for (n, what) in [(0, "cannot read"), (1, "it has changed"), (2, "it has changed")] {
        let error = logits.read(&rows[n]).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(&format!("part-00000{n}")), "{error}");
    }
}
