//! Collects answers: grades all saved responses, then lets threads ask for what is missing.
//!
//! The kept rows depend only on the responses, not on the order of the threads, because the samples of a
//! problem are requested in order. Only which problems are skipped because the other teacher failed
//! depends on timing.

use super::client::TROUBLE_EVERY;
use super::config::MakePairsConfig;
use super::report::AnswerCounts;
use super::round::{Chosen, CollectEvent, Fate, Open, Role, Round, Shared, Verdict, work};
use super::store::Store;
use crate::context::{Context, Event, PairsProgress, StopFlag, Task, TaskProgress};
use crate::error::{Error, Result};
use crate::eval::BenchmarkProblem;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A teacher's answers to all problems.
#[derive(Debug)]
pub(super) struct Collected {
    /// For each problem, the kept answer.
    pub chosen: Vec<Option<Chosen>>,
    pub counts: AnswerCounts,
}

/// Ends all threads when the watching thread ends, for whatever reason.
struct EndThreads<'a>(&'a StopFlag);

impl Drop for EndThreads<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}

/// Asks both teachers all problems. If `asks` is false, only grades saved responses. With `is_part`, a
/// teacher may refuse all problems, since it may answer those of other parts.
///
/// # Errors
/// [`Error::Stopped`], and errors that end all of the asking. All responses so far are saved.
pub(super) fn collect(
    problems: &[BenchmarkProblem],
    config: &MakePairsConfig,
    roles: [Role<'_>; 2],
    store: &Store,
    asks: bool,
    is_part: bool,
    context: &Context<'_>,
) -> Result<[Collected; 2]> {
    let shared = Shared::new(problems, config, store);
    let mut tally = RunningTotals::new(problems.len(), &roles);
    let mut open = grade_stored(&shared, &roles, &mut tally, context)?;
    for (role, part) in roles.iter().enumerate().filter(|_| !asks) {
        let mut events = vec![];
        let round = Round { shared: &shared, role, part, tell: &RefCell::new(&mut events) };
        std::mem::take(&mut open[role]).iter().for_each(|open| round.unanswered(open, false));
        events.into_iter().for_each(|event| tally.add(event));
    }
    let told = ask_all(&shared, &roles, open, &mut tally, context);
    store.flush()?;
    for (part, said) in roles.iter().filter_map(|part| Some((part, part.teacher.notice()?))) {
        context.notice(format!("{}: {said}", part.name))?;
    }
    let whole = tally.collected.iter().all(|part| part.counts.done() == problems.len());
    let refused = if whole && !is_part { refused_all(&shared, &tally.collected) } else { None };
    let failed = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failed.or(refused) {
        return Err(error);
    }
    match (whole, told) {
        // Ignores a stop that came after the last answer.
        (true, Ok(()) | Err(Error::Stopped { .. })) => Ok(tally.collected),
        (_, Err(error)) => Err(error),
        (false, Ok(())) => Err(Error::stopped("not all problems were asked")),
    }
}

/// Grades all saved responses. Returns the problems of each role that need more.
fn grade_stored(
    shared: &Shared<'_>,
    roles: &[Role<'_>; 2],
    tally: &mut RunningTotals,
    context: &Context<'_>,
) -> Result<[Vec<Open>; 2]> {
    let count = shared.problems.len();
    let mut progress = context.task(Task::GradeResponses, 2 * count as u64);
    let mut open = [vec![], vec![]];
    for (role, part) in roles.iter().enumerate() {
        for problem in 0..count {
            let mut events = vec![];
            let left = Round { shared, role, part, tell: &RefCell::new(&mut events) }
                .known(Open { problem, asked: 0, best: None })?;
            open[role].extend(left);
            events.into_iter().for_each(|event| tally.add(event));
            progress.update((role * count + problem + 1) as u64)?;
        }
    }
    Ok(open)
}

/// Lets threads ask for what is open, and reports their progress. After a stop or an error of the observer,
/// waits for the requests in flight, since their answers may cost money.
fn ask_all(
    shared: &Shared<'_>,
    roles: &[Role<'_>; 2],
    open: [Vec<Open>; 2],
    tally: &mut RunningTotals,
    context: &Context<'_>,
) -> Result<()> {
    let queues = open.map(|open| Mutex::new(VecDeque::from(open)));
    std::thread::scope(|scope| {
        let _end = EndThreads(&shared.ended);
        let (sender, receiver) = channel();
        for ((role, part), queue) in roles.iter().enumerate().zip(&queues) {
            let waiting = queue.lock().unwrap_or_else(PoisonError::into_inner).len();
            for _ in 0..part.teacher.threads().max(1).min(waiting) {
                let sender = sender.clone();
                let thread = std::thread::Builder::new()
                    .spawn_scoped(scope, move || work(shared, role, part, queue, &sender));
                if let Err(error) = thread {
                    shared.fail(Error::config(
                        format!("{}.concurrency", part.name),
                        format!("the system cannot start as many threads: {error}"),
                        "Give a lower number",
                    ));
                }
            }
        }
        drop(sender);
        Watch::new(shared, roles, tally, context).until_all_end(&receiver)
    })
}

/// Reports the progress of the threads.
struct Watch<'a, 'c> {
    shared: &'a Shared<'a>,
    roles: &'a [Role<'a>; 2],
    tally: &'a mut RunningTotals,
    context: &'a Context<'c>,
    progress: TaskProgress<'a, 'c>,
    started: Instant,
    shown: Instant,
    /// When the trouble of each role was last reported.
    troubled: [Option<Instant>; 2],
    /// Whether the error that ends the asking was reported.
    told_end: bool,
}

impl<'a, 'c> Watch<'a, 'c> {
    fn new(
        shared: &'a Shared<'a>,
        roles: &'a [Role<'a>; 2],
        tally: &'a mut RunningTotals,
        context: &'a Context<'c>,
    ) -> Self {
        let PairsProgress { done, of, .. } = tally.so_far;
        let progress = context.resumed_task(Task::AskTeachers, of as u64, done as u64);
        let (started, shown) = (Instant::now(), Instant::now());
        let (troubled, told_end) = ([None; 2], false);
        Self { shared, roles, tally, context, progress, started, shown, troubled, told_end }
    }

    /// Handles the events of the threads until the last of them ends. The error is what ended them early: a
    /// stop or an error of the observer.
    fn until_all_end(mut self, receiver: &Receiver<CollectEvent>) -> Result<()> {
        let mut given_up = self.tell().err();
        loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => self.tally.add(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.context.is_stopped() || given_up.is_some() {
                self.shared.ended.request();
            }
            let PairsProgress { done, of, .. } = self.tally.so_far;
            // Limits the rate of updates.
            if self.shown.elapsed() < Duration::from_millis(100) && done < of {
                continue;
            }
            self.shown = Instant::now();
            // An observer that failed is not called again.
            if matches!(given_up, None | Some(Error::Stopped { .. }))
                && let Err(error) = self.tell()
            {
                given_up.get_or_insert(error);
            }
        }
        given_up.map_or(Ok(()), Err)
    }

    fn tell(&mut self) -> Result<()> {
        let so_far = &mut self.tally.so_far;
        so_far.seconds = self.started.elapsed().as_secs_f64();
        self.context.emit(&Event::Pairs(so_far))?;
        let told = self.progress.progress().tokens;
        self.progress.add_tokens(so_far.new_tokens.saturating_sub(told));
        for (part, told) in self.roles.iter().zip(&mut self.troubled) {
            if told.is_none_or(|at| at.elapsed() > TROUBLE_EVERY)
                && let Some(trouble) = part.teacher.trouble()
            {
                *told = Some(Instant::now());
                self.context.notice(format!("{}: {trouble}", part.name))?;
            }
        }
        let error = self.shared.error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = error.as_ref().filter(|_| !self.told_end) {
            self.told_end = true;
            let what = format!("{error}. Waiting for the requests in flight");
            self.context.notice(what)?;
        }
        drop(error);
        self.progress.update(so_far.done as u64)
    }
}

/// All counts.
struct RunningTotals {
    collected: [Collected; 2],
    so_far: PairsProgress,
    prices: [[f64; 2]; 2],
}

impl RunningTotals {
    fn new(problems: usize, roles: &[Role<'_>; 2]) -> Self {
        let collected = roles.each_ref().map(|role| Collected {
            chosen: vec![None; problems],
            counts: AnswerCounts { model: role.teacher.name(), ..AnswerCounts::default() },
        });
        let so_far = PairsProgress { of: 2 * problems, ..PairsProgress::default() };
        Self { collected, so_far, prices: roles.each_ref().map(|role| role.config.price) }
    }

    /// Adds an event to the counts.
    fn add(&mut self, event: CollectEvent) {
        match event {
            CollectEvent::Response { role, tokens, known } => {
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
            CollectEvent::Verdicts { role, verdicts } => {
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
            CollectEvent::Fate { role, problem, fate } => {
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
            CollectEvent::Reason { role, reason } => {
                self.collected[role].counts.reason = Some(reason)
            }
        }
    }
}

/// Returns the error of a teacher that refused every problem. The refusals are then not about the problems.
fn refused_all(shared: &Shared<'_>, collected: &[Collected; 2]) -> Option<Error> {
    collected.iter().enumerate().find_map(|(role, Collected { counts, .. })| {
        if !counts.all_refused() || shared.answered[role].load(Ordering::SeqCst) {
            return None;
        }
        shared.refusal[role].lock().unwrap_or_else(PoisonError::into_inner).take()
    })
}
