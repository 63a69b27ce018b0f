//! The asking: threads take problems, ask for sample after sample until one is correct, and store
//! every response before they look at it.
//!
//! What is kept depends on the responses alone, and not on which thread came first: a problem's
//! samples are asked in order, and those that an earlier run has asked are taken from the store.

use super::config::{Keep, MakePairsConfig, Pick, TeacherConfig};
use super::report::{AnswerCounts, PairsProgress};
use super::store::{Line, RequestHash, Store, request_hash};
use super::{Failure, Question, Response, Sample, Teacher};
use crate::error::{Error, Result};
use crate::eval::{AnswerKind, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION, same_answer};
use crate::train::StopFlag;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An answer that is kept: where its response is, and which of its samples it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub request: RequestHash,
    pub sample: usize,
}

/// A teacher's answers to all problems.
#[derive(Debug)]
pub(super) struct Collected {
    /// For each problem the answer that is kept.
    pub chosen: Vec<Option<Chosen>>,
    pub counts: AnswerCounts,
}

/// A teacher and its part.
pub(super) struct Role<'a> {
    pub name: &'static str,
    pub teacher: &'a dyn Teacher,
    pub config: &'a TeacherConfig,
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Correct,
    Wrong,
    Unstated,
    Cut,
    Empty,
}

fn verdict(problem: &BenchmarkProblem, sample: &Sample) -> Verdict {
    // An answer that was cut off is not kept even where it states the final answer already.
    if sample.is_cut() {
        return Verdict::Cut;
    }
    if sample.content.trim().is_empty() || sample.finish_reason.as_deref() == Some("content_filter")
    {
        return Verdict::Empty;
    }
    match problem.kind.answer(&sample.content) {
        Some(stated) if same_answer(&problem.reference, &stated) => Verdict::Correct,
        Some(_) => Verdict::Wrong,
        None => Verdict::Unstated,
    }
}

/// What became of a problem.
#[derive(Debug)]
enum Fate {
    Correct(Chosen),
    Without,
    Refused,
    NotAnswered,
    Skipped,
}

/// What threads tell.
enum Event {
    Response { role: usize, tokens: [u64; 2], known: bool },
    Verdicts { role: usize, verdicts: Vec<Verdict> },
    Fate { role: usize, problem: usize, fate: Fate },
    Reason { role: usize, reason: String },
}

/// What threads share.
struct Shared<'a> {
    problems: &'a [BenchmarkProblem],
    config: &'a MakePairsConfig,
    store: &'a Store,
    /// Whether teachers are asked at all, or only what is stored is looked at.
    asks: bool,
    /// Ends all threads.
    ended: StopFlag,
    error: Mutex<Option<Error>>,
    /// The next problem of each role.
    next: [AtomicUsize; 2],
    /// Problems that are not kept, since one of the teachers has no correct answer.
    lost: Vec<AtomicBool>,
    /// Questions that went unanswered since the last answer, of each role.
    failures: [AtomicUsize; 2],
}

/// Asks both teachers all problems. `None` after a stop.
///
/// # Errors
/// What ends the asking as a whole; all responses up to there are stored.
pub(super) fn collect(
    problems: &[BenchmarkProblem],
    config: &MakePairsConfig,
    roles: [Role<'_>; 2],
    store: &Store,
    asks: bool,
    stop: &StopFlag,
    progress: &mut dyn FnMut(&PairsProgress),
) -> Result<Option<[Collected; 2]>> {
    let shared = Shared {
        problems,
        config,
        store,
        asks,
        ended: StopFlag::default(),
        error: Mutex::new(None),
        next: Default::default(),
        lost: problems.iter().map(|_| AtomicBool::new(false)).collect(),
        failures: Default::default(),
    };
    let mut collected = [0, 1].map(|role: usize| Collected {
        chosen: vec![None; problems.len()],
        counts: AnswerCounts { model: roles[role].teacher.name(), ..AnswerCounts::default() },
    });
    let started = Instant::now();
    let mut so_far = PairsProgress { of: 2 * problems.len(), ..PairsProgress::default() };
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for (role, part) in roles.iter().enumerate() {
            for _ in 0..part.teacher.threads().clamp(1, problems.len().max(1)) {
                let (sender, shared) = (sender.clone(), &shared);
                scope.spawn(move || work(shared, role, part, &sender));
            }
        }
        drop(sender);
        let mut shown = Instant::now();
        loop {
            let event = match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if stop.is_requested() {
                shared.ended.request();
            }
            if let Some(event) = event {
                count(&mut collected, &roles, &mut so_far, event);
            }
            // More often than anyone can see would only cost time.
            if shown.elapsed() < Duration::from_millis(100) && so_far.done < so_far.of {
                continue;
            }
            shown = Instant::now();
            so_far.seconds = started.elapsed().as_secs_f64();
            progress(&so_far);
        }
    });
    store.flush()?;
    if let Some(error) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let whole = collected.iter().all(|part| part.counts.done() == problems.len());
    Ok(whole.then_some(collected))
}

/// Adds an event to the numbers.
fn count(
    collected: &mut [Collected; 2],
    roles: &[Role<'_>; 2],
    so_far: &mut PairsProgress,
    event: Event,
) {
    match event {
        Event::Response { role, tokens, known } => {
            let counts = &mut collected[role].counts;
            let price = roles[role].config.price;
            let cost = (0..2).map(|i| price[i] * tokens[i] as f64 / 1e6).sum::<f64>();
            counts.cost += cost;
            for i in 0..2 {
                counts.tokens[i] += tokens[i];
            }
            if known {
                counts.requests_known += 1;
            } else {
                counts.requests_new += 1;
                so_far.cost += cost;
                so_far.new_tokens += tokens[1];
                for i in 0..2 {
                    so_far.tokens[i] += tokens[i];
                }
            }
        }
        Event::Verdicts { role, verdicts } => {
            let counts = &mut collected[role].counts;
            for verdict in verdicts {
                counts.answers += 1;
                *match verdict {
                    Verdict::Correct => &mut counts.correct,
                    Verdict::Wrong => &mut counts.wrong,
                    Verdict::Unstated => &mut counts.unstated,
                    Verdict::Cut => &mut counts.cut,
                    Verdict::Empty => &mut counts.empty,
                } += 1;
            }
        }
        Event::Fate { role, problem, fate } => {
            let Collected { chosen, counts } = &mut collected[role];
            so_far.done += 1;
            match fate {
                Fate::Correct(answer) => {
                    counts.with_correct += 1;
                    so_far.correct[role] += 1;
                    chosen[problem] = Some(answer);
                }
                Fate::Without => counts.without_correct += 1,
                Fate::Refused => counts.refused += 1,
                Fate::NotAnswered => counts.not_answered += 1,
                Fate::Skipped => counts.skipped += 1,
            }
        }
        Event::Reason { role, reason } => collected[role].counts.reason = Some(reason),
    }
}

/// A problem on its way.
struct Open {
    problem: usize,
    /// Samples asked for so far.
    asked: usize,
    /// The best so far, and its length.
    best: Option<(Chosen, usize)>,
}

/// One thread of a teacher, until no problem is left or the asking ends.
fn work(shared: &Shared<'_>, role: usize, part: &Role<'_>, sender: &Sender<Event>) {
    let batch = part.teacher.batch().max(1);
    let tell = |event| {
        // The receiver outlives the threads.
        let _ = sender.send(event);
    };
    loop {
        let first = shared.next[role].fetch_add(batch, Ordering::SeqCst);
        let last = (first + batch).min(shared.problems.len());
        if first >= last {
            return;
        }
        let mut open: Vec<Open> =
            (first..last).map(|problem| Open { problem, asked: 0, best: None }).collect();
        while !open.is_empty() {
            if shared.ended.is_requested() {
                return;
            }
            let round = Round { shared, role, part, tell: &tell };
            match round.ask(open) {
                Ok(left) => open = left,
                Err(Failure::Stopped) => return,
                Err(failure) => {
                    let mut error = shared.error.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(first) = failure.into_error().filter(|_| error.is_none()) {
                        *error = Some(first);
                    }
                    shared.ended.request();
                    return;
                }
            }
        }
    }
}

/// One sample of several problems.
struct Round<'a> {
    shared: &'a Shared<'a>,
    role: usize,
    part: &'a Role<'a>,
    tell: &'a dyn Fn(Event),
}

impl Round<'_> {
    /// Asks each problem for its next samples; returns those that need more.
    fn ask(&self, open: Vec<Open>) -> Result<Vec<Open>, Failure> {
        let config = self.shared.config;
        let mut left = vec![];
        let mut unknown = vec![];
        for open in open {
            let n = self.part.config.n.min(config.samples - open.asked);
            let question = Question {
                prompt: prompt(&self.shared.problems[open.problem], config.instruct),
                seed: config.seed.wrapping_add(open.asked as u64),
                n,
            };
            let hash = request_hash(self.part.name, &self.part.teacher.request(&question));
            match self.shared.store.get(&hash).map_err(Failure::All)? {
                Some(line) => left.extend(self.look(open, n, hash, &line.response, true)),
                None if config.keep == Keep::Both
                    && self.shared.lost[open.problem].load(Ordering::SeqCst) =>
                {
                    self.fate(&open, Fate::Skipped);
                }
                None => unknown.push((open, question, hash)),
            }
        }
        if unknown.is_empty() {
            return Ok(left);
        }
        if !self.shared.asks {
            for (open, ..) in unknown {
                self.fate_without_answer(&open, false);
            }
            return Ok(left);
        }
        let questions: Vec<Question> = unknown.iter().map(|(_, q, _)| q.clone()).collect();
        let started = Instant::now();
        let failures = &self.shared.failures[self.role];
        match self.part.teacher.ask(&questions, &self.shared.ended) {
            Ok(responses) => {
                failures.store(0, Ordering::SeqCst);
                let seconds = started.elapsed().as_secs_f64() / questions.len() as f64;
                for ((open, question, hash), response) in unknown.into_iter().zip(responses) {
                    let line = Line {
                        request: String::new(),
                        teacher: self.part.name.to_owned(),
                        model: self.part.teacher.name(),
                        place: self.part.teacher.place(),
                        id: self.shared.problems[open.problem].id.clone(),
                        prompt: question.prompt,
                        seconds,
                        response: response.clone(),
                    };
                    self.shared.store.put(&hash, line).map_err(Failure::All)?;
                    left.extend(self.look(open, question.n, hash, &response, false));
                }
                Ok(left)
            }
            Err(Failure::One(error)) => {
                (self.tell)(Event::Reason { role: self.role, reason: error.to_string() });
                for (open, ..) in unknown {
                    self.fate_without_answer(&open, true);
                }
                Ok(left)
            }
            Err(Failure::Busy(error)) => {
                // One question may be unlucky; if none is answered any more, the teacher is gone.
                let row = failures.fetch_add(1, Ordering::SeqCst) + 1;
                if row >= self.part.teacher.threads().max(4) {
                    return Err(Failure::All(error));
                }
                (self.tell)(Event::Reason { role: self.role, reason: error.to_string() });
                for (open, ..) in unknown {
                    self.fate_without_answer(&open, false);
                }
                Ok(left)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Grades a response; returns the problem if it needs more.
    fn look(
        &self,
        mut open: Open,
        n: usize,
        request: RequestHash,
        response: &Response,
        known: bool,
    ) -> Option<Open> {
        let tokens =
            [response.prompt_tokens, response.completion_tokens].map(Option::unwrap_or_default);
        (self.tell)(Event::Response { role: self.role, tokens, known });
        let problem = &self.shared.problems[open.problem];
        let verdicts: Vec<Verdict> =
            response.samples.iter().map(|sample| verdict(problem, sample)).collect();
        let config = self.shared.config;
        for (sample, _) in verdicts.iter().enumerate().filter(|(_, v)| **v == Verdict::Correct) {
            let text = response.samples[sample].joined(self.part.config.reasoning);
            let length = text.chars().count();
            let better = match (&open.best, config.pick) {
                (None, _) => true,
                (Some(_), Pick::First) => false,
                (Some((_, best)), Pick::Shortest) => length < *best,
                (Some((_, best)), Pick::Longest) => length > *best,
            };
            if better {
                open.best = Some((Chosen { request, sample }, length));
            }
        }
        (self.tell)(Event::Verdicts { role: self.role, verdicts });
        open.asked += n;
        let settled = config.pick == Pick::First && open.best.is_some();
        if open.asked < config.samples && !settled {
            return Some(open);
        }
        match open.best {
            Some((chosen, _)) => self.fate(&open, Fate::Correct(chosen)),
            None => {
                self.shared.lost[open.problem].store(true, Ordering::SeqCst);
                self.fate(&open, Fate::Without);
            }
        }
        None
    }

    /// The fate of a problem to which no more answers come in this run.
    fn fate_without_answer(&self, open: &Open, refused: bool) {
        let fate = match (open.best, refused) {
            (Some((chosen, _)), _) => Fate::Correct(chosen),
            (None, true) => Fate::Refused,
            (None, false) => Fate::NotAnswered,
        };
        if refused && open.best.is_none() {
            self.shared.lost[open.problem].store(true, Ordering::SeqCst);
        }
        self.fate(open, fate);
    }

    fn fate(&self, open: &Open, fate: Fate) {
        (self.tell)(Event::Fate { role: self.role, problem: open.problem, fate });
    }
}

/// What a teacher is asked.
fn prompt(problem: &BenchmarkProblem, instruct: bool) -> String {
    match (instruct, problem.kind) {
        (false, _) => problem.problem.clone(),
        (true, AnswerKind::Choice) => format!("{}\n{CHOICE_INSTRUCTION}", problem.problem),
        (true, _) => format!("{}\n{INSTRUCTION}", problem.problem),
    }
}
