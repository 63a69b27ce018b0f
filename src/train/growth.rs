//! How long a step takes on several ranks, by simulation: the terms that ranks really send, at the speed
//! of a link.

use super::reduce::{Division, Piece, Sum};
use std::collections::VecDeque;

/// A step to simulate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLoad {
    /// Trained parameters: each sends 4 bytes for its gradient.
    pub parameters: u64,
    /// Micro-batches of the step, over all ranks.
    pub micro_batches: usize,
    /// As in [`TrainConfig::lanes`](super::TrainConfig::lanes).
    pub lanes: usize,
    /// Seconds that one rank takes for a micro-batch.
    pub micro_batch_seconds: f64,
    /// Seconds that the update of all parameters takes; ranks with shards update a part each.
    pub update_seconds: f64,
    /// Whether each rank updates its own part of the parameters only.
    pub shard_optimizer: bool,
}

/// What ranks send through: each has one of its own, for both directions at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes a second in one direction.
    pub bytes_per_second: f64,
    /// Seconds until the first byte of a message arrives.
    pub latency: f64,
}

impl Link {
    /// A network by its name in gigabits a second. A message takes a quarter of a millisecond more than its
    /// bytes: ranks look for messages as often as that.
    pub fn gigabits(speed: f64) -> Self {
        Self { bytes_per_second: speed * 1e9 / 8.0, latency: 0.25e-3 }
    }

    fn seconds(&self, bytes: f64) -> f64 {
        bytes / self.bytes_per_second
    }
}

/// How long a step takes, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Until the last rank has computed its micro-batches.
    pub compute: f64,
    /// From then until all ranks have the sums, or the updated parameters.
    pub exchange: f64,
    /// The update.
    pub update: f64,
}

impl StepTime {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.compute + self.exchange + self.update
    }
}

/// Simulates a step on so many ranks: a rank sends each of its terms to the owners of the parameters as soon
/// as it has it, while it computes the next one; an owner that has all terms sends its sums to everyone.
/// Owners have equal parts here, where really they have whole parameters; additions take no time.
pub fn simulated_step(load: &StepLoad, ranks: usize, link: &Link) -> StepTime {
    let ranks = ranks.max(1);
    let pieces = vec![Piece { positions: 1, trains: true }; load.micro_batches];
    let division = Division::new(&pieces, load.lanes, ranks);
    let sum = Sum::of(&pieces, load.lanes);
    let part = 4.0 * load.parameters as f64 / ranks as f64;
    let update = load.update_seconds / if load.shard_optimizer { ranks as f64 } else { 1.0 };
    let mut network = Network::new(ranks, part, link);
    let mut computed = vec![0.0f64; ranks];
    for (rank, term) in sum.iter().flat_map(|sum| sum.terms(&division)) {
        computed[rank] += term.batches().len() as f64 * load.micro_batch_seconds;
        network.tell_all(rank, computed[rank]);
    }
    network.run();
    let compute = computed.iter().copied().fold(0.0, f64::max);
    let updated = if load.shard_optimizer { update } else { 0.0 };
    // An owner has a sum when it has computed its own terms and received the others'.
    let has: Vec<f64> =
        (0..ranks).map(|rank| computed[rank].max(network.received[rank]) + updated).collect();
    for (rank, at) in has.iter().enumerate() {
        network.tell_all(rank, *at);
    }
    network.run();
    let all = has.iter().chain(&network.received).copied().fold(0.0, f64::max);
    StepTime { compute, exchange: (all - compute - updated).max(0.0), update }
}

/// Links that send and receive one message after the other.
struct Network<'a> {
    link: &'a Link,
    /// Bytes of a message.
    part: f64,
    /// By sender, when a message is ready, and to whom it goes.
    queues: Vec<VecDeque<(f64, usize)>>,
    /// Until when the links are busy.
    sent: Vec<f64>,
    received: Vec<f64>,
}

impl<'a> Network<'a> {
    fn new(ranks: usize, part: f64, link: &'a Link) -> Self {
        let busy = || vec![0.0; ranks];
        Self { link, part, queues: vec![VecDeque::new(); ranks], sent: busy(), received: busy() }
    }

    /// A message to every other rank.
    fn tell_all(&mut self, from: usize, ready: f64) {
        let ranks = self.queues.len();
        let others = (1..ranks).map(|shift| (ready, (from + shift) % ranks));
        self.queues[from].extend(others);
    }

    /// Carries all messages, the one that can begin first each time.
    fn run(&mut self) {
        let seconds = self.link.seconds(self.part);
        loop {
            let starts = self.queues.iter().zip(&self.sent).enumerate();
            let starts = starts.filter_map(|(from, (queue, busy))| {
                queue.front().map(|(ready, _)| (ready.max(*busy), from))
            });
            let Some((start, from)) = starts.min_by(|a, b| a.0.total_cmp(&b.0)) else { return };
            let Some((_, to)) = self.queues[from].pop_front() else { return };
            self.sent[from] = start + seconds;
            self.received[to] = self.received[to].max(start + self.link.latency) + seconds;
        }
    }
}

/// How well ranks are used: the time of one rank for the step, over the time of all ranks together. 1 where
/// twice as many ranks take half the time.
pub fn efficiency(load: &StepLoad, ranks: usize, link: &Link) -> f64 {
    let [one, several] = [1, ranks].map(|ranks| simulated_step(load, ranks, link).total());
    one / (ranks as f64 * several)
}

/// The fewest micro-batches of a rank with which a step of so many ranks is as efficient as this, each rank
/// with one lane; `None` where 65,536 are too few. Numbers that are no power of two have more lanes than ranks,
/// and some ranks then two of them.
pub fn fewest_micro_batches(
    load: &StepLoad,
    ranks: usize,
    link: &Link,
    least: f64,
) -> Option<usize> {
    let with = |each: usize| {
        let lanes = ranks.next_power_of_two();
        let load = StepLoad { micro_batches: each * ranks, lanes, ..*load };
        efficiency(&load, ranks, link) >= least
    };
    let most = 1 << 16;
    let enough = std::iter::successors(Some(1usize), |each| Some(each * 2));
    let high = enough.take_while(|each| *each <= most).find(|each| with(*each))?;
    // It grows with the micro-batches.
    let (mut low, mut high) = (high / 2, high);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if with(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { bytes_per_second: 1e9, latency: 0.0 };

    fn load(micro_batches: usize, lanes: usize) -> StepLoad {
        StepLoad {
            parameters: 250_000_000,
            micro_batches,
            lanes,
            micro_batch_seconds: 1.0,
            update_seconds: 0.4,
            shard_optimizer: false,
        }
    }

    #[test]
    fn one_term_of_each_rank_takes_what_the_formula_says() {
        // 1 GB of gradients: a rank sends (R - 1) / R of them twice, one after the other.
        for ranks in [2, 4, 8] {
            let time = simulated_step(&load(16, 8), ranks, &LINK);
            let expected = 2.0 * (ranks - 1) as f64 / ranks as f64;
            assert!((time.exchange - expected).abs() < 1e-9, "{ranks} {time:?}");
            assert_eq!((time.compute, time.update), (16.0 / ranks as f64, 0.4));
        }
        let alone = simulated_step(&load(16, 8), 1, &LINK);
        assert_eq!((alone.compute, alone.exchange, alone.total()), (16.0, 0.0, 16.4));
    }

    #[test]
    fn terms_that_are_sent_while_others_are_computed_cost_little() {
        // Rank 1 has eight terms of 0.5 s each, of which all but the last are sent meanwhile.
        let time = simulated_step(&load(16, 1), 2, &LINK);
        assert!(
            (time.compute - 8.0).abs() < 1e-9 && (time.exchange - 1.0).abs() < 1e-9,
            "{time:?}"
        );
        // On a slow link they pile up: 8 x 5 s, begun after 1 s, less the 8 s of computing, and 5 s back.
        let slow = Link { bytes_per_second: 1e8, ..LINK };
        let time = simulated_step(&load(16, 1), 2, &slow);
        assert!((time.exchange - (1.0 + 40.0 - 8.0 + 5.0)).abs() < 1e-9, "{time:?}");
    }

    #[test]
    fn a_step_that_is_long_enough_is_efficient() {
        for ranks in [2, 4, 8] {
            let fewest = fewest_micro_batches(&load(1, 1), ranks, &LINK, 0.8).unwrap();
            let of = |each: usize| {
                let load = load(each * ranks, ranks);
                efficiency(&load, ranks, &LINK)
            };
            assert!(of(fewest) >= 0.8 && (fewest == 1 || of(fewest - 1) < 0.8), "{fewest}");
        }
        let hopeless = Link { bytes_per_second: 1.0, ..LINK };
        assert_eq!(fewest_micro_batches(&load(1, 1), 4, &hopeless, 0.8), None);
    }

    #[test]
    fn shards_divide_the_update() {
        let divided = StepLoad { shard_optimizer: true, ..load(16, 8) };
        let time = simulated_step(&divided, 4, &LINK);
        assert!((time.update - 0.1).abs() < 1e-12);
        assert!(time.total() < simulated_step(&load(16, 8), 4, &LINK).total());
    }
}
