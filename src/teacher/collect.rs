//! The asking: threads take problems, ask for sample after sample until one is correct, and store
//! every response before they look at it.
//!
//! First all that earlier runs have stored is looked at, then what is missing is asked for. Which rows
//! are kept depends on the responses alone, and not on which thread came first: a problem's samples
//! are asked in order. Only which problems are spared, when the other teacher has failed, is a matter
//! of time.

use super::config::{Keep, MakePairsConfig, Pick, TeacherConfig};
use super::report::{AnswerCounts, PairsProgress};
use super::store::{Line, RequestHash, Store, request_hash};
use super::{Failure, PairsEvent, Question, Response, Sample, Teacher, server_error};
use crate::error::{Error, Result};
use crate::eval::{AnswerKind, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION, same_answer};
use crate::train::StopFlag;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Ends all threads.
    ended: StopFlag,
    error: Mutex<Option<Error>>,
    /// Problems that are not kept, since one of the teachers has no correct answer.
    lost: Vec<AtomicBool>,
    /// Questions of each role that went unanswered since the last answer.
    failures: [AtomicUsize; 2],
    /// Questions of each role that were refused while none was answered, in this run or before.
    refusals: [AtomicUsize; 2],
    answered: [AtomicBool; 2],
    /// The first refusal of each role.
    refusal: [Mutex<Option<Error>>; 2],
}

impl Shared<'_> {
    /// Ends the asking with an error, the first of several.
    fn fail(&self, error: Error) {
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.ended.request();
    }

    /// The error of a teacher that refused every problem that it was asked: then it is not the
    /// problems that it refuses.
    fn refused_all(&self, collected: &[Collected; 2]) -> Option<Error> {
        collected.iter().enumerate().find_map(|(role, Collected { counts, .. })| {
            let is_all = counts.refused > 0 && counts.refused + counts.skipped == counts.done();
            if !is_all || self.answered[role].load(Ordering::SeqCst) {
                return None;
            }
            self.refusal[role].lock().unwrap_or_else(PoisonError::into_inner).take()
        })
    }
}

/// Ends all threads when the one that watches them does, whatever the reason.
struct EndThreads<'a>(&'a StopFlag);

impl Drop for EndThreads<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}

/// Asks both teachers all problems; without `asks`, only what is stored is looked at. `None` after a
/// stop.
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
    observe: &mut dyn FnMut(PairsEvent<'_>),
) -> Result<Option<[Collected; 2]>> {
    let shared = Shared {
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
    };
    let mut tally = Tally {
        collected: [0, 1].map(|role: usize| Collected {
            chosen: vec![None; problems.len()],
            counts: AnswerCounts { model: roles[role].teacher.name(), ..AnswerCounts::default() },
        }),
        so_far: PairsProgress { of: 2 * problems.len(), ..PairsProgress::default() },
        prices: [roles[0].config.price, roles[1].config.price],
    };
    let mut open = [vec![], vec![]];
    for (role, part) in roles.iter().enumerate() {
        for problem in 0..problems.len() {
            if stop.is_requested() {
                return Ok(None);
            }
            let mut events = vec![];
            let left = Round { shared: &shared, role, part, tell: &RefCell::new(&mut events) }
                .known(Open { problem, asked: 0, best: None })?;
            open[role].extend(left);
            events.into_iter().for_each(|event| tally.add(event));
            observe(PairsEvent::Looking(role * problems.len() + problem + 1, 2 * problems.len()));
        }
    }
    for (role, part) in roles.iter().enumerate().filter(|_| !asks) {
        let mut events = vec![];
        let round = Round { shared: &shared, role, part, tell: &RefCell::new(&mut events) };
        std::mem::take(&mut open[role]).iter().for_each(|open| round.unanswered(open, false));
        events.into_iter().for_each(|event| tally.add(event));
    }
    observe(PairsEvent::Asking(&tally.so_far));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let _end = EndThreads(&shared.ended);
        let (sender, receiver) = channel();
        let queues = open.map(|open| Mutex::new(VecDeque::from(open)));
        let queues = Arc::new(queues);
        for (role, part) in roles.iter().enumerate() {
            let waiting = queues[role].lock().unwrap_or_else(PoisonError::into_inner).len();
            for _ in 0..part.teacher.threads().max(1).min(waiting) {
                let (sender, shared, queues) = (sender.clone(), &shared, queues.clone());
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
                    work(shared, role, part, &queues[role], &sender);
                });
                if let Err(error) = thread {
                    shared.fail(Error::config(
                        format!("{}.concurrency", part.name),
                        format!("the system refuses so many threads: {error}"),
                        "Give a lower number",
                    ));
                }
            }
        }
        drop(sender);
        let mut shown = Instant::now();
        let mut said: [Option<Instant>; 2] = [None; 2];
        let mut waits = false;
        loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => tally.add(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if stop.is_requested() {
                shared.ended.request();
            }
            let so_far = &mut tally.so_far;
            // More often than anyone can see would only cost time.
            if shown.elapsed() < Duration::from_millis(100) && so_far.done < so_far.of {
                continue;
            }
            shown = Instant::now();
            so_far.seconds = started.elapsed().as_secs_f64();
            observe(PairsEvent::Asking(so_far));
            for (part, said) in roles.iter().zip(&mut said) {
                if said.is_none_or(|at| at.elapsed() > TROUBLE_EVERY)
                    && let Some(trouble) = part.teacher.trouble()
                {
                    *said = Some(Instant::now());
                    observe(PairsEvent::Notice(&format!("{}: {trouble}", part.name)));
                }
            }
            let error = shared.error.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = error.as_ref().filter(|_| !waits) {
                waits = true;
                let what = format!("{error}. Answers that are on their way are waited for");
                observe(PairsEvent::Notice(&what));
            }
        }
    });
    store.flush()?;
    for (part, said) in roles.iter().filter_map(|part| Some((part, part.teacher.notice()?))) {
        observe(PairsEvent::Notice(&format!("{}: {said}", part.name)));
    }
    let whole = tally.collected.iter().all(|part| part.counts.done() == problems.len());
    let refused = if whole { shared.refused_all(&tally.collected) } else { None };
    let failed = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failed.or(refused) {
        return Err(error);
    }
    Ok(whole.then_some(tally.collected))
}

/// Time between two notices of a teacher's trouble.
const TROUBLE_EVERY: Duration = Duration::from_secs(10);

/// All numbers.
struct Tally {
    collected: [Collected; 2],
    so_far: PairsProgress,
    prices: [[f64; 2]; 2],
}

impl Tally {
    /// Adds an event to the numbers.
    fn add(&mut self, event: Event) {
        match event {
            Event::Response { role, tokens, known } => {
                let counts = &mut self.collected[role].counts;
                let price = self.prices[role];
                let cost = (0..2).map(|i| price[i] * tokens[i] as f64 / 1e6).sum::<f64>();
                let add = |all: &mut [u64; 2]| {
                    all.iter_mut().zip(tokens).for_each(|(all, tokens)| *all += tokens);
                };
                counts.cost += cost;
                add(&mut counts.tokens);
                if known {
                    counts.requests_known += 1;
                } else {
                    counts.requests_new += 1;
                    self.so_far.cost += cost;
                    self.so_far.new_tokens += tokens[1];
                    add(&mut self.so_far.tokens);
                }
            }
            Event::Verdicts { role, verdicts } => {
                let counts = &mut self.collected[role].counts;
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
                let Collected { chosen, counts } = &mut self.collected[role];
                self.so_far.done += 1;
                match fate {
                    Fate::Correct(answer) => {
                        counts.with_correct += 1;
                        self.so_far.correct[role] += 1;
                        chosen[problem] = Some(answer);
                    }
                    Fate::Without => counts.without_correct += 1,
                    Fate::Refused => counts.refused += 1,
                    Fate::NotAnswered => counts.not_answered += 1,
                    Fate::Skipped => counts.skipped += 1,
                }
            }
            Event::Reason { role, reason } => self.collected[role].counts.reason = Some(reason),
        }
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
fn work(
    shared: &Shared<'_>,
    role: usize,
    part: &Role<'_>,
    queue: &Mutex<VecDeque<Open>>,
    sender: &Sender<Event>,
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
                Err(failure) => {
                    if let Some(error) = failure.into_error() {
                        shared.fail(error);
                    }
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
    tell: &'a RefCell<&'a mut Vec<Event>>,
}

impl Round<'_> {
    fn tell(&self, event: Event) {
        self.tell.borrow_mut().push(event);
    }

    /// The next question about a problem.
    fn question(&self, open: &Open) -> (Question, RequestHash) {
        let problem = &self.shared.problems[open.problem];
        question(problem, self.shared.config, self.part, open.asked)
    }

    /// Looks at all that is stored of a problem; returns it if it needs more.
    fn known(&self, open: Open) -> Result<Option<Open>> {
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

    /// Asks each problem for its next samples; returns those that need more.
    fn ask(&self, open: Vec<Open>) -> Result<Vec<Open>, Failure> {
        let mut unknown = vec![];
        for open in open {
            let lost = self.shared.lost[open.problem].load(Ordering::SeqCst);
            if lost && self.shared.config.keep == Keep::Both {
                self.fate(&open, Fate::Skipped);
                continue;
            }
            // Of the next samples some may be stored.
            if let Some(open) = self.known(open).map_err(Failure::All)? {
                let (question, hash) = self.question(&open);
                unknown.push((open, question, hash));
            }
        }
        if unknown.is_empty() {
            return Ok(vec![]);
        }
        let questions: Vec<Question> = unknown.iter().map(|(_, q, _)| q.clone()).collect();
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
                let what = format!("it answered {got} of {asked} questions");
                let place = self.part.teacher.place();
                Err(Failure::All(server_error(&place, what, "A teacher answers all or none")))
            }
            Err(Failure::One(error)) => {
                // Where nothing is ever answered, it is not the questions that it refuses.
                let refused = self.shared.refusals[self.role].fetch_add(1, Ordering::SeqCst) + 1;
                let answered = self.shared.answered[self.role].load(Ordering::SeqCst);
                if !answered && refused >= threads.max(8) {
                    return Err(Failure::All(error));
                }
                self.tell(Event::Reason { role: self.role, reason: error.to_string() });
                let first = self.shared.refusal[self.role].lock();
                first.unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                unknown.iter().for_each(|(open, ..)| self.unanswered(open, true));
                Ok(vec![])
            }
            Err(Failure::Busy(error)) => {
                // One question may be unlucky; if none is answered any more, the teacher is gone.
                let row = failures.fetch_add(1, Ordering::SeqCst) + 1;
                if row >= threads.max(4) {
                    return Err(Failure::All(error));
                }
                self.tell(Event::Reason { role: self.role, reason: error.to_string() });
                unknown.iter().for_each(|(open, ..)| self.unanswered(open, false));
                Ok(vec![])
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
        self.shared.answered[self.role].store(true, Ordering::SeqCst);
        self.tell(Event::Response { role: self.role, tokens, known });
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
        self.tell(Event::Verdicts { role: self.role, verdicts });
        // A server may give fewer than were asked for; without any it refuses the problem.
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

    /// The fate of a problem to which no more answers come in this run.
    fn unanswered(&self, open: &Open, refused: bool) {
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
        self.tell(Event::Fate { role: self.role, problem: open.problem, fate });
    }
}

/// The question about a problem after so many samples, and what names it.
fn question(
    problem: &BenchmarkProblem,
    config: &MakePairsConfig,
    part: &Role<'_>,
    asked: usize,
) -> (Question, RequestHash) {
    let question = Question {
        system: problem.system.clone(),
        prompt: prompt(problem, config.instruct),
        seed: config.seed.wrapping_add(asked as u64),
        n: part.config.n.min(config.samples - asked),
    };
    let hash = request_hash(part.name, &part.teacher.request(&question));
    (question, hash)
}

/// What names the first question about a problem.
pub(super) fn first_request(
    problem: &BenchmarkProblem,
    config: &MakePairsConfig,
    part: &Role<'_>,
) -> RequestHash {
    question(problem, config, part, 0).1
}

/// What a teacher is asked.
fn prompt(problem: &BenchmarkProblem, instruct: bool) -> String {
    match (instruct, problem.kind) {
        (false, _) => problem.problem.clone(),
        (true, AnswerKind::Choice) => format!("{}\n{CHOICE_INSTRUCTION}", problem.problem),
        (true, _) => format!("{}\n{INSTRUCTION}", problem.problem),
    }
}
