//! The baselines that are counted, not trained: what others chose most, and what they chose next.
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

/// The ways to recommend that every other is to be measured by.
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

/// What the training rows say of every title. Titles are numbered by their popularity, the most popular one first.
struct Counts {
    /// The number of a title, by its leaf of the trie.
    places: HashMap<u32, usize>,
    /// p(j).
    popularity: Vec<f64>,
    /// n(i → j).
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

    /// p(j | i) of every title, with i the last item of a history.
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

/// What comes of recommending by these probabilities, equal ones by popularity.
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
    use crate::data::{
        catalogue::{Catalogue, Item},
        tokenizer::TextTokenizer,
    };

    /// Titles A to E for the items of the numbers 0 to 4, and once more E for number 5.
    fn responses() -> Responses {
        let items = "ABCDEE".chars().zip(0..).map(|(title, id)| Item {
            id: id.to_string(),
            title: title.to_string(),
        });
        let catalogue = Catalogue::new(items.collect()).unwrap();
        let tokenizer =
            TextTokenizer::train(["\"A\" \"B\" \"C\" \"D\" \"E\""].into_iter(), 280).unwrap();
        Responses::new(&catalogue, &tokenizer).unwrap()
    }

    fn row(user: &str, history: &[u64], target: u64) -> Interaction {
        Interaction {
            user: user.into(),
            history: history.to_vec(),
            target,
        }
    }

    /// What each baseline but the uniform one makes of a test row: place and p.
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
            row("u", &[0, 1], 2),
            row("v", &[0, 1], 2),
            row("w", &[3], 1),
            row("w", &[0, 2], 5),
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
            row("u", &[0], 1),
            row("u", &[0, 1], 2),
            row("u", &[0, 1, 2], 3),
            row("v", &[0], 2),
        ];
        // A was followed by B (u) and C (v), once each: by popularity C, which is a target twice, comes first.
        assert_eq!(found(&overlapping, &[0], 2)[1].0, 0);
        assert_eq!(found(&overlapping, &[0], 1)[1].0, 1);
    }
}
