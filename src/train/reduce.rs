//! The order in which the gradients of a step's micro-batches are added, whoever computes them.
//!
//! ```text
//! 1 lane     ((b0 + b1) + b2) + b3
//! 2 lanes    (b0 + b1) + (b2 + b3)
//! ```
//!
//! A lane is a run of micro-batches that are added one after the other; lanes are added by a binary
//! tree. The order is one of the settings and the step, so that any number of ranks comes to the same
//! bits: a rank adds up what lies together in that order and is its own, a term; the rest is added
//! where a parameter's terms come together.

/// A sum of micro-batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// One after the other; never empty.
    Chain(Vec<usize>),
    Pair(Box<Sum>, Box<Sum>),
}

impl Sum {
    /// How the micro-batches of a step are added that have anything to train; `None` where none has.
    /// `lanes` is a power of two.
    pub fn of(trains: &[bool], lanes: usize) -> Option<Self> {
        let chain = |lane: usize| {
            let batches = lane_range(lane, trains.len(), lanes).filter(|batch| trains[*batch]);
            let batches: Vec<usize> = batches.collect();
            (!batches.is_empty()).then_some(Self::Chain(batches))
        };
        let mut sums: Vec<Option<Self>> = (0..lanes.max(1)).map(chain).collect();
        while sums.len() > 1 {
            let mut sums_of_two = Vec::with_capacity(sums.len().div_ceil(2));
            let mut rest = sums.into_iter();
            while let Some(first) = rest.next() {
                sums_of_two.push(match (first, rest.next().flatten()) {
                    (Some(a), Some(b)) => Some(Self::Pair(Box::new(a), Box::new(b))),
                    (a, b) => a.or(b),
                });
            }
            sums = sums_of_two;
        }
        sums.pop().flatten()
    }

    /// Its micro-batches in order.
    pub fn batches(&self) -> Vec<usize> {
        match self {
            Self::Chain(batches) => batches.clone(),
            Self::Pair(a, b) => [a.batches(), b.batches()].concat(),
        }
    }

    /// The rank that has all of it, if one has.
    fn owner(&self, division: &Division) -> Option<usize> {
        let batches = self.batches();
        let owner = division.owner(*batches.first()?);
        batches.iter().all(|batch| division.owner(*batch) == owner).then_some(owner)
    }

    /// The terms of all ranks, in the order in which [`Sum::combined`] takes them.
    pub fn terms(&self, division: &Division) -> Vec<(usize, Self)> {
        if let Some(owner) = self.owner(division) {
            return vec![(owner, self.clone())];
        }
        match self {
            Self::Pair(a, b) => [a.terms(division), b.terms(division)].concat(),
            Self::Chain(batches) => {
                // What comes first can be added up where it is; the others are added one by one.
                let first = division.owner(batches[0]);
                let run = batches.iter().take_while(|b| division.owner(**b) == first).count();
                let (run, others) = batches.split_at(run);
                let one = |batch: &usize| (division.owner(*batch), Self::Chain(vec![*batch]));
                let run = (first, Self::Chain(run.to_vec()));
                std::iter::once(run).chain(others.iter().map(one)).collect()
            }
        }
    }

    /// All of it, from the terms in their order.
    pub fn combined<T>(
        &self,
        division: &Division,
        next: &mut dyn FnMut() -> T,
        add: &dyn Fn(T, T) -> T,
    ) -> T {
        if self.owner(division).is_some() {
            return next();
        }
        match self {
            Self::Pair(a, b) => {
                let a = a.combined(division, next, add);
                add(a, b.combined(division, next, add))
            }
            Self::Chain(_) => {
                let first = next();
                let others = self.terms(division).len() - 1;
                (0..others).fold(first, |sum, _| add(sum, next()))
            }
        }
    }
}

/// The micro-batches of a lane.
fn lane_range(lane: usize, batches: usize, lanes: usize) -> std::ops::Range<usize> {
    lane * batches / lanes..(lane + 1) * batches / lanes
}

/// Which rank computes which micro-batch of a step.
#[derive(Clone, Debug)]
pub(super) struct Division {
    owners: Vec<usize>,
}

impl Division {
    /// Ranks have whole lanes where there are enough of them, so that each sends one sum; otherwise
    /// lanes are divided, too.
    pub fn new(batches: usize, lanes: usize, ranks: usize) -> Self {
        let mut owners = vec![0; batches];
        for lane in 0..lanes {
            for batch in lane_range(lane, batches, lanes) {
                owners[batch] = match lanes >= ranks {
                    true => lane * ranks / lanes,
                    false => batch * ranks / batches,
                };
            }
        }
        Self { owners }
    }

    pub fn owner(&self, batch: usize) -> usize {
        self.owners[batch]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn shown(sum: &Sum) -> String {
        match sum {
            Sum::Chain(batches) => {
                let first = format!("b{}", batches[0]);
                batches[1..].iter().fold(first, |sum, batch| format!("({sum} + b{batch})"))
            }
            Sum::Pair(a, b) => format!("({} + {})", shown(a), shown(b)),
        }
    }

    #[test]
    fn the_order_is_that_of_the_lanes() {
        let of = |trains: &[bool], lanes| Sum::of(trains, lanes).map(|sum| shown(&sum));
        assert_eq!(of(&[true; 4], 1).unwrap(), "(((b0 + b1) + b2) + b3)");
        assert_eq!(of(&[true; 4], 2).unwrap(), "((b0 + b1) + (b2 + b3))");
        assert_eq!(of(&[true; 5], 4).unwrap(), "((b0 + b1) + (b2 + (b3 + b4)))");
        // Micro-batches that train nothing, and more lanes than micro-batches.
        assert_eq!(of(&[true, false, false, true], 2).unwrap(), "(b0 + b3)");
        assert_eq!(of(&[true; 2], 8).unwrap(), "(b0 + b1)");
        assert_eq!(of(&[false; 3], 2), None);
        assert_eq!(of(&[], 4), None);
    }

    #[test]
    fn any_number_of_ranks_adds_in_the_same_order() {
        let mut random = Stream::new(3, "sums", 0);
        for _ in 0..500 {
            let batches = 1 + random.below(12) as usize;
            let lanes = 1 << random.below(4);
            let trains: Vec<bool> = (0..batches).map(|_| random.below(5) > 0).collect();
            let Some(sum) = Sum::of(&trains, lanes) else { continue };
            for ranks in 1..7 {
                let division = Division::new(batches, lanes, ranks);
                let terms = sum.terms(&division);
                assert!(terms.iter().all(|(rank, _)| *rank < ranks));
                let mut texts = terms.iter().map(|(_, term)| shown(term));
                let add = |a: String, b: String| format!("({a} + {b})");
                let combined = sum.combined(&division, &mut || texts.next().unwrap(), &add);
                assert_eq!(combined, shown(&sum), "{batches} {lanes} {ranks}");
                assert_eq!(texts.next(), None);
                // Where ranks have whole lanes and their number is a power of two, each sends one sum.
                if lanes >= ranks && ranks.is_power_of_two() {
                    let mut owners: Vec<usize> = terms.iter().map(|(rank, _)| *rank).collect();
                    owners.dedup();
                    assert_eq!(owners.len(), terms.len());
                }
            }
        }
    }

    #[test]
    fn ranks_share_the_micro_batches_evenly() {
        for (batches, lanes, ranks, expected) in [
            (8, 1, 4, [2, 2, 2, 2].as_slice()),
            (8, 4, 2, &[4, 4]),
            (8, 8, 3, &[3, 3, 2]),
            (2, 1, 4, &[1, 0, 1, 0]),
        ] {
            let division = Division::new(batches, lanes, ranks);
            let count = |rank| (0..batches).filter(|b| division.owner(*b) == rank).count();
            assert_eq!((0..ranks).map(count).collect::<Vec<_>>(), expected);
        }
    }
}
