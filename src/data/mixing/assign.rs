//! Assignment of sources to problems, for [`MixDistillation`].
//!
//! Every function assigns each problem one of the sources that answer it. A share that the sources cannot
//! reach comes out smaller, and the mixture's report shows it.
//!
//! [`MixDistillation`]: super::mixture::MixDistillation

use crate::random::Stream;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

/// The quantity that [`following`] keeps in proportion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    Rows,
    Tokens,
}

/// Counts that sum to `total`, each within 1 of `total * weight` (largest remainders; the first wins ties).
pub(super) fn largest_remainder(total: usize, weights: &[f64]) -> Vec<usize> {
    let exact: Vec<f64> = weights.iter().map(|w| w * total as f64).collect();
    // A product that is an integer except for rounding is treated as that integer.
    let floor = |x: f64| {
        if (x - x.round()).abs() < 1e-9 * x.abs().max(1.0) { x.round() } else { x.floor() }
    };
    let mut counts: Vec<usize> = exact.iter().map(|x| floor(*x) as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] > 0.0).collect();
    order.sort_by(|a, b| {
        (exact[*b] - floor(exact[*b])).total_cmp(&(exact[*a] - floor(exact[*a]))).then(a.cmp(b))
    });
    let mut missing = total.saturating_sub(counts.iter().sum());
    for index in order.iter().cycle().take(weights.len() * 2) {
        if missing == 0 {
            break;
        }
        counts[*index] += 1;
        missing -= 1;
    }
    counts
}

/// Meets exact counts of rows. Problems that few sources answer are assigned first, so that a count is missed
/// only if the answers do not suffice.
pub(super) fn exact(
    order: &[u32],
    weights: &[f64],
    available: impl Fn(u32, usize) -> bool,
) -> Vec<u16> {
    let counts = largest_remainder(order.len(), weights);
    let options = |problem: u32| (0..weights.len()).filter(|s| available(problem, *s)).count();
    let complete = order.iter().all(|p| options(*p) == weights.len());
    let mut assignment = vec![0u16; order.len()];
    if complete {
        let sources = counts.iter().enumerate().flat_map(|(s, n)| std::iter::repeat_n(s, *n));
        for (problem, source) in order.iter().zip(sources) {
            assignment[*problem as usize] = source as u16;
        }
        return assignment;
    }
    let mut places: Vec<u32> = (0..order.len() as u32).collect();
    places.sort_by_key(|place| options(order[*place as usize]));
    let mut owners = Owners::new(order, counts, &available);
    let mut unmet = vec![];
    for place in places {
        let (problem, left) = (order[place as usize], &mut owners.left);
        let choice = (0..weights.len())
            .filter(|s| available(problem, *s) && left[*s] > 0)
            .max_by(|a, b| left[*a].cmp(&left[*b]).then(b.cmp(a)));
        match choice {
            Some(source) => {
                left[source] -= 1;
                owners.give(place, source);
            }
            None => unmet.push(place),
        }
    }
    // If no exchange was found for a problem, none exists for problems with the same sources.
    let mut hopeless = HashSet::new();
    for place in unmet {
        let problem = order[place as usize];
        let answers: Vec<bool> = (0..weights.len()).map(|s| available(problem, s)).collect();
        let exchanged = match hopeless.contains(&answers) {
            true => None,
            false => owners.exchange(&answers),
        };
        // Exceed the count of a source: the one with the largest weight.
        let any = (0..weights.len())
            .filter(|s| answers[*s])
            .max_by(|a, b| weights[*a].total_cmp(&weights[*b]).then(b.cmp(a)));
        if let Some(source) = exchanged.or(any) {
            owners.give(place, source);
        }
        if exchanged.is_none() {
            hopeless.insert(answers);
        }
    }
    for (problem, source) in order.iter().zip(owners.sources) {
        assignment[*problem as usize] = source.unwrap_or_default() as u16;
    }
    assignment
}

/// The state of [`exact`]. Problems are identified by their position in the order.
struct Owners<'a, A> {
    order: &'a [u32],
    available: &'a A,
    /// The source at each position.
    sources: Vec<Option<usize>>,
    /// Remaining rows of each source.
    left: Vec<usize>,
    /// At `from * sources + to`: positions that had `from` when they were added and could have `to`, first
    /// one on top. Searching the whole order instead takes quadratic time if many exchanges are needed.
    movers: Vec<BinaryHeap<Reverse<u32>>>,
}

impl<'a, A: Fn(u32, usize) -> bool> Owners<'a, A> {
    fn new(order: &'a [u32], left: Vec<usize>, available: &'a A) -> Self {
        let movers = vec![BinaryHeap::new(); left.len() * left.len()];
        Self { order, available, sources: vec![None; order.len()], left, movers }
    }

    fn give(&mut self, place: u32, source: usize) {
        let (available, problem) = (self.available, self.order[place as usize]);
        self.sources[place as usize] = Some(source);
        for to in 0..self.left.len() {
            if to != source && available(problem, to) {
                self.movers[source * self.left.len() + to].push(Reverse(place));
            }
        }
    }

    /// Returns the first position that has source `from` and could have `to`.
    fn first(&mut self, from: usize, to: usize) -> Option<u32> {
        let movers = &mut self.movers[from * self.left.len() + to];
        while let Some(&Reverse(place)) = movers.peek() {
            if self.sources[place as usize] == Some(from) {
                return Some(place);
            }
            // Outdated: the problem has moved on. `give` adds it again if it returns.
            movers.pop();
        }
        None
    }

    /// Finds a source for a problem whose sources have no rows left, by moving other problems: the first
    /// takes a source from the second, the second from the third, and the last takes a source that has rows
    /// left (a shortest augmenting path). `answers` says which sources answer the problem.
    fn exchange(&mut self, answers: &[bool]) -> Option<usize> {
        /// How the search reached a source: the previous source, and the position that moves.
        type Step = Option<(usize, u32)>;
        let sources = answers.len();
        let mut reached: Vec<Option<Step>> = answers.iter().map(|a| a.then_some(None)).collect();
        let mut queue: Vec<usize> = (0..sources).filter(|s| answers[*s]).collect();
        let mut next = 0;
        while next < queue.len() {
            // If every source is reached and none has rows left, there is no path.
            if queue.len() == sources && self.left.iter().all(|left| *left == 0) {
                return None;
            }
            let source = queue[next];
            next += 1;
            if self.left[source] > 0 {
                self.left[source] -= 1;
                // Go back along the path: each problem moves to the source that it led to.
                let mut at = source;
                while let Some(Some((from, mover))) = reached[at] {
                    self.give(mover, at);
                    at = from;
                }
                return Some(at);
            }
            let unreached = (0..sources).filter(|to| reached[*to].is_none());
            let mut found: Vec<(u32, usize)> =
                unreached.filter_map(|to| Some((self.first(source, to)?, to))).collect();
            // The order breaks ties between paths of the same length.
            found.sort_unstable();
            for (mover, to) in found {
                reached[to] = Some(Some((source, mover)));
                queue.push(to);
            }
        }
        None
    }
}

/// Draws a source for each problem among those that answer it.
pub(super) fn bernoulli(
    order: &[u32],
    weights_at: impl Fn(usize) -> Vec<f64>,
    available: impl Fn(u32, usize) -> bool,
    random: &mut Stream,
) -> Vec<u16> {
    let mut assignment = vec![0u16; order.len()];
    for (place, &problem) in order.iter().enumerate() {
        let weights = weights_at(place);
        let weights: Vec<f64> = weights
            .iter()
            .enumerate()
            .map(|(s, w)| if available(problem, s) { *w } else { 0.0 })
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut point = random.unit() * sum;
        let drawn = weights.iter().position(|w| {
            point -= w;
            *w > 0.0 && point < 0.0
        });
        // Rounding may leave the point at the very end. If no available source has weight, take any.
        let last = || weights.iter().rposition(|w| *w > 0.0);
        let any = || (0..weights.len()).find(|s| available(problem, *s));
        assignment[problem as usize] = drawn.or_else(last).or_else(any).unwrap_or_default() as u16;
    }
    assignment
}

/// Follows weights that may change along the order: each problem gets the source that is furthest behind its
/// due amount of rows or tokens.
pub(super) fn following(
    order: &[u32],
    weights_at: impl Fn(usize) -> Vec<f64>,
    quota: Quota,
    size: &dyn Fn(u32, usize) -> Option<u32>,
) -> Vec<u16> {
    let mut assignment = vec![0u16; order.len()];
    let mut behind = vec![0.0f64; weights_at(0).len()];
    for (place, &problem) in order.iter().enumerate() {
        let weights = weights_at(place);
        if quota == Quota::Rows {
            behind.iter_mut().zip(&weights).for_each(|(behind, weight)| *behind += weight);
        }
        let choice = (0..weights.len())
            .filter(|s| size(problem, *s).is_some())
            .max_by(|a, b| {
                let key = |s: usize| (weights[s] > 0.0, behind[s], weights[s]);
                let ((ua, da, wa), (ub, db, wb)) = (key(*a), key(*b));
                ua.cmp(&ub).then(da.total_cmp(&db)).then(wa.total_cmp(&wb)).then(b.cmp(a))
            })
            .unwrap_or_default();
        let amount = f64::from(size(problem, choice).unwrap_or_default());
        if quota == Quota::Tokens {
            let grow = behind.iter_mut().zip(&weights);
            grow.for_each(|(behind, weight)| *behind += weight * amount);
        }
        behind[choice] -= amount;
        assignment[problem as usize] = choice as u16;
    }
    assignment
}

/// Changes single problems, then swaps the sources of two, as long as that brings the token shares closer to
/// the weights.
pub(super) fn refine_tokens(
    assignment: &mut [u16],
    order: &[u32],
    weights: &[f64],
    size: &dyn Fn(u32, usize) -> Option<u32>,
) {
    /// Limits on the problems considered for a single change and for a swap, which keep rounds cheap on large
    /// data. There are enough candidates among the first problems.
    const CANDIDATES: usize = 1 << 16;
    const EXCHANGED: usize = 256;
    const ROUNDS: usize = 64;
    let mut search = TokenSearch { weights, size, tokens: vec![0.0; weights.len()] };
    for (problem, source) in assignment.iter().enumerate() {
        let tokens = size(problem as u32, usize::from(*source)).unwrap_or_default();
        search.tokens[usize::from(*source)] += f64::from(tokens);
    }
    let mut best = search.deviation(&[]);
    for _ in 0..ROUNDS {
        let mut found: Option<Vec<Move>> = None;
        let mut consider = |moves: &[Move]| {
            let deviation = search.deviation(moves);
            if deviation < best - 1e-15 {
                best = deviation;
                found = Some(moves.to_vec());
            }
            found.is_some()
        };
        let mut improved = false;
        let targets = || (0..weights.len()).filter(|to| weights[*to] > 0.0);
        for &problem in order.iter().take(CANDIDATES) {
            let from = usize::from(assignment[problem as usize]);
            for to in targets().filter(|to| *to != from) {
                improved = consider(&[(problem, from, to)]);
            }
        }
        if !improved {
            let few = &order[..order.len().min(EXCHANGED)];
            for (index, &p) in few.iter().enumerate() {
                for &q in &few[..index] {
                    let [a, b] = [p, q].map(|p| usize::from(assignment[p as usize]));
                    if a != b {
                        consider(&[(p, a, b), (q, b, a)]);
                    }
                }
            }
        }
        let Some(moves) = found else { break };
        search.tokens = search.after(&moves);
        for (problem, _, to) in moves {
            assignment[problem as usize] = to as u16;
        }
    }
}

/// A problem, its old source, and its new source.
type Move = (u32, usize, usize);

struct TokenSearch<'a> {
    weights: &'a [f64],
    size: &'a dyn Fn(u32, usize) -> Option<u32>,
    /// Tokens of each source.
    tokens: Vec<f64>,
}

impl TokenSearch<'_> {
    fn after(&self, moves: &[Move]) -> Vec<f64> {
        let mut tokens = self.tokens.clone();
        for &(problem, from, to) in moves {
            match ((self.size)(problem, from), (self.size)(problem, to)) {
                (Some(taken), Some(given)) => {
                    tokens[from] -= f64::from(taken);
                    tokens[to] += f64::from(given);
                }
                // The source does not answer the problem.
                _ => return vec![f64::INFINITY; tokens.len()],
            }
        }
        tokens
    }

    /// Returns the sum of the absolute differences between shares and weights. NaN for an impossible move.
    fn deviation(&self, moves: &[Move]) -> f64 {
        let tokens = self.after(moves);
        let total: f64 = tokens.iter().sum();
        tokens.iter().zip(self.weights).map(|(t, w)| (t / total - w).abs()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_remainders_sum_up_and_stay_within_one() {
        assert_eq!(largest_remainder(10, &[0.2, 0.8]), [2, 8]);
        assert_eq!(largest_remainder(291, &[0.2, 0.8]), [58, 233]);
        assert_eq!(largest_remainder(2, &[1.0 / 3.0; 3]), [1, 1, 0]);
        assert_eq!(largest_remainder(7, &[0.0, 1.0]), [0, 7]);
        assert_eq!(largest_remainder(0, &[0.5, 0.5]), [0, 0]);
    }

    #[test]
    fn counts_are_met_wherever_the_answers_allow_it() {
        // Problem 2 has only source 0, problems 0 and 1 have both. One row of source 0 is requested.
        let available = |problem: u32, source: usize| problem != 2 || source == 0;
        assert_eq!(exact(&[0, 1, 2], &[1.0 / 3.0, 2.0 / 3.0], available), [1, 1, 0]);

        // Three problems with two of three sources each: a greedy choice can fail.
        let has = [[0, 1], [0, 1], [1, 2]];
        let available = |problem: u32, source: usize| has[problem as usize].contains(&source);
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let mut sources = exact(&order, &[1.0 / 3.0; 3], available);
            sources.sort_unstable();
            assert_eq!(sources, [0, 1, 2], "order {order:?}");
        }

        // Four sources in a chain: the last one is reached only by three exchanges.
        let has = [[2, 3], [1, 2], [0, 1], [0, 1]];
        let available = |problem: u32, source: usize| has[problem as usize].contains(&source);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut sources = exact(&order, &[0.25; 4], available);
            sources.sort_unstable();
            assert_eq!(sources, [0, 1, 2, 3], "order {order:?}");
        }
    }

    /// Returns a simple version of [`exact`]: each exchange searches the whole order.
    fn exact_by_looking_through_all(
        order: &[u32],
        weights: &[f64],
        available: impl Fn(u32, usize) -> bool,
    ) -> Vec<u16> {
        let sources = weights.len();
        let mut left = largest_remainder(order.len(), weights);
        let answers = |p: u32| (0..sources).filter(|s| available(p, *s)).collect::<Vec<_>>();
        let mut problems = order.to_vec();
        problems.sort_by_key(|p| answers(*p).len());
        let mut owner = vec![None; order.len()];
        for &problem in &problems {
            let free = answers(problem).into_iter().filter(|s| left[*s] > 0);
            if let Some(source) = free.max_by(|a, b| left[*a].cmp(&left[*b]).then(b.cmp(a))) {
                left[source] -= 1;
                owner[problem as usize] = Some(source);
            }
        }
        for problem in problems {
            if owner[problem as usize].is_some() {
                continue;
            }
            // Sources in the order in which they are reached, each with the step and the problem that led to
            // it.
            let mut queue: Vec<(usize, Option<(usize, u32)>)> =
                answers(problem).into_iter().map(|s| (s, None)).collect();
            let mut next = 0;
            while next < queue.len() && left[queue[next].0] == 0 {
                let from = Some(queue[next].0);
                for &other in order.iter().filter(|other| owner[**other as usize] == from) {
                    for to in answers(other) {
                        if queue.iter().all(|(source, _)| *source != to) {
                            queue.push((to, Some((next, other))));
                        }
                    }
                }
                next += 1;
            }
            let Some(&(mut source, mut step)) = queue.get(next) else {
                let any = answers(problem).into_iter();
                owner[problem as usize] =
                    any.max_by(|a, b| weights[*a].total_cmp(&weights[*b]).then(b.cmp(a)));
                continue;
            };
            left[source] -= 1;
            while let Some((from, mover)) = step {
                owner[mover as usize] = Some(source);
                (source, step) = queue[from];
            }
            owner[problem as usize] = Some(source);
        }
        owner.into_iter().map(|source| source.unwrap() as u16).collect()
    }

    #[test]
    fn exchanges_are_those_that_a_look_through_all_problems_finds() {
        let mut random = Stream::new(0, "exchanges", 0);
        for case in 0..3000 {
            let (problems, sources) = (1 + random.below(40) as usize, 2 + random.below(5) as usize);
            let weights: Vec<f64> = (0..sources).map(|_| random.unit().powi(3)).collect();
            let sum: f64 = weights.iter().sum();
            let weights: Vec<f64> = weights.iter().map(|w| w / sum).collect();
            // With one or two sources per problem, the greedy pass often fails.
            let mut source = || 1u64 << random.below(sources as u64);
            let has: Vec<u64> = (0..problems).map(|_| source() | source()).collect();
            // If every problem has all sources, only the order matters.
            if has.iter().all(|has| has.count_ones() as usize == sources) {
                continue;
            }
            let order = random.permutation(problems);
            let available =
                |problem: u32, source: usize| has[problem as usize] & (1 << source) != 0;
            let expected = exact_by_looking_through_all(&order, &weights, available);
            assert_eq!(exact(&order, &weights, available), expected, "case {case}");
        }
    }
}
