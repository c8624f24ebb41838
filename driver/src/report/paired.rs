//! Compares two runs user by user. Both find the same users easy, so that the difference has a smaller error than
//! either run.

use crate::evaluate::{
    ranking::{Estimate, UserResult},
    ranks::RankedUser,
};

/// The differences between two runs, with their standard errors.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Difference of the hit rates.
    pub hit_rate: Estimate,
    /// Difference of the NDCGs.
    pub ndcg: Estimate,
    /// Difference of the item NLLs: below 0 is better.
    pub item_nll: Estimate,
}

impl Difference {
    /// Compares two runs; `None` where the users or their targets are not the same.
    pub fn of(run: &[RankedUser], other: &[RankedUser], cutoff: usize) -> Option<Self> {
        let same = run.len() == other.len()
            && (run.iter().zip(other)).all(|(run, other)| run.is_of(other));
        let estimate = |value: &dyn Fn(&UserResult) -> f64| {
            let users = run.iter().zip(other);
            let differences: Vec<f64> = users
                .map(|(run, other)| value(&run.result()) - value(&other.result()))
                .collect();
            Estimate::of(&differences)
        };
        (same && !run.is_empty()).then(|| Self {
            hit_rate: estimate(&|user| user.hit(cutoff)),
            ndcg: estimate(&|user| user.gain(cutoff)),
            item_nll: estimate(&|user| user.item_nll),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(ranks: &[Option<usize>]) -> Vec<RankedUser> {
        let user = |(user, &rank): (usize, &Option<usize>)| RankedUser {
            user_id: user.to_string(),
            item_id: "7".into(),
            rank,
            item_nll: rank.unwrap_or(9) as f64,
        };
        ranks.iter().enumerate().map(user).collect()
    }

    #[test]
    fn a_difference_is_paired() {
        let run = users(&[Some(1), Some(2), None, Some(11)]);
        let other = users(&[Some(1), None, None, Some(11)]);
        let found = Difference::of(&run, &other, 10).unwrap();
        assert_eq!(found.hit_rate, Estimate::of(&[0.0, 1.0, 0.0, 0.0]));
        let gain = 1.0 / 3f64.log2();
        assert_eq!(found.ndcg, Estimate::of(&[0.0, gain, 0.0, 0.0]));
        assert_eq!(found.item_nll, Estimate::of(&[0.0, -7.0, 0.0, 0.0]));
        let none = Difference::of(&run, &run, 10).unwrap();
        assert_eq!((none.ndcg.mean, none.ndcg.error), (0.0, Some(0.0)));
    }

    #[test]
    fn other_users_cannot_be_compared() {
        let run = users(&[Some(1), Some(2)]);
        assert_eq!(Difference::of(&run, &run[..1], 10), None);
        let mut other = run.clone();
        other[1].item_id = "07".into();
        assert_eq!(Difference::of(&run, &other, 10), None);
        assert_eq!(Difference::of(&[], &[], 10), None);
    }
}
