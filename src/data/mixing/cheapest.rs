//! The assignment of sources to problems with the lowest total cost, within bounds on the number of problems
//! per source.
//!
//! It starts with the cheapest source for each problem and then makes exchanges: a problem moves from one
//! source to another, possibly through other sources whose problems move on. The lowest total cost as a
//! function of the sources' counts is M-convex, so a state that no single exchange improves is optimal
//! (Murota, "Discrete Convex Analysis", 2003, theorem 6.26).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A problem, by its position in the order, that can move at this cost.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mover {
    cost: f64,
    place: u32,
}

impl Eq for Mover {}

impl Ord for Mover {
    /// Orders the cheapest last, since the heap has the greatest on top. Among equal ones, the first is the
    /// greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.cost.total_cmp(&self.cost).then(other.place.cmp(&self.place))
    }
}

impl PartialOrd for Mover {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Assigns a source to each problem. `cost` is the cost of a source's answer to a problem, or `None` if it
/// has none. Every problem has at least one. `bounds` are the minimum and maximum number of problems of each
/// source. If the answers cannot meet them, they are missed by as little as possible. Ties are broken by the
/// position in `order`, so that they favor no source.
pub(super) fn cheapest(
    order: &[u32],
    bounds: &[(usize, usize)],
    cost: impl Fn(u32, usize) -> Option<f64>,
) -> Vec<u16> {
    let width = bounds.len();
    let mut search = Search {
        order,
        bounds,
        cost: &cost,
        sources: vec![0; order.len()],
        counts: vec![0; width],
        movers: vec![BinaryHeap::new(); width * width],
    };
    for place in 0..order.len() {
        search.give(place as u32, search.cheapest_source(place));
    }
    // Each exchange improves the bounds or the cost. The limit guards against cycles caused by rounding.
    for _ in 0..order.len() * width + width {
        let Some(path) = search.best_exchange() else { break };
        search.exchange(&path);
    }
    let mut assignment = vec![0u16; order.len()];
    for (problem, source) in order.iter().zip(search.sources) {
        assignment[*problem as usize] = source as u16;
    }
    assignment
}

struct Search<'a, C> {
    order: &'a [u32],
    bounds: &'a [(usize, usize)],
    cost: &'a C,
    /// The source at each position.
    sources: Vec<usize>,
    /// The number of problems of each source.
    counts: Vec<usize>,
    /// At `from * sources + to`: positions that had `from` when they were added and could have `to`, cheapest
    /// first.
    movers: Vec<BinaryHeap<Mover>>,
}

impl<C: Fn(u32, usize) -> Option<f64>> Search<'_, C> {
    /// Returns the cost of a source's answer to the problem at a position.
    fn cost(&self, place: u32, source: usize) -> Option<f64> {
        (self.cost)(self.order[place as usize], source)
    }

    fn cheapest_source(&self, place: usize) -> usize {
        let costs: Vec<(usize, f64)> = (0..self.counts.len())
            .filter_map(|source| Some((source, self.cost(place as u32, source)?)))
            .collect();
        let least = costs.iter().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
        let tied: Vec<usize> =
            costs.iter().filter(|(_, cost)| *cost <= least).map(|(source, _)| *source).collect();
        tied.get(place % tied.len().max(1)).copied().unwrap_or_default()
    }

    /// Assigns a source to a position and records its possible moves.
    fn give(&mut self, place: u32, source: usize) {
        let width = self.counts.len();
        self.sources[place as usize] = source;
        self.counts[source] += 1;
        let Some(here) = self.cost(place, source) else { return };
        for to in (0..width).filter(|to| *to != source) {
            if let Some(there) = self.cost(place, to) {
                self.movers[source * width + to].push(Mover { cost: there - here, place });
            }
        }
    }

    /// Returns the cheapest position that has source `from` and could have `to`.
    fn cheapest_mover(&mut self, from: usize, to: usize) -> Option<Mover> {
        let movers = &mut self.movers[from * self.counts.len() + to];
        while let Some(mover) = movers.peek() {
            if self.sources[mover.place as usize] == from {
                return Some(*mover);
            }
            // Outdated: the problem has moved on. `give` adds it again if it returns.
            movers.pop();
        }
        None
    }

    /// Returns the cheapest exchange that moves the counts toward their bounds or, failing that, lowers the
    /// cost: the positions that move, each with its new source.
    fn best_exchange(&mut self) -> Option<Vec<(u32, usize)>> {
        /// Tolerance for rounding errors in sums of costs.
        const ROUNDING: f64 = 1e-12;
        let width = self.counts.len();
        let steps: Vec<Option<Mover>> = (0..width * width)
            .map(|step| self.cheapest_mover(step / width, step % width))
            .collect();
        // Shortest paths between all sources (Floyd-Warshall), with the first source on each.
        let mut way: Vec<f64> =
            steps.iter().map(|step| step.map_or(f64::INFINITY, |mover| mover.cost)).collect();
        let mut first: Vec<usize> = (0..width * width).map(|step| step % width).collect();
        for middle in 0..width {
            for from in 0..width {
                for to in (0..width).filter(|to| *to != from) {
                    let around = way[from * width + middle] + way[middle * width + to];
                    let direct = way[from * width + to];
                    if around + ROUNDING * (1.0 + around.abs()) < direct {
                        way[from * width + to] = around;
                        first[from * width + to] = first[from * width + middle];
                    }
                }
            }
        }
        let leave = |source: usize| match self.counts[source] {
            count if count > self.bounds[source].1 => -1,
            count if count <= self.bounds[source].0 => 1,
            _ => 0,
        };
        let enter = |source: usize| match self.counts[source] {
            count if count < self.bounds[source].0 => -1,
            count if count >= self.bounds[source].1 => 1,
            _ => 0,
        };
        let pairs = (0..width * width).map(|pair| (pair / width, pair % width));
        let exchanges = pairs
            .filter(|(from, to)| from != to && way[from * width + to].is_finite())
            .map(|(from, to)| (leave(from) + enter(to), way[from * width + to], from, to));
        let (missed, cost, from, to) =
            exchanges.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))?;
        if missed > 0 || (missed == 0 && cost > -ROUNDING * (1.0 + cost.abs())) {
            return None;
        }
        let (mut at, mut path) = (from, vec![]);
        while at != to && path.len() < width {
            let next = first[at * width + to];
            path.push((steps[at * width + next]?.place, next));
            at = next;
        }
        (at == to).then_some(path)
    }

    fn exchange(&mut self, path: &[(u32, usize)]) {
        for &(place, to) in path {
            self.counts[self.sources[place as usize]] -= 1;
            self.give(place, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// Returns the distance of the counts from their bounds, and the cost.
    fn value(
        assignment: &[usize],
        bounds: &[(usize, usize)],
        costs: &[Vec<Option<f64>>],
    ) -> Option<(usize, f64)> {
        let mut counts = vec![0usize; bounds.len()];
        let mut cost = 0.0;
        for (problem, source) in assignment.iter().enumerate() {
            cost += costs[problem][*source]?;
            counts[*source] += 1;
        }
        let missed = counts.iter().zip(bounds).map(|(count, (least, most))| {
            least.saturating_sub(*count) + count.saturating_sub(*most)
        });
        Some((missed.sum(), cost))
    }

    /// Returns the best of all assignments.
    fn brute_force(bounds: &[(usize, usize)], costs: &[Vec<Option<f64>>]) -> (usize, f64) {
        let width = bounds.len();
        let all = 0..width.pow(costs.len() as u32);
        let assignments = all.map(|mut number| {
            let digits = costs.iter().map(|_| {
                let digit = number % width;
                number /= width;
                digit
            });
            digits.collect::<Vec<usize>>()
        });
        let values = assignments.filter_map(|assignment| value(&assignment, bounds, costs));
        values.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).expect("each has an answer")
    }

    #[test]
    fn no_assignment_within_the_bounds_costs_less() {
        let mut bounded = 0;
        for case in 0..600 {
            let mut random = Stream::new(case, "cheapest", 0);
            let width = 2 + random.below(2) as usize;
            let problems = 1 + random.below(if width == 2 { 9 } else { 6 }) as usize;
            let missing = random.below(3) as f64 * 0.2;
            // Some cases have few distinct costs and thus many ties.
            let levels = if random.below(2) == 0 { 3.0 } else { 1e6 };
            let costs: Vec<Vec<Option<f64>>> = (0..problems)
                .map(|_| {
                    let sure = random.below(width as u64) as usize;
                    let mut cost = |source| {
                        let cost = (random.unit() * levels).floor() / levels;
                        (source == sure || random.unit() >= missing).then_some(cost)
                    };
                    (0..width).map(&mut cost).collect()
                })
                .collect();
            let bounds: Vec<(usize, usize)> = (0..width)
                .map(|_| {
                    let least = random.below(problems as u64 + 1) as usize;
                    (least, least + random.below((problems - least) as u64 + 1) as usize)
                })
                .collect();
            let order = random.permutation(problems);
            let found =
                cheapest(&order, &bounds, |problem, source| costs[problem as usize][source]);
            let found: Vec<usize> = found.into_iter().map(usize::from).collect();
            let (missed, cost) = value(&found, &bounds, &costs).expect("it answers each");
            let (least_missed, least) = brute_force(&bounds, &costs);
            assert_eq!(missed, least_missed, "case {case}: {costs:?} {bounds:?} {found:?}");
            assert!((cost - least).abs() < 1e-9, "case {case}: {cost} {least} {found:?}");
            bounded += usize::from(least_missed == 0);
        }
        assert!(bounded > 100, "{bounded}");
    }

    #[test]
    fn equal_costs_favor_no_source() {
        let order: Vec<u32> = (0..300).collect();
        let found = cheapest(&order, &[(0, 300); 3], |_, _| Some(1.0));
        for source in 0..3 {
            assert_eq!(found.iter().filter(|s| **s == source).count(), 100);
        }
    }
}
