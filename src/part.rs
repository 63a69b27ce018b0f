//! One part of a job that is split across processes: `2/8`.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One part of a job that is split across independent processes. Part 2 of 8 has every eighth item, starting
/// with the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Part {
    number: usize,
    of: usize,
}

/// Environment variables of a task in a Slurm job array.
const ARRAY: [&str; 5] = [
    "SLURM_ARRAY_TASK_ID",
    "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_STEP",
    "SLURM_ARRAY_TASK_COUNT",
    "SLURM_ARRAY_TASK_MAX",
];

impl Part {
    /// The maximum number of parts.
    pub const MOST: usize = 1_000_000;
    /// The word that selects the part from a scheduler's job array.
    pub const OF_ARRAY: &str = "array";

    /// Returns part `number` of `of`, counted from 1.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such part.
    pub fn new(number: usize, of: usize) -> Result<Self> {
        if (1..=of).contains(&number) && of <= Self::MOST {
            return Ok(Self { number, of });
        }
        refuse(&format!("{number}/{of}"))
    }

    /// Returns the whole job.
    pub fn whole() -> Self {
        Self { number: 1, of: 1 }
    }

    /// Returns the part of this task in a Slurm job array, from `SLURM_ARRAY_TASK_ID` and related variables.
    /// `variable` reads the environment.
    ///
    /// # Errors
    /// [`Error::Config`] if this is not a task of a job array, or the array has gaps.
    pub fn of_array(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| -> Result<usize> {
            let text = variable(name).unwrap_or_default();
            text.trim().parse().map_err(|_| {
                let what = match text.is_empty() {
                    true => format!("{name} is not set: this is not a task of a Slurm job array"),
                    false => format!("{name} is \"{text}\", which is not a number"),
                };
                Error::config("part", what, "Give the part explicitly, such as 2/8")
            })
        };
        let id = number(ARRAY[0])?;
        let count = number(ARRAY[3])?;
        let first = if variable(ARRAY[1]).is_some() { number(ARRAY[1])? } else { 0 };
        let step = if variable(ARRAY[2]).is_some() { number(ARRAY[2])?.max(1) } else { 1 };
        let refuse = |what: String| {
            let hint = "Use an array with one range and no gaps, such as --array=1-8, or give the part (2/8)";
            Err(Error::config("part", what, hint))
        };
        // Only this check finds the gap in `--array=2,5`.
        if variable(ARRAY[4]).is_some() {
            let last = number(ARRAY[4])?;
            let whole = last.checked_sub(first).map(|length| length / step);
            if whole.and_then(|whole| whole.checked_add(1)) != Some(count) {
                return refuse(format!(
                    "the array has gaps: it has {count} tasks, from {first} to {last} in steps of {step}"
                ));
            }
        }
        let place = id.checked_sub(first).filter(|place| place % step == 0).map(|p| p / step);
        match place.filter(|place| *place < count) {
            Some(place) => Self::new(place + 1, count),
            None => {
                refuse(format!("task {id} is not one of {count} from {first} in steps of {step}"))
            }
        }
    }

    /// Parses `2/8`.
    fn of_numbers(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').map(|(a, b)| (a.parse(), b.parse()));
        match numbers {
            Some((Ok(number), Ok(of))) => Self::new(number, of).or_else(|_| refuse(text)),
            _ => refuse(text),
        }
    }

    /// Returns the part's number, counted from 1.
    pub fn number(self) -> usize {
        self.number
    }

    /// Returns the number of parts.
    pub fn of(self) -> usize {
        self.of
    }

    /// Returns whether this part is the whole job.
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// Returns whether the item with this index, counted from 0, belongs to this part.
    pub fn holds(self, index: usize) -> bool {
        index % self.of == self.number - 1
    }
}

fn refuse<T>(text: &str) -> Result<T> {
    Err(Error::config(
        "part",
        format!("\"{text}\" is not a part of a job"),
        format!("Give NUMBER/COUNT, such as 2/8, with a count of at most {}", Part::MOST),
    ))
}

impl FromStr for Part {
    type Err = Error;

    /// Parses `2/8`, or `array` for this task's part of a Slurm job array.
    fn from_str(text: &str) -> Result<Self> {
        if text == Self::OF_ARRAY {
            return Self::of_array(|name| std::env::var(name).ok());
        }
        Self::of_numbers(text)
    }
}

impl TryFrom<String> for Part {
    type Error = Error;

    /// Parses `2/8`. Files cannot use `array`, which would depend on the reading process.
    fn try_from(text: String) -> Result<Self> {
        Self::of_numbers(&text)
    }
}

impl From<Part> for String {
    fn from(part: Part) -> Self {
        part.to_string()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_belongs_to_exactly_one_part() {
        for of in 1..7 {
            for index in 0..20 {
                let parts = (1..=of).map(|number| Part::new(number, of).unwrap());
                assert_eq!(parts.filter(|part| part.holds(index)).count(), 1);
            }
        }
        assert!((0..9).all(|index| Part::whole().holds(index)) && Part::whole().is_whole());
        let second: Part = "2/3".parse().unwrap();
        assert_eq!((0..7).filter(|i| second.holds(*i)).collect::<Vec<_>>(), [1, 4]);
        assert_eq!((second.number(), second.of(), second.to_string()), (2, 3, "2/3".into()));
    }

    #[test]
    fn what_is_no_part_is_refused() {
        for text in ["0/3", "4/3", "3", "", "/", "1/", "a/b", "1/0", "-1/2", "1/1000001", "1/2/3"] {
            let error = text.parse::<Part>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")) && error.contains("2/8"), "{error}");
        }
        // Files give the part by number, regardless of the task that reads them.
        let error = serde_json::from_str::<Part>("\"array\"").unwrap_err().to_string();
        assert!(error.contains("\"array\" is not a part"), "{error}");
        assert_eq!(serde_json::from_str::<Part>("\"2/3\"").unwrap(), "2/3".parse().unwrap());
    }

    #[test]
    fn tasks_of_an_array_divide_the_job() {
        let of = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
            Part::of_array(|name| find(name).map(|(_, value)| (*value).to_owned()))
        };
        let [id, min, step, count, max] = ARRAY;
        // sbatch --array=1-8, --array=0-7 and --array=10-16:2
        for (variables, expected) in [
            (vec![(id, "3"), (min, "1"), (step, "1"), (count, "8")], "3/8"),
            (vec![(id, "3"), (min, "0"), (step, "1"), (count, "8")], "4/8"),
            (vec![(id, "14"), (min, "10"), (step, "2"), (count, "4")], "3/4"),
            (vec![(id, "0"), (count, "2")], "1/2"),
            (vec![(id, "3"), (min, "1"), (step, "1"), (count, "8"), (max, "8")], "3/8"),
            // The last of --array=10-17:2 is 16, and Slurm may give either.
            (vec![(id, "14"), (min, "10"), (step, "2"), (count, "4"), (max, "16")], "3/4"),
            (vec![(id, "14"), (min, "10"), (step, "2"), (count, "4"), (max, "17")], "3/4"),
        ] {
            assert_eq!(of(&variables).unwrap().to_string(), expected);
        }
        // `--array=1,2,7` has three tasks, and task 7 is not the third of a range.
        let gaps = of(&[(id, "7"), (min, "1"), (step, "1"), (count, "3")]).unwrap_err().to_string();
        assert!(gaps.contains("task 7 is not one of 3"), "{gaps}");
        // `--array=2,5` is refused for task 2 as well.
        for task in ["2", "5"] {
            let gaps = of(&[(id, task), (min, "2"), (step, "1"), (count, "2"), (max, "5")]);
            let gaps = gaps.unwrap_err().to_string();
            assert!(
                gaps.contains("gaps") && gaps.contains("2 tasks, from 2 to 5 in steps of 1"),
                "{gaps}"
            );
        }
        let none = of(&[]).unwrap_err().to_string();
        assert!(none.contains("SLURM_ARRAY_TASK_ID is not set"), "{none}");
    }
}
