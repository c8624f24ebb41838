//! Measures how well targets were ranked, with standard errors.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error, ser::SerializeMap};

/// The lengths K of the lists that HR@K and NDCG@K are computed for.
pub const CUTOFFS: [usize; 4] = [1, 5, 10, 20];

/// The result for one user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UserResult {
    /// The place of the target in the list, 0 the first; `None` if it was not there.
    pub place: Option<usize>,
    /// −ln p of the target, in nats.
    pub item_nll: f64,
}

impl UserResult {
    /// Returns 1 where the target is among the first `cutoff` items, else 0.
    pub fn hit(&self, cutoff: usize) -> f64 {
        f64::from(self.place.is_some_and(|place| place < cutoff))
    }

    /// Returns the discounted gain of the target's place among the first `cutoff` items.
    pub fn gain(&self, cutoff: usize) -> f64 {
        self.hit(cutoff) * self.place.map_or(0.0, discounted)
    }
}

/// A mean over users.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error; `None` where the mean is exact.
    pub error: Option<f64>,
}

/// The measures of one way to recommend.
#[derive(Clone, Debug, PartialEq)]
pub struct Measures {
    /// HR@K: the share of users whose target is among the first K items, for each K.
    pub hit_rate: Vec<(usize, Estimate)>,
    /// NDCG@K: the mean discounted gain of the target's place among the first K items, for each K.
    pub ndcg: Vec<(usize, Estimate)>,
    /// Mean −ln p of the targets, in nats.
    pub item_nll: Estimate,
}

impl Estimate {
    /// Computes the mean of a sample, and its standard error from the spread of the sample.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count.max(1.0);
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (squares / (count - 1.0) / count).sqrt();
        Self {
            mean,
            error: (values.len() > 1).then_some(error),
        }
    }

    fn exact(mean: f64) -> Self {
        Self { mean, error: None }
    }
}

impl Measures {
    /// Computes the measures of users whose lists have at most `length` items.
    pub fn of(users: &[UserResult], length: usize) -> Self {
        let estimate = |value: &dyn Fn(&UserResult) -> f64| {
            Estimate::of(&users.iter().map(value).collect::<Vec<_>>())
        };
        let each = |value: fn(&UserResult, usize) -> f64| {
            let told = CUTOFFS.into_iter().filter(|&cutoff| cutoff <= length);
            told.map(|cutoff| (cutoff, estimate(&|user| value(user, cutoff))))
                .collect()
        };
        Self {
            hit_rate: each(UserResult::hit),
            ndcg: each(UserResult::gain),
            item_nll: estimate(&|user| user.item_nll),
        }
    }

    /// Computes the expected measures of lists that are drawn at random from so many titles.
    pub fn uniform(titles: usize) -> Self {
        let share = 1.0 / titles.max(1) as f64;
        let each = |gain: &dyn Fn(usize) -> f64| {
            let sum = |cutoff: usize| (0..cutoff.min(titles)).map(gain).sum::<f64>();
            let within = |cutoff| (cutoff, Estimate::exact(sum(cutoff) * share));
            CUTOFFS.into_iter().map(within).collect()
        };
        Self {
            hit_rate: each(&|_| 1.0),
            ndcg: each(&discounted),
            item_nll: Estimate::exact(-share.ln()),
        }
    }

    /// Returns every measure with its name. NDCG@1 is left out, because it is HR@1.
    pub fn named(&self) -> Vec<(String, Estimate)> {
        let hit_rate = self.hit_rate.iter();
        let hit_rate = hit_rate.map(|&(cutoff, value)| (hit_rate_name(cutoff), value));
        let ndcg = self.ndcg.iter().filter(|(cutoff, _)| *cutoff > 1);
        let ndcg = ndcg.map(|&(cutoff, value)| (ndcg_name(cutoff), value));
        let item_nll = [(ITEM_NLL.to_owned(), self.item_nll)];
        hit_rate.chain(ndcg).chain(item_nll).collect()
    }
}

impl Measures {
    /// Returns the hit rate and the NDCG of lists of one length, and the item NLL, with their names.
    pub fn at(&self, cutoff: usize) -> Vec<(String, Estimate)> {
        let names = [hit_rate_name(cutoff), ndcg_name(cutoff), ITEM_NLL.into()];
        let mut named = self.named();
        named.retain(|(name, _)| names.contains(name));
        named
    }
}

/// Returns the largest K of at most 10 that all of these have measures for.
pub fn common_cutoff<'a>(measures: impl IntoIterator<Item = &'a Measures>) -> usize {
    let longest = |measures: &Measures| {
        let told = measures.hit_rate.iter().map(|(cutoff, _)| *cutoff);
        told.filter(|&cutoff| cutoff <= 10).max()
    };
    let longest = measures.into_iter().filter_map(longest);
    longest.min().unwrap_or(1)
}

/// Users whose target the exact search puts among the best items and beam search lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The number K of best items that the target is among.
    pub top: usize,
    /// Number of users whose target is among the true top K.
    pub in_top: usize,
    /// Number of those users whose target is nowhere in the list of beam search.
    pub pruned: usize,
}

impl Pruned {
    /// Compares the results of the two searches for the same users.
    pub fn of(beam: &[UserResult], exact: &[UserResult], top: usize) -> Self {
        let users = || {
            let users = beam.iter().zip(exact);
            users.filter(|(_, exact)| exact.place.is_some_and(|place| place < top))
        };
        Self {
            top,
            in_top: users().count(),
            pruned: users().filter(|(beam, _)| beam.place.is_none()).count(),
        }
    }
}

/// Returns the name of this measure in tables.
pub fn pruned_name(top: usize) -> String {
    format!("pruned of true top {top}")
}

/// Writes it as `3 of 87 (3.4 %)`.
impl fmt::Display for Pruned {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let Self { in_top, pruned, .. } = *self;
        let share = 100.0 * pruned as f64 / in_top.max(1) as f64;
        write!(formatter, "{pruned} of {in_top} ({share:.1} %)")
    }
}

/// Writes measures under keys such as `hr@10` and `hr@10_error`.
impl Serialize for Measures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, estimate) in self.named() {
            let name = key(&name);
            map.serialize_entry(&name, &estimate.mean)?;
            if let Some(error) = estimate.error {
                map.serialize_entry(&format!("{name}_error"), &error)?;
            }
        }
        map.end()
    }
}

/// Reads measures that were serialized by the implementation above.
impl<'de> Deserialize<'de> for Measures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // JSON has no NaN, which a model that diverged scores with: it is written as null.
        let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        let values: BTreeMap<String, f64> = (values.into_iter())
            .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
            .collect();
        let estimate = |name: &str| {
            let name = key(name);
            Some(Estimate {
                mean: *values.get(&name)?,
                error: values.get(&format!("{name}_error")).copied(),
            })
        };
        let each = |name: &dyn Fn(usize) -> String| {
            let found = CUTOFFS.map(|cutoff| Some((cutoff, estimate(&name(cutoff))?)));
            found.into_iter().flatten().collect()
        };
        Ok(Self {
            hit_rate: each(&hit_rate_name),
            ndcg: each(&|cutoff| match cutoff {
                1 => hit_rate_name(1),
                _ => ndcg_name(cutoff),
            }),
            item_nll: estimate(ITEM_NLL).ok_or_else(|| D::Error::missing_field("item_nll"))?,
        })
    }
}

const ITEM_NLL: &str = "item NLL";

fn hit_rate_name(cutoff: usize) -> String {
    format!("HR@{cutoff}")
}

fn ndcg_name(cutoff: usize) -> String {
    format!("NDCG@{cutoff}")
}

/// Returns the name of a measure in JSON.
fn key(name: &str) -> String {
    name.to_lowercase().replace(' ', "_")
}

fn discounted(place: usize) -> f64 {
    1.0 / (place as f64 + 2.0).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(places: &[Option<usize>]) -> Vec<UserResult> {
        let user = |&place: &Option<usize>| UserResult {
            place,
            item_nll: place.map_or(4.0, |place| place as f64),
        };
        places.iter().map(user).collect()
    }

    fn means(estimates: &[(usize, Estimate)]) -> Vec<f64> {
        estimates
            .iter()
            .map(|(_, estimate)| estimate.mean)
            .collect()
    }

    #[test]
    fn places_are_counted_and_discounted() {
        let measures = Measures::of(&users(&[Some(0), Some(4), Some(5), None]), 20);
        assert_eq!(means(&measures.hit_rate), [0.25, 0.5, 0.75, 0.75]);
        let (fifth, sixth) = (1.0 / 6f64.log2(), 1.0 / 7f64.log2());
        let expected = [1.0, 1.0 + fifth, 1.0 + fifth + sixth, 1.0 + fifth + sixth];
        for (found, expected) in means(&measures.ndcg).into_iter().zip(expected) {
            assert!((found - expected / 4.0).abs() < 1e-12);
        }
        assert_eq!(measures.item_nll.mean, 13.0 / 4.0);
    }

    #[test]
    fn the_standard_error_is_that_of_a_share() {
        let measures = Measures::of(&users(&[Some(0), None, None, None]), 10);
        // √(p(1 − p)/(n − 1)) with p = 1/4 and n = 4.
        let error = (0.25f64 * 0.75 / 3.0).sqrt();
        assert!((measures.hit_rate[0].1.error.unwrap() - error).abs() < 1e-12);
        assert_eq!(measures.hit_rate.len(), 3, "lists of 10 say nothing of 20");
        assert_eq!(Measures::of(&users(&[Some(3)]), 10).item_nll.error, None);
        assert_eq!(means(&Measures::of(&[], 10).hit_rate), [0.0; 3]);
    }

    #[test]
    fn a_target_is_pruned_where_beam_search_lost_what_belongs_to_the_top() {
        let beam = users(&[Some(0), None, None, Some(3), None]);
        let exact = users(&[Some(0), Some(1), Some(12), Some(9), None]);
        let pruned = |top, in_top, pruned| Pruned {
            top,
            in_top,
            pruned,
        };
        assert_eq!(Pruned::of(&beam, &exact, 10), pruned(10, 3, 1));
        assert_eq!(Pruned::of(&beam, &exact, 20), pruned(20, 4, 2));
        assert_eq!(pruned(20, 4, 2).to_string(), "2 of 4 (50.0 %)");
        assert_eq!(pruned(20, 0, 0).to_string(), "0 of 0 (0.0 %)");
    }

    #[test]
    fn measures_are_read_back_as_they_were_written() {
        for measures in [
            Measures::of(&users(&[Some(0), Some(4), None]), 10),
            Measures::uniform(8),
        ] {
            let text = serde_json::to_string(&measures).unwrap();
            let read: Measures = serde_json::from_str(&text).unwrap();
            assert_eq!(read.ndcg.len(), measures.ndcg.len());
            for (read, written) in read.named().into_iter().zip(measures.named()) {
                // serde_json may be off by the last bit.
                assert!((read.1.mean - written.1.mean).abs() < 1e-12);
                assert_eq!(read.0, written.0);
                assert_eq!(read.1.error.is_some(), written.1.error.is_some());
            }
        }
        assert!(serde_json::from_str::<Measures>(r#"{"hr@1": 0.5}"#).is_err());
        let diverged = r#"{"hr@1": 0.5, "item_nll": null, "item_nll_error": null}"#;
        let diverged: Measures = serde_json::from_str(diverged).unwrap();
        assert!(diverged.item_nll.mean.is_nan() && diverged.hit_rate[0].1.mean == 0.5);
    }

    #[test]
    fn uniform_lists_hit_by_their_length() {
        let uniform = Measures::uniform(8);
        assert_eq!(means(&uniform.hit_rate), [0.125, 0.625, 1.0, 1.0]);
        assert!((uniform.item_nll.mean - 8f64.ln()).abs() < 1e-12);
        // Drawn at random, each place is as likely: the mean over all of them.
        let all: Vec<Option<usize>> = (0..8).map(Some).collect();
        let drawn = Measures::of(&users(&all), 20);
        for (uniform, drawn) in uniform.ndcg.iter().zip(&drawn.ndcg) {
            assert!((uniform.1.mean - drawn.1.mean).abs() < 1e-12);
        }
    }
}
