//! The order in which the gradients of a step's micro-batches are added, on any number of ranks.
//!
//! ```text
//! 1 lane     ((b0 + b1) + b2) + b3
//! 2 lanes    (b0 + b1) + (b2 + b3)
//! ```
//!
//! A lane is a run of micro-batches that are added in sequence. Lanes are added in a binary tree. The order
//! depends only on the settings and the step, so results are bit-identical on any number of ranks. A rank
//! sums its adjacent micro-batches into a term; owners add the terms of their parameters.

use crate::error::Result;

/// The properties of a micro-batch that determine the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of positions, roughly proportional to its time.
    pub positions: usize,
    /// Whether it has trained tokens.
    pub trains: bool,
}

/// A sum over micro-batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// Added in sequence; never empty.
    Chain(Vec<usize>),
    Pair(Box<Sum>, Box<Sum>),
}

impl Sum {
    /// Returns the sum of the micro-batches that have trained tokens; `None` if there are none. `lanes` is a
    /// power of two.
    pub fn of(pieces: &[Piece], lanes: usize) -> Option<Self> {
        let mut chains: Vec<Vec<usize>> = vec![vec![]; lanes.max(1)];
        for (batch, lane) in parts(pieces, chains.len()).into_iter().enumerate() {
            if pieces[batch].trains {
                chains[lane].push(batch);
            }
        }
        let chain = |chain: Vec<usize>| (!chain.is_empty()).then_some(Self::Chain(chain));
        let mut sums: Vec<Option<Self>> = chains.into_iter().map(chain).collect();
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

    /// Returns the micro-batches in order.
    pub fn batches(&self) -> Vec<usize> {
        match self {
            Self::Chain(batches) => batches.clone(),
            Self::Pair(a, b) => [a.batches(), b.batches()].concat(),
        }
    }

    /// Returns the rank that computes all of it, if there is one.
    fn owner(&self, division: &Division) -> Option<usize> {
        let batches = self.batches();
        let owner = division.owner(*batches.first()?);
        batches.iter().all(|batch| division.owner(*batch) == owner).then_some(owner)
    }

    /// Returns the terms of all ranks, in the order in which [`Sum::combined`] uses them.
    pub fn terms(&self, division: &Division) -> Vec<(usize, Self)> {
        if let Some(owner) = self.owner(division) {
            return vec![(owner, self.clone())];
        }
        match self {
            Self::Pair(a, b) => [a.terms(division), b.terms(division)].concat(),
            Self::Chain(batches) => {
                // The first run is summed by its owner; the other micro-batches are added one by one.
                let first = division.owner(batches[0]);
                let run = batches.iter().take_while(|b| division.owner(**b) == first).count();
                let (run, others) = batches.split_at(run);
                let one = |batch: &usize| (division.owner(*batch), Self::Chain(vec![*batch]));
                let run = (first, Self::Chain(run.to_vec()));
                std::iter::once(run).chain(others.iter().map(one)).collect()
            }
        }
    }

    /// Adds the terms, taking each from `next` when it is needed.
    pub fn combined<T>(
        &self,
        division: &Division,
        next: &mut dyn FnMut() -> Result<T>,
        add: &dyn Fn(T, T) -> T,
    ) -> Result<T> {
        if self.owner(division).is_some() {
            return next();
        }
        match self {
            Self::Pair(a, b) => {
                let a = a.combined(division, next, add)?;
                Ok(add(a, b.combined(division, next, add)?))
            }
            Self::Chain(_) => {
                let first = next()?;
                let others = self.terms(division).len() - 1;
                (0..others).try_fold(first, |sum, _| Ok(add(sum, next()?)))
            }
        }
    }
}

/// Assigns micro-batches to `count` contiguous parts with roughly equal numbers of positions.
fn parts(pieces: &[Piece], count: usize) -> Vec<usize> {
    let all: usize = pieces.iter().map(|piece| piece.positions).sum();
    let mut before = 0;
    let part = |piece: &Piece| {
        // The part that contains its middle, in units of half a position.
        let middle = 2 * before + piece.positions;
        before += piece.positions;
        (middle * count / (2 * all).max(1)).min(count - 1)
    };
    pieces.iter().map(part).collect()
}

/// Which rank computes each micro-batch of a step.
#[derive(Clone, Debug)]
pub(super) struct Division {
    owners: Vec<usize>,
}

impl Division {
    /// Divides the lanes among ranks. With at least as many lanes as ranks, ranks get whole lanes, so that
    /// each sends one sum. Otherwise lanes are split.
    pub fn new(pieces: &[Piece], lanes: usize, ranks: usize) -> Self {
        let owners = match lanes >= ranks {
            true => parts(pieces, lanes).into_iter().map(|lane| lane * ranks / lanes).collect(),
            false => parts(pieces, ranks),
        };
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

    /// Micro-batches of equal size.
    fn equal(trains: &[bool]) -> Vec<Piece> {
        trains.iter().map(|trains| Piece { positions: 10, trains: *trains }).collect()
    }

    #[test]
    fn the_order_is_that_of_the_lanes() {
        let of = |trains: &[bool], lanes| Sum::of(&equal(trains), lanes).map(|sum| shown(&sum));
        assert_eq!(of(&[true; 4], 1).unwrap(), "(((b0 + b1) + b2) + b3)");
        assert_eq!(of(&[true; 4], 2).unwrap(), "((b0 + b1) + (b2 + b3))");
        assert_eq!(of(&[true; 5], 4).unwrap(), "((b0 + b1) + ((b2 + b3) + b4))");
        // Micro-batches without trained tokens, and more lanes than micro-batches.
        assert_eq!(of(&[true, false, false, true], 2).unwrap(), "(b0 + b3)");
        assert_eq!(of(&[true; 2], 8).unwrap(), "(b0 + b1)");
        // Lanes have roughly equal numbers of positions, here 10, 10, 10, and 30.
        let mut pieces = equal(&[true; 4]);
        pieces[3].positions = 30;
        assert_eq!(shown(&Sum::of(&pieces, 2).unwrap()), "(((b0 + b1) + b2) + b3)");
        assert_eq!(of(&[false; 3], 2), None);
        assert_eq!(of(&[], 4), None);
    }

    #[test]
    fn any_number_of_ranks_adds_in_the_same_order() {
        let mut random = Stream::new(3, "sums", 0);
        for _ in 0..500 {
            let batches = 1 + random.below(12) as usize;
            let lanes = 1 << random.below(4);
            let piece =
                |_| Piece { positions: 1 + random.below(20) as usize, trains: random.below(5) > 0 };
            let pieces: Vec<Piece> = (0..batches).map(piece).collect();
            let Some(sum) = Sum::of(&pieces, lanes) else { continue };
            for ranks in 1..7 {
                let division = Division::new(&pieces, lanes, ranks);
                let terms = sum.terms(&division);
                assert!(terms.iter().all(|(rank, _)| *rank < ranks));
                let mut texts = terms.iter().map(|(_, term)| shown(term));
                let add = |a: String, b: String| format!("({a} + {b})");
                let mut next = || Ok(texts.next().unwrap());
                let combined = sum.combined(&division, &mut next, &add).unwrap();
                assert_eq!(combined, shown(&sum), "{batches} {lanes} {ranks}");
                assert_eq!(texts.next(), None);
                // If ranks have whole lanes and their number is a power of two, each sends one sum.
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
            (2, 1, 4, &[0, 1, 0, 1]),
        ] {
            let division = Division::new(&equal(&vec![true; batches]), lanes, ranks);
            let count = |rank| (0..batches).filter(|b| division.owner(*b) == rank).count();
            assert_eq!((0..ranks).map(count).collect::<Vec<_>>(), expected);
        }
    }
}
