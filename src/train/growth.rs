//! Simulates the time of a step on several ranks from the terms that ranks send and the speed of their link.

use super::reduce::{Division, Piece, Sum};
use std::collections::VecDeque;

/// The work of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLoad {
    /// Trained parameters. Each contributes 4 bytes of gradient.
    pub parameters: u64,
    /// Micro-batches of the step, over all ranks.
    pub micro_batches: usize,
    /// As in [`TrainConfig::lanes`](super::TrainConfig::lanes).
    pub lanes: usize,
    /// Seconds per micro-batch on one rank.
    pub micro_batch_seconds: f64,
    /// Seconds to update all parameters on one rank. With sharding, each rank updates only its part.
    pub update_seconds: f64,
    /// Whether each rank updates only its own parameters.
    pub shard_optimizer: bool,
}

/// The network link of each rank, full duplex.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes per second in one direction.
    pub bytes_per_second: f64,
    /// Seconds until the first byte of a message arrives.
    pub latency: f64,
}

impl Link {
    /// Returns a link of `speed` gigabits per second, with a latency of 0.25 ms: the interval at which ranks
    /// poll for messages.
    pub fn gigabits(speed: f64) -> Self {
        Self { bytes_per_second: speed * 1e9 / 8.0, latency: 0.25e-3 }
    }

    fn seconds(&self, bytes: f64) -> f64 {
        bytes / self.bytes_per_second
    }
}

/// The time of a step in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Until the last rank has computed its micro-batches.
    pub compute: f64,
    /// From then until all ranks have the sums or the updated parameters.
    pub exchange: f64,
    /// Updating the parameters.
    pub update: f64,
}

impl StepTime {
    /// Returns the total time.
    pub fn total(&self) -> f64 {
        self.compute + self.exchange + self.update
    }
}

/// Simulates a step on `ranks` ranks. A rank sends each term to the owners of the parameters as soon as it is
/// computed, and meanwhile computes the next one. An owner that has all terms sends its sums to every rank.
/// Owners have equal parts, although real owners have whole parameters. Additions take no time.
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
    // An owner is done when it has computed its own terms and received the others.
    let has: Vec<f64> =
        (0..ranks).map(|rank| computed[rank].max(network.received[rank]) + updated).collect();
    for (rank, at) in has.iter().enumerate() {
        network.tell_all(rank, *at);
    }
    network.run();
    let all = has.iter().chain(&network.received).copied().fold(0.0, f64::max);
    StepTime { compute, exchange: (all - compute - updated).max(0.0), update }
}

/// Links that send and receive one message at a time.
struct Network<'a> {
    link: &'a Link,
    /// Bytes per message.
    part: f64,
    /// For each sender, when a message is ready and its receiver.
    queues: Vec<VecDeque<(f64, usize)>>,
    /// When each link becomes free.
    sent: Vec<f64>,
    received: Vec<f64>,
}

impl<'a> Network<'a> {
    fn new(ranks: usize, part: f64, link: &'a Link) -> Self {
        let busy = || vec![0.0; ranks];
        Self { link, part, queues: vec![VecDeque::new(); ranks], sent: busy(), received: busy() }
    }

    /// Queues a message to every other rank.
    fn tell_all(&mut self, from: usize, ready: f64) {
        let ranks = self.queues.len();
        let others = (1..ranks).map(|shift| (ready, (from + shift) % ranks));
        self.queues[from].extend(others);
    }

    /// Delivers all messages, always the one that can start first.
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

/// Returns the parallel efficiency: the time on one rank divided by `ranks` times the time on `ranks` ranks.
/// 1 is linear speedup.
pub fn efficiency(load: &StepLoad, ranks: usize, link: &Link) -> f64 {
    let [one, several] = [1, ranks].map(|ranks| simulated_step(load, ranks, link).total());
    one / (ranks as f64 * several)
}

/// Returns the fewest micro-batches per rank at which a step on `ranks` ranks reaches the efficiency `least`;
/// `None` if 65,536 are too few. The number of lanes is `ranks` rounded up to a power of two, so otherwise
/// some ranks have two lanes.
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
    // Efficiency grows with the number of micro-batches.
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
        // 1 GB of gradients: a rank sends (R - 1) / R of it twice in sequence.
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
        // Rank 1 has eight terms of 0.5 s each. All but the last are sent during computation.
        let time = simulated_step(&load(16, 1), 2, &LINK);
        assert!(
            (time.compute - 8.0).abs() < 1e-9 && (time.exchange - 1.0).abs() < 1e-9,
            "{time:?}"
        );
        // On a slow link they queue up: 8 x 5 s, started after 1 s, minus 8 s of computing, plus 5 s back.
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
