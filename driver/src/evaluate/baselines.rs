//! Computes the baselines, which count choices and train nothing: popularity, and the item graph.
//!
//! *Popularity* recommends the same titles to everybody. A title that is the target of n of the N training rows has the
//! probability p(j) = (n + 1) / (N + L), where L is the number of titles: the one that is added keeps a title that
//! nobody has chosen possible.
//!
//! The *item graph* is of first order: it reads the last item of a history alone. n(i → j) is the number of users who
//! chose j directly after i in the training rows, histories included. With n(i) = Σ n(i → j), and d(i) different titles
//! that followed i, it backs off to popularity as Witten and Bell do:
//!
//! ```text
//! p(j | i) = (n(i → j) + d(i)·p(j)) / (n(i) + d(i)),   and p(j) where nothing followed i
//! ```

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use anyhow::Result;

use crate::{
    data::{catalogue::Interaction, responses::Responses, targets::Targets},
    evaluate::{comparison::Line, ranking::UserResult},
};

/// Evaluates the baselines on test rows: uniform, popularity and the item graph.
pub fn baselines(
    training: &[Interaction],
    test: &[Interaction],
    targets: &Targets,
    responses: &Responses,
) -> Result<Vec<Line>> {
    let counts = Counts::new(training, responses)?;
    let titles = counts.popularity.len();
    let results = |probabilities: &dyn Fn(&Interaction) -> Result<Vec<f64>>| {
        let result = |row: &Interaction| {
            let target = counts.place(row.target, responses)?;
            Ok(result(&probabilities(row)?, target))
        };
        test.iter().map(result).collect::<Result<Vec<_>>>()
    };
    let popularity = results(&|_| Ok(counts.popularity.clone()))?;
    let item_graph = results(&|row| counts.after(&row.history, responses))?;
    Ok(vec![
        Line::uniform(titles, targets),
        Line::of_users("popularity", &popularity, titles, targets),
        Line::of_users("item graph", &item_graph, titles, targets),
    ])
}

/// Counts of the training rows. Titles are numbered by their popularity, the most popular one first.
struct Counts {
    /// The number of a title, by its leaf of the trie.
    places: HashMap<u32, usize>,
    /// The probability p(j) of each title.
    popularity: Vec<f64>,
    /// The number n(i → j) of users who chose title j directly after title i.
    next: HashMap<usize, HashMap<usize, usize>>,
}

impl Counts {
    fn new(training: &[Interaction], responses: &Responses) -> Result<Self> {
        let trie = responses.trie();
        let mut chosen: HashMap<u32, usize> = trie.leaves().map(|(leaf, _)| (leaf, 0)).collect();
        for row in training {
            *chosen.entry(responses.leaf(row.target)?).or_default() += 1;
        }
        let mut order: Vec<u32> = chosen.keys().copied().collect();
        order.sort_by_key(|leaf| (Reverse(chosen[leaf]), trie.items(*leaf).first().copied()));
        let total = (training.len() + order.len()) as f64;
        let mut counts = Self {
            popularity: (order.iter())
                .map(|leaf| (chosen[leaf] + 1) as f64 / total)
                .collect(),
            places: order.into_iter().zip(0..).collect(),
            next: HashMap::new(),
        };
        // Rows of one user overlap, so a pair counts once for each user.
        let pairs: HashSet<_> = (training.iter())
            .flat_map(|row| {
                let later = row.history.iter().skip(1).chain([&row.target]);
                row.history.iter().zip(later).map(|pair| (&row.user, pair))
            })
            .collect();
        for (_, (&item, &next)) in pairs {
            let [item, next] = [item, next].map(|item| counts.place(item, responses));
            *(counts.next.entry(item?).or_default().entry(next?)).or_default() += 1;
        }
        Ok(counts)
    }

    fn place(&self, item: u64, responses: &Responses) -> Result<usize> {
        Ok(self.places[&responses.leaf(item)?])
    }

    /// Returns p(j | i) of every title, with i the last item of a history.
    fn after(&self, history: &[u64], responses: &Responses) -> Result<Vec<f64>> {
        let last = history.last().map(|&item| self.place(item, responses));
        let Some(next) = last.transpose()?.and_then(|item| self.next.get(&item)) else {
            return Ok(self.popularity.clone());
        };
        let (followed, different) = (next.values().sum::<usize>() as f64, next.len() as f64);
        let backed_off = |count: f64, p: f64| (count + different * p) / (followed + different);
        let mut probabilities: Vec<f64> = self
            .popularity
            .iter()
            .map(|&p| backed_off(0.0, p))
            .collect();
        for (&title, &count) in next {
            probabilities[title] = backed_off(count as f64, self.popularity[title]);
        }
        Ok(probabilities)
    }
}

/// Ranks the target by these probabilities, equal ones by popularity.
fn result(probabilities: &[f64], target: usize) -> UserResult {
    let p = probabilities[target];
    let better = |&(title, &other): &(usize, &f64)| other > p || (other == p && title < target);
    UserResult {
        place: Some(probabilities.iter().enumerate().filter(better).count()),
        item_nll: -p.ln(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{catalogue::Catalogue, tokenizer::TextTokenizer};

    /// Returns the titles A to E for the items of the numbers 0 to 4, and E again for number 5.
    fn responses() -> Responses {
        let catalogue = Catalogue::of_titles(&["A", "B", "C", "D", "E", "E"]).unwrap();
        let tokenizer =
            TextTokenizer::train(["\"A\" \"B\" \"C\" \"D\" \"E\""].into_iter(), 280).unwrap();
        Responses::new(&catalogue, &tokenizer).unwrap()
    }

    /// Returns the place and the probability that popularity and the item graph give the target of a test row.
    fn found(training: &[Interaction], history: &[u64], target: u64) -> [(usize, f64); 2] {
        let responses = responses();
        let counts = Counts::new(training, &responses).unwrap();
        let target = counts.place(target, &responses).unwrap();
        [
            counts.popularity.clone(),
            counts.after(history, &responses).unwrap(),
        ]
        .map(|probabilities| {
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let result = result(&probabilities, target);
            (result.place.unwrap(), (-result.item_nll).exp())
        })
    }

    fn assert_close(found: (usize, f64), expected: (usize, f64)) {
        assert!(
            (found.1 - expected.1).abs() < 1e-12,
            "{found:?} {expected:?}"
        );
        assert_eq!(found.0, expected.0);
    }

    #[test]
    fn the_item_graph_counts_what_followed_and_backs_off_to_popularity() {
        // A was followed by B twice (u and v) and by C once: n(A) = 3, d(A) = 2. Targets: C, C, B, E.
        let training = [
            Interaction::of("u", &[0, 1], 2),
            Interaction::of("v", &[0, 1], 2),
            Interaction::of("w", &[3], 1),
            Interaction::of("w", &[0, 2], 5),
        ];
        let p = |count: f64| (count + 1.0) / 9.0;
        let after = |followed: f64, count: f64| (followed + 2.0 * p(count)) / 5.0;
        let [popularity, graph] = found(&training, &[2, 0], 1);
        assert_close(popularity, (1, p(1.0)));
        assert_close(graph, (0, after(2.0, 1.0)));
        assert_close(found(&training, &[0], 2)[1], (1, after(1.0, 2.0)));
        // Behind those that followed come all others by popularity; two items with one title are one.
        assert_close(found(&training, &[0], 4)[1], (2, after(0.0, 1.0)));
        assert_close(found(&training, &[0], 0)[1], (3, after(0.0, 0.0)));
        // Nothing followed E.
        let [popularity, graph] = found(&training, &[0, 4], 2);
        assert_close(graph, popularity);
        assert_close(graph, (0, p(2.0)));
    }

    #[test]
    fn a_pair_in_overlapping_rows_of_one_user_counts_once() {
        let overlapping = [
            Interaction::of("u", &[0], 1),
            Interaction::of("u", &[0, 1], 2),
            Interaction::of("u", &[0, 1, 2], 3),
            Interaction::of("v", &[0], 2),
        ];
        // A was followed by B (u) and C (v), once each: by popularity C, which is a target twice, comes first.
        assert_eq!(found(&overlapping, &[0], 2)[1].0, 0);
        assert_eq!(found(&overlapping, &[0], 1)[1].0, 1);
    }
}
