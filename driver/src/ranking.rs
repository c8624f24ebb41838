//! Measures of a ranked list.

use serde::Serialize;

/// How well targets were ranked, as means over users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Ranking {
    /// Share of users whose target came first.
    #[serde(rename = "hr@1")]
    pub hit_rate_1: f64,
    /// Share of users whose target was among the first five.
    #[serde(rename = "hr@5")]
    pub hit_rate_5: f64,
    /// Share of users whose target was among the first ten.
    #[serde(rename = "hr@10")]
    pub hit_rate_10: f64,
    /// Discounted gain of the target's rank among the first five.
    #[serde(rename = "ndcg@5")]
    pub ndcg_5: f64,
    /// Discounted gain of the target's rank among the first ten.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: f64,
}

impl Ranking {
    /// The measures of users whose targets came at these places, 0 the first, `None` not at all.
    pub fn of(places: &[Option<usize>]) -> Self {
        let mean = |gain: &dyn Fn(usize) -> f64, first: usize| {
            let within = places.iter().flatten().filter(|&&place| place < first);
            within.fold(0.0, |sum, &place| sum + gain(place)) / places.len().max(1) as f64
        };
        let discounted = |place: usize| 1.0 / (place as f64 + 2.0).log2();
        Self {
            hit_rate_1: mean(&|_| 1.0, 1),
            hit_rate_5: mean(&|_| 1.0, 5),
            hit_rate_10: mean(&|_| 1.0, 10),
            ndcg_5: mean(&discounted, 5),
            ndcg_10: mean(&discounted, 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_discounted() {
        let ranking = Ranking::of(&[Some(0), Some(4), Some(5), None]);
        assert_eq!(
            (ranking.hit_rate_1, ranking.hit_rate_5, ranking.hit_rate_10),
            (0.25, 0.5, 0.75)
        );
        let (fifth, sixth) = (1.0 / 6f64.log2(), 1.0 / 7f64.log2());
        assert!((ranking.ndcg_5 - (1.0 + fifth) / 4.0).abs() < 1e-12);
        assert!((ranking.ndcg_10 - (1.0 + fifth + sixth) / 4.0).abs() < 1e-12);
        assert_eq!(Ranking::of(&[]), Ranking::default());
    }
}
