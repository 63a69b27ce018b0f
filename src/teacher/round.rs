//! The work of one thread: it takes problems, requests samples until enough are there, and saves each
//! response before grading it.

use super::config::{Keep, MakePairsConfig, Pick, TeacherConfig};
use super::store::{Line, RequestHash, Store, request_hash};
use super::{Failure, Response, Teacher, TeacherPrompt, TeacherSample, server_error};
use crate::context::StopFlag;
use crate::error::{Error, Result};
use crate::eval::{AnswerKind, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION, same_answer};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A kept answer: the request of its response and the index of its sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub request: RequestHash,
    pub sample: usize,
}

/// A teacher and its role.
pub(super) struct Role<'a> {
    pub name: &'static str,
    pub teacher: &'a dyn Teacher,
    pub config: &'a TeacherConfig,
}

/// The grade of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Correct,
    Wrong,
    Unstated,
    Cut,
    Empty,
}

fn verdict(problem: &BenchmarkProblem, sample: &TeacherSample) -> Verdict {
    // A truncated answer is not kept, even if it already states the final answer.
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

/// The outcome of a problem.
#[derive(Debug)]
pub(super) enum Fate {
    Correct(Chosen),
    Without,
    Refused,
    NotAnswered,
    Skipped,
}

/// What the threads report.
pub(super) enum CollectEvent {
    Response { role: usize, tokens: [u64; 2], known: bool },
    Verdicts { role: usize, verdicts: Vec<Verdict> },
    Fate { role: usize, problem: usize, fate: Fate },
    Reason { role: usize, reason: String },
}

/// The state that the threads share.
pub(super) struct Shared<'a> {
    pub problems: &'a [BenchmarkProblem],
    pub config: &'a MakePairsConfig,
    pub store: &'a Store,
    /// Ends all threads.
    pub ended: StopFlag,
    pub error: Mutex<Option<Error>>,
    /// For each problem, whether one of the teachers has no correct answer.
    pub lost: Vec<AtomicBool>,
    /// For each role, the number of unanswered questions since the last answer.
    pub failures: [AtomicUsize; 2],
    /// For each role, the number of refused questions while none was answered, in this or an earlier call.
    pub refusals: [AtomicUsize; 2],
    pub answered: [AtomicBool; 2],
    /// The first refusal of each role.
    pub refusal: [Mutex<Option<Error>>; 2],
}

impl<'a> Shared<'a> {
    pub fn new(
        problems: &'a [BenchmarkProblem],
        config: &'a MakePairsConfig,
        store: &'a Store,
    ) -> Self {
        Self {
            problems,
            config,
            store,
            ended: StopFlag::default(),
            error: Mutex::new(None),
            lost: problems.iter().map(|_| AtomicBool::new(false)).collect(),
            failures: Default::default(),
            refusals: Default::default(),
            answered: Default::default(),
            refusal: Default::default(),
        }
    }

    /// Ends the asking with an error. The first of several errors counts.
    pub fn fail(&self, error: Error) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.ended.request();
    }
}

/// A problem that is being asked.
pub(super) struct Open {
    pub problem: usize,
    /// Number of samples so far.
    pub asked: usize,
    /// The best answer so far, and its length.
    pub best: Option<(Chosen, usize)>,
}

/// Runs one thread of a teacher until no problem is left or the asking ends.
pub(super) fn work(
    shared: &Shared<'_>,
    role: usize,
    part: &Role<'_>,
    queue: &Mutex<VecDeque<Open>>,
    sender: &Sender<CollectEvent>,
) {
    let batch = part.teacher.batch().max(1);
    loop {
        let mut open: Vec<Open> = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let count = batch.min(queue.len());
            queue.drain(..count).collect()
        };
        if open.is_empty() {
            return;
        }
        while !open.is_empty() {
            if shared.ended.is_requested() {
                return;
            }
            let mut events = vec![];
            let round = Round { shared, role, part, tell: &RefCell::new(&mut events) };
            let left = round.ask(open);
            // The receiver outlives the threads.
            events.into_iter().for_each(|event| drop(sender.send(event)));
            match left {
                Ok(left) => open = left,
                Err(Failure::Stopped) => return,
                Err(failure) => {
                    shared.fail(failure.into_error());
                    return;
                }
            }
        }
    }
}

/// One request for each of several problems.
pub(super) struct Round<'a> {
    pub shared: &'a Shared<'a>,
    pub role: usize,
    pub part: &'a Role<'a>,
    pub tell: &'a RefCell<&'a mut Vec<CollectEvent>>,
}

impl Round<'_> {
    fn tell(&self, event: CollectEvent) {
        self.tell.borrow_mut().push(event);
    }

    /// Returns the next question about a problem.
    fn question(&self, open: &Open) -> (TeacherPrompt, RequestHash) {
        let problem = &self.shared.problems[open.problem];
        question(problem, self.shared.config, self.part, open.asked)
    }

    /// Grades the saved responses to a problem. Returns the problem if it needs more.
    pub fn known(&self, open: Open) -> Result<Option<Open>> {
        let mut left = Some(open);
        while let Some(open) = left {
            let (question, hash) = self.question(&open);
            match self.shared.store.get(&hash)? {
                None => return Ok(Some(open)),
                Some(line) => left = self.look(open, question.n, hash, &line.response, true),
            }
        }
        Ok(None)
    }

    /// Asks for the next samples of each problem. Returns the problems that need more.
    fn ask(&self, open: Vec<Open>) -> Result<Vec<Open>, Failure> {
        let mut unknown = vec![];
        for open in open {
            let lost = self.shared.lost[open.problem].load(Ordering::SeqCst);
            if lost && self.shared.config.keep == Keep::Both {
                self.fate(&open, Fate::Skipped);
                continue;
            }
            // Some of the next samples may be saved.
            if let Some(open) = self.known(open).map_err(Failure::All)? {
                let (question, hash) = self.question(&open);
                unknown.push((open, question, hash));
            }
        }
        if unknown.is_empty() {
            return Ok(vec![]);
        }
        let questions: Vec<TeacherPrompt> = unknown.iter().map(|(_, q, _)| q.clone()).collect();
        let started = Instant::now();
        let failures = &self.shared.failures[self.role];
        let threads = self.part.teacher.threads();
        match self.part.teacher.ask(&questions, &self.shared.ended) {
            Ok(responses) if responses.len() == questions.len() => {
                failures.store(0, Ordering::SeqCst);
                let seconds = started.elapsed().as_secs_f64() / questions.len() as f64;
                let mut left = vec![];
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
            Ok(responses) => {
                let (asked, got) = (questions.len(), responses.len());
                let what = format!("it returned {got} responses to {asked} questions");
                let place = self.part.teacher.place();
                Err(Failure::All(server_error(&place, what, "Return one response per question")))
            }
            Err(Failure::One(error)) => {
                // If no question was ever answered, the refusals are not about the questions.
                let refused = self.shared.refusals[self.role].fetch_add(1, Ordering::SeqCst) + 1;
                let answered = self.shared.answered[self.role].load(Ordering::SeqCst);
                if !answered && refused >= threads.max(8) {
                    return Err(Failure::All(error));
                }
                self.tell(CollectEvent::Reason { role: self.role, reason: error.to_string() });
                let first = self.shared.refusal[self.role].lock();
                first.unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                unknown.iter().for_each(|(open, ..)| self.unanswered(open, true));
                Ok(vec![])
            }
            Err(Failure::Busy(error)) => {
                // A single failure may be bad luck. If no question is answered any more, the teacher is gone.
                let row = failures.fetch_add(1, Ordering::SeqCst) + 1;
                if row >= threads.max(4) {
                    return Err(Failure::All(error));
                }
                self.tell(CollectEvent::Reason { role: self.role, reason: error.to_string() });
                unknown.iter().for_each(|(open, ..)| self.unanswered(open, false));
                Ok(vec![])
            }
            Err(failure) => Err(failure),
        }
    }

    /// Grades a response. Returns the problem if it needs more.
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
        self.shared.answered[self.role].store(true, Ordering::SeqCst);
        self.tell(CollectEvent::Response { role: self.role, tokens, known });
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
        self.tell(CollectEvent::Verdicts { role: self.role, verdicts });
        // A server may return fewer answers than requested. If it returns none, it refuses the problem.
        if response.samples.is_empty() {
            self.unanswered(&open, true);
            return None;
        }
        open.asked += response.samples.len().min(n);
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

    /// Reports the outcome of a problem that gets no more answers in this call.
    pub fn unanswered(&self, open: &Open, refused: bool) {
        let lost = &self.shared.lost[open.problem];
        let fate = match (open.best, refused) {
            (Some((chosen, _)), _) => Fate::Correct(chosen),
            (None, true) => {
                lost.store(true, Ordering::SeqCst);
                Fate::Refused
            }
            (None, false)
                if lost.load(Ordering::SeqCst) && self.shared.config.keep == Keep::Both =>
            {
                Fate::Skipped
            }
            (None, false) => Fate::NotAnswered,
        };
        self.fate(open, fate);
    }

    fn fate(&self, open: &Open, fate: Fate) {
        self.tell(CollectEvent::Fate { role: self.role, problem: open.problem, fate });
    }
}

/// Returns the next question about a problem after `asked` samples, and the hash of its request.
fn question(
    problem: &BenchmarkProblem,
    config: &MakePairsConfig,
    part: &Role<'_>,
    asked: usize,
) -> (TeacherPrompt, RequestHash) {
    let question = TeacherPrompt {
        system: problem.system.clone(),
        prompt: prompt(problem, config.instruct),
        seed: config.seed.wrapping_add(asked as u64),
        n: part.config.n.min(config.samples - asked),
    };
    let hash = request_hash(part.name, &part.teacher.request(&question));
    (question, hash)
}

/// Returns the hash of the first request for a problem.
pub(super) fn first_request(
    problem: &BenchmarkProblem,
    config: &MakePairsConfig,
    part: &Role<'_>,
) -> RequestHash {
    question(problem, config, part, 0).1
}

/// Returns the prompt of a problem.
fn prompt(problem: &BenchmarkProblem, instruct: bool) -> String {
    match (instruct, problem.kind) {
        (false, _) => problem.problem.clone(),
        (true, AnswerKind::Choice) => format!("{}\n{CHOICE_INSTRUCTION}", problem.problem),
        (true, _) => format!("{}\n{INSTRUCTION}", problem.problem),
    }
}
