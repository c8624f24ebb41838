//! A catalogue with the structure of a real one, and users whose next choice depends on their last ones.
//!
//! Authors write in one genre: numbered series, whose titles share their beginning, and single books, which carry the
//! author's name. A user mostly takes the next volume of a series, or else another book of the author, of the genre,
//! or anything popular. So a model that reads the history can do far better than popularity, and no model can be right
//! always.

mod words;

use std::collections::HashSet;

use anyhow::{Context, Result};
use rand::{Rng, seq::IndexedRandom};

use crate::{
    catalogue::{Catalogue, Interaction, Item},
    random::{Purpose, Random, random},
};
use words::{FIRST_NAMES, GENRES, Genre, LAST_NAMES};

const AUTHORS_OF_A_GENRE: usize = 6;
const SERIES_OF_AN_AUTHOR: usize = 2;
const VOLUMES_OF_A_SERIES: usize = 4;
const SINGLE_BOOKS_OF_AN_AUTHOR: usize = 4;

/// How probable it is that a user goes on with the series, if there is a next volume; and otherwise stays with the
/// author, or with the genre.
const NEXT_VOLUME: f64 = 0.75;
const SAME_AUTHOR: f64 = 0.55;
const SAME_GENRE: f64 = 0.85;

/// The fewest and the most items that a user has chosen before the target.
const HISTORY: std::ops::RangeInclusive<usize> = 2..=4;

/// A synthetic world: the catalogue, and rows to train and to test on.
pub struct World {
    /// The items.
    pub catalogue: Catalogue,
    /// Rows to train on.
    pub training: Vec<Interaction>,
    /// Rows of other users, to test on.
    pub test: Vec<Interaction>,
}

/// What decides who chooses a book next.
#[derive(Clone)]
struct Book {
    title: String,
    genre: usize,
    author: usize,
    next_volume: Option<usize>,
    /// How often it is chosen where nothing else decides.
    popularity: f64,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, training: usize, test: usize) -> Result<Self> {
        let mut random = random(seed, Purpose::Catalogue);
        let books = write_books(&mut random);
        let mut users = |count: usize| -> Result<Vec<Interaction>> {
            (0..count)
                .map(|user| read_on(user, &books, &mut random))
                .collect()
        };
        // In this order the same users are tested, however many are trained on.
        let (test, training) = (users(test)?, users(training)?);
        let items = (1..)
            .zip(&books)
            .map(|(id, book): (usize, &Book)| Item {
                id: id.to_string(),
                title: book.title.clone(),
            })
            .collect();
        Ok(Self {
            catalogue: Catalogue::new(items)?,
            training,
            test,
        })
    }
}

fn write_books(random: &mut Random) -> Vec<Book> {
    let mut books = Vec::new();
    let mut titles = HashSet::new();
    let mut names = HashSet::new();
    for (genre, words) in GENRES.iter().enumerate() {
        for _ in 0..AUTHORS_OF_A_GENRE {
            let author = names.len();
            let name = fresh(&mut names, || {
                format!(
                    "{} {}",
                    pick(&FIRST_NAMES, random),
                    pick(&LAST_NAMES, random)
                )
            });
            for _ in 0..SERIES_OF_AN_AUTHOR {
                write_series(genre, author, &mut titles, &mut books, random);
            }
            for _ in 0..SINGLE_BOOKS_OF_AN_AUTHOR {
                let title = fresh(&mut titles, || {
                    let article = pick(&["", "The "], random);
                    format!("{article}{} by {name}", subject(words, random))
                });
                let popularity = popularity(random);
                books.push(Book {
                    title,
                    genre,
                    author,
                    next_volume: None,
                    popularity,
                });
            }
        }
    }
    books
}

fn write_series(
    genre: usize,
    author: usize,
    titles: &mut HashSet<String>,
    books: &mut Vec<Book>,
    random: &mut Random,
) {
    let words = &GENRES[genre];
    let series = fresh(titles, || {
        let article = pick(&["", "The "], random);
        let (noun, place) = (pick(words.nouns, random), pick(words.places, random));
        format!("{article}{noun} of {place}")
    });
    let opening = popularity(random);
    for volume in 1..=VOLUMES_OF_A_SERIES {
        books.push(Book {
            title: format!("{series} {volume}: {}", subject(words, random)),
            genre,
            author,
            next_volume: (volume < VOLUMES_OF_A_SERIES).then_some(books.len() + 1),
            // Few begin a series in its middle.
            popularity: if volume == 1 { opening } else { opening * 0.1 },
        });
    }
}

fn subject(genre: &Genre, random: &mut Random) -> String {
    format!(
        "{} {}",
        pick(genre.adjectives, random),
        pick(genre.nouns, random)
    )
}

/// A text that is not in use yet. The words allow far more than are asked for.
fn fresh(used: &mut HashSet<String>, mut make: impl FnMut() -> String) -> String {
    loop {
        let text = make();
        if used.insert(text.clone()) {
            return text;
        }
    }
}

/// A long-tailed popularity.
fn popularity(random: &mut Random) -> f64 {
    (1.5 * random.random::<f64>()).exp().powi(2)
}

fn pick(words: &[&'static str], random: &mut Random) -> &'static str {
    words.choose(random).copied().unwrap_or_default()
}

/// One user: a history and the choice that follows it.
fn read_on(user: usize, books: &[Book], random: &mut Random) -> Result<Interaction> {
    let length = random.random_range(HISTORY);
    let genre = random.random_range(0..GENRES.len());
    let mut chosen = vec![popular(books, random, |book| book.genre == genre)?];
    while chosen.len() <= length {
        let next = next_choice(books, &chosen, random)?;
        chosen.push(next);
    }
    let mut history: Vec<u64> = chosen.into_iter().map(|book| book as u64).collect();
    let target = history.pop().context("a user chose nothing")?;
    Ok(Interaction {
        user: user.to_string(),
        history,
        target,
    })
}

fn next_choice(books: &[Book], chosen: &[usize], random: &mut Random) -> Result<usize> {
    let last = &books[*chosen.last().context("a history is empty")?];
    if let Some(next) = last.next_volume
        && !chosen.contains(&next)
        && random.random_bool(NEXT_VOLUME)
    {
        return Ok(next);
    }
    let unread = |book: &&Book| {
        !chosen
            .iter()
            .any(|&chosen| std::ptr::eq(&books[chosen], *book))
    };
    if random.random_bool(SAME_AUTHOR) {
        popular(books, random, |book| {
            book.author == last.author && unread(&book)
        })
    } else if random.random_bool(SAME_GENRE) {
        popular(books, random, |book| {
            book.genre == last.genre && unread(&book)
        })
    } else {
        popular(books, random, |book| unread(&book))
    }
}

fn popular(books: &[Book], random: &mut Random, eligible: impl Fn(&Book) -> bool) -> Result<usize> {
    let candidates: Vec<usize> = (0..books.len())
        .filter(|&book| eligible(&books[book]))
        .collect();
    let chosen = candidates.choose_weighted(random, |&book| books[book].popularity)?;
    Ok(*chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_one_world() {
        let [first, again, other] = [1, 1, 2].map(|seed| World::new(seed, 50, 10).unwrap());
        assert_eq!(first.catalogue.items(), again.catalogue.items());
        assert_eq!(
            (&first.training, &first.test),
            (&again.training, &again.test)
        );
        assert_ne!(first.training, other.training);
    }

    #[test]
    fn titles_differ_and_every_row_is_known() {
        let world = World::new(7, 200, 50).unwrap();
        let titles: HashSet<&str> = world
            .catalogue
            .items()
            .iter()
            .map(|item| item.title.as_str())
            .collect();
        assert_eq!(titles.len(), world.catalogue.items().len());
        for row in world.training.iter().chain(&world.test) {
            assert!(
                row.history
                    .iter()
                    .chain([&row.target])
                    .all(|&item| world.catalogue.item(item).is_some())
            );
            assert!(!row.history.contains(&row.target));
        }
    }
}
