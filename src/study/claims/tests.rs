//! Tests of claims that processes want, hold, lose, and leave behind.

use super::*;
use std::sync::Barrier;

const NAME: &str = "small/Long-0.20/seed-1.json";

fn claims(out: &Path, dead_after: u64) -> Claims {
    Claims::new(out, out.join("mark"), Duration::from_millis(dead_after))
}

/// Leaves a claim whose process no longer exists.
fn leave_dead(claims: &Claims) {
    let claim = Claim { host: "gone".into(), process: 7, ..claims.0.claim() };
    claims.0.create(&claims.file(NAME), &claim).unwrap();
}

#[test]
fn one_holds_a_claim_until_it_lets_go() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| claims(folder.path(), 60_000));
    let held = one.try_claim(NAME).unwrap().unwrap();
    assert!(held.taken_from.is_none());
    assert!(other.try_claim(NAME).unwrap().is_none() && one.try_claim(NAME).unwrap().is_none());
    let holder = other.holder(NAME).unwrap();
    assert!(holder.ends_with(&format!(", process {}", std::process::id())), "{holder}");
    one.verified(|| Ok(())).unwrap();
    drop(held);
    assert!(!one.file(NAME).exists());
    drop(other.try_claim(NAME).unwrap().unwrap());
}

#[test]
fn a_live_claim_stays_however_long_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| claims(folder.path(), 2_000));
    let _held = one.try_claim(NAME).unwrap().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert!(other.try_claim(NAME).unwrap().is_none());
        one.check().unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    one.verified(|| Ok(())).unwrap();
}

#[test]
fn of_two_that_take_over_a_dead_claim_exactly_one_gets_it() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| claims(folder.path(), 80));
        leave_dead(&one);
        let both = [&one, &other];
        assert!(both.iter().all(|claims| claims.try_claim(NAME).unwrap().is_none()));
        std::thread::sleep(Duration::from_millis(100));
        let barrier = Barrier::new(2);
        let won: Vec<Option<Held>> = std::thread::scope(|scope| {
            let tries = both.map(|claims| {
                scope.spawn(|| {
                    barrier.wait();
                    claims.try_claim(NAME).unwrap()
                })
            });
            tries.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won: Vec<&Held> = won.iter().flatten().collect();
        let [winner] = won[..] else { panic!("{} won", won.len()) };
        assert_eq!(winner.taken_from.as_deref(), Some("gone, process 7"));
        winner.claims.verified(|| Ok(())).unwrap();
    }
}

#[test]
fn whoever_lost_its_claim_is_told_and_leaves_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| claims(folder.path(), 60_000));
    let held = one.try_claim(NAME).unwrap().unwrap();
    one.check().unwrap();
    // Like another process that has seen no heartbeat.
    let theirs = Claim { host: "elsewhere".into(), process: 9, ..other.0.claim() };
    std::fs::write(one.file(NAME), theirs.text()).unwrap();
    let error = one.verified(|| Ok(())).unwrap_err().to_string();
    assert!(error.contains("elsewhere, process 9 has taken it over"), "{error}");
    let context = Context::default();
    let watched = Watched { claims: one.clone(), context: &context };
    let watched = Context::new(watched, context.stop_flag());
    assert!(watched.notice("anything").is_err(), "the work ends at its next event");
    drop(held);
    assert_eq!(Claim::of(&std::fs::read_to_string(one.file(NAME)).unwrap()), Some(theirs));
    one.check().unwrap();
}

#[test]
fn claims_of_what_is_done_go_where_nobody_holds_them() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| claims(folder.path(), 60_000));
    let held = one.try_claim(NAME).unwrap().unwrap();
    assert!(held.is_alone());
    let names = || [NAME, "small/nothing.json"].map(String::from).into_iter();
    other.remove(names()).unwrap();
    one.verified(|| Ok(())).unwrap();
    drop(held);
    leave_dead(&one);
    other.remove(names()).unwrap();
    assert!(!one.file(NAME).exists());
}

#[test]
fn a_claim_of_one_that_is_still_there_is_taken_over_but_not_its_work() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| claims(folder.path(), 50));
    leave_dead(&one);
    let suspended = FolderLock::take_of_file(&one.file(NAME)).unwrap();
    assert!(other.try_claim(NAME).unwrap().is_none());
    std::thread::sleep(Duration::from_millis(70));
    let held = other.try_claim(NAME).unwrap().unwrap();
    assert!(!held.is_alone() && held.still_there().starts_with("gone, process 7 gives no sign"));
    drop((held, suspended));
    assert!(other.wait(NAME, "it", &Context::default()).unwrap().is_alone());
}

#[test]
fn a_claim_that_cannot_be_read_dies_as_others_do() {
    let folder = tempfile::tempdir().unwrap();
    let one = claims(folder.path(), 50);
    let path = one.file(NAME);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    for text in [&b""[..], b"no JSON", b"{\"renewed_every\": 1e300}", b"\xff\xfe"] {
        std::fs::write(&path, text).unwrap();
        assert!(one.try_claim(NAME).unwrap().is_none());
        std::thread::sleep(Duration::from_millis(70));
        assert!(one.try_claim(NAME).unwrap().unwrap().taken_from.is_some(), "{text:?}");
    }
}
