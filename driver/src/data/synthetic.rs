//! Makes a catalogue with the shape of real ones, and users whose next choice depends on their last ones.
//!
//! The table has what `msl inspect` and a count over the rows give for the paper's sets (10,000 training rows, a tokenizer
//! of 4,096 tokens trained on the titles), and for this world (seed 42, as `msl demo` runs it):
//!
//! | | Books | Clothing | Office | here |
//! |---|---:|---:|---:|---:|
//! | training rows by item | 1.58 | 0.44 | 4.14 | 1.59 |
//! | items that are the target of a training row | 57 % | 31 % | 71 % | 65 % |
//! | test targets that no training row has | 65 % | 18 % | 48 % | 49 % |
//! | items that no training row has | 7 % | 14 % | 3 % | 14 % |
//! | tokens of a target | 13.5 | 16.1 | 24.1 | 14.4 |
//! | of them with a choice | 2.85 | 4.33 | 3.28 | 3.61 |
//! | unary | 79 % | 73 % | 86 % | 75 % |
//! | mean ln of the others' fan-out | 3.49 | 2.78 | 2.73 | 2.54 |
//! | mean fan-out, first token | 87 | 100 | 84 | 93 |
//! | second | 184 | 61 | 24 | 27 |
//! | third | 3.2 | 7.8 | 4.3 | 1.6 |
//! | fourth | 1.3 | 9.9 | 2.8 | 3.1 |
//! | fifth | 1.0 | 4.6 | 1.4 | 1.2 |
//!
//! The world was fixed by these numbers before any model was trained on it. Only the third token has less to choose from
//! than in the real sets, and so the mean is a little lower. As there, the test targets that no training row has are few
//! items: they came out after the training rows end, and the test users choose one of them half of the time.
//!
//! Authors write in one genre: numbered series and single books. Every title names the author, half of them in front,
//! as brands do, and half at the end. A user mostly takes the next volume of a series, or else another book of the
//! author, of the genre, or anything popular. So a model that reads titles can know something of a book that nobody has
//! chosen yet, and no model can be right always.

mod words;

use std::collections::HashSet;

use anyhow::{Context, Result};
use rand::{Rng, seq::IndexedRandom};

use crate::{
    data::catalogue::{Catalogue, Interaction, Item},
    random::{Purpose, Random, random},
};
use words::{FIRST_NAMES, GENRES, Genre, NAME_BEGINNINGS, NAME_ENDS};

const AUTHORS_OF_A_GENRE: usize = 28;
const SERIES_OF_AN_AUTHOR: usize = 2;
const VOLUMES_OF_A_SERIES: usize = 4;
const SINGLE_BOOKS_OF_AN_AUTHOR: usize = 4;

/// The probabilities that a user reads on in the series, if there is a next volume, or else stays with the author, or
/// with the genre.
const NEXT_VOLUME: f64 = 0.75;
const SAME_AUTHOR: f64 = 0.55;
const SAME_GENRE: f64 = 0.85;

/// The probability that a test user chooses among the books that came out after the training rows.
const NEW_BOOK: f64 = 0.5;

/// The fewest and the most items that a user has chosen before the target.
const HISTORY: std::ops::RangeInclusive<usize> = 2..=4;

/// A synthetic world: the catalogue, and rows to train and to test on.
pub struct World {
    /// The items.
    pub catalogue: Catalogue,
    /// Rows to train on.
    pub training: Vec<Interaction>,
    /// Later rows of other users, to test on: about half of their targets are books that no training row has.
    pub test: Vec<Interaction>,
}

/// A book, with what decides who chooses it.
#[derive(Default)]
struct Book {
    title: String,
    genre: usize,
    author: usize,
    next_volume: Option<usize>,
    /// Whether it came out after the training rows. One book of every author did.
    new: bool,
    /// Its weight where nothing else decides.
    popularity: f64,
}

impl World {
    /// Makes the world of a seed, with so many rows.
    pub fn new(seed: u64, training: usize, test: usize) -> Result<Self> {
        let mut random = random(seed, Purpose::Catalogue);
        let books = write_books(&mut random);
        let mut users = |count: usize, new_book: f64| -> Result<Vec<Interaction>> {
            (0..count)
                .map(|user| read_on(user, &books, new_book, &mut random))
                .collect()
        };
        // In this order the same users are tested, however many are trained on.
        let (test, training) = (users(test, NEW_BOOK)?, users(training, 0.0)?);
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

/// The way in which an author's titles name the author.
struct Signature {
    name: String,
    in_front: bool,
    kind: &'static str,
}

impl Signature {
    fn sign(&self, work: &str) -> String {
        let Self { name, kind, .. } = self;
        match self.in_front {
            true => format!("{name}'s {work}: A {kind}"),
            false => format!("{work}: A {kind} by {name}"),
        }
    }

    fn article(&self, random: &mut Random) -> &'static str {
        match self.in_front {
            true => "",
            false => ["", "The "].choose(random).copied().unwrap_or_default(),
        }
    }
}

fn write_books(random: &mut Random) -> Vec<Book> {
    let mut books = Vec::new();
    let mut titles = HashSet::new();
    let mut names = HashSet::new();
    for (genre, words) in GENRES.iter().enumerate() {
        for _ in 0..AUTHORS_OF_A_GENRE {
            let author = names.len();
            let signature = Signature {
                name: fresh(&mut names, || {
                    format!("{} {}", pick(FIRST_NAMES, random), compound(random))
                }),
                in_front: (author / 2).is_multiple_of(2),
                kind: words.kind,
            };
            let first = books.len();
            for _ in 0..SERIES_OF_AN_AUTHOR {
                write_series(words, &signature, &mut titles, &mut books, random);
            }
            let last_volume = books.len() - 1;
            for _ in 0..SINGLE_BOOKS_OF_AN_AUTHOR {
                let title = fresh(&mut titles, || {
                    let article = signature.article(random);
                    signature.sign(&format!("{article}{}", subject(words, random)))
                });
                books.push(Book {
                    title,
                    popularity: popularity(random),
                    ..Book::default()
                });
            }
            let last = books.len() - 1;
            for book in &mut books[first..] {
                (book.genre, book.author) = (genre, author);
            }
            let new = if author.is_multiple_of(2) {
                last_volume
            } else {
                last
            };
            books[new].new = true;
        }
    }
    books
}

fn write_series(
    words: &Genre,
    signature: &Signature,
    titles: &mut HashSet<String>,
    books: &mut Vec<Book>,
    random: &mut Random,
) {
    let series = fresh(titles, || {
        let article = signature.article(random);
        let (place, noun) = (compound(random), pick(words.nouns, random));
        match random.random_bool(0.5) {
            true => format!("{article}{} of {place}", subject(words, random)),
            false => format!("{article}{place} {noun}"),
        }
    });
    let opening = popularity(random);
    for volume in 1..=VOLUMES_OF_A_SERIES {
        books.push(Book {
            title: signature.sign(&format!("{series}, Book {volume}")),
            next_volume: (volume < VOLUMES_OF_A_SERIES).then_some(books.len() + 1),
            // Few begin a series in its middle.
            popularity: if volume == 1 { opening } else { opening * 0.1 },
            ..Book::default()
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

/// Returns the name of a place or a family.
fn compound(random: &mut Random) -> String {
    format!(
        "{}{}",
        pick(NAME_BEGINNINGS, random),
        pick(NAME_ENDS, random)
    )
}

/// Makes texts until one is not in use yet. The words allow far more than are needed.
fn fresh(used: &mut HashSet<String>, mut make: impl FnMut() -> String) -> String {
    loop {
        let text = make();
        if used.insert(text.clone()) {
            return text;
        }
    }
}

/// Draws a long-tailed popularity.
fn popularity(random: &mut Random) -> f64 {
    (1.5 * random.random::<f64>()).exp().powi(2)
}

/// Draws one of the words of a text.
fn pick(words: &'static str, random: &mut Random) -> &'static str {
    let words: Vec<&str> = words.split(' ').collect();
    words.choose(random).copied().unwrap_or_default()
}

/// Draws a user: a history of books that had come out by the end of the training rows, and the choice that follows it,
/// which is a new book with probability `new_book`.
fn read_on(user: usize, books: &[Book], new_book: f64, random: &mut Random) -> Result<Interaction> {
    let length = random.random_range(HISTORY);
    let genre = random.random_range(0..GENRES.len());
    let first = popular(books, random, |_, book| !book.new && book.genre == genre);
    let mut history = vec![first.context("a genre has no book")?];
    while history.len() < length {
        history.push(next_choice(books, &history, false, random)?);
    }
    let new = random.random_bool(new_book);
    let target = next_choice(books, &history, new, random)?;
    Ok(Interaction {
        user: user.to_string(),
        history: history.into_iter().map(|book| book as u64).collect(),
        target: target as u64,
    })
}

/// Draws what a user chooses after a history, among the new books or among the others.
fn next_choice(books: &[Book], history: &[usize], new: bool, random: &mut Random) -> Result<usize> {
    let last = &books[*history.last().context("a history is empty")?];
    let eligible = |place: usize, book: &Book| book.new == new && !history.contains(&place);
    if let Some(next) = last.next_volume
        && eligible(next, &books[next])
        && random.random_bool(NEXT_VOLUME)
    {
        return Ok(next);
    }
    if random.random_bool(SAME_AUTHOR)
        && let Some(book) = popular(books, random, |place, book| {
            book.author == last.author && eligible(place, book)
        })
    {
        return Ok(book);
    }
    let any_genre = !random.random_bool(SAME_GENRE);
    popular(books, random, |place, book| {
        (any_genre || book.genre == last.genre) && eligible(place, book)
    })
    .context("there is no book left to choose")
}

/// Draws one of the eligible books by popularity; `None` where there is none.
fn popular(
    books: &[Book],
    random: &mut Random,
    eligible: impl Fn(usize, &Book) -> bool,
) -> Option<usize> {
    let candidates: Vec<usize> = (0..books.len())
        .filter(|&place| eligible(place, &books[place]))
        .collect();
    let chosen = candidates.choose_weighted(random, |&book| books[book].popularity);
    chosen.ok().copied()
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
