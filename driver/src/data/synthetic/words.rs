//! Lists the words that synthetic titles are made of.

/// A genre with the words of its titles.
pub struct Genre {
    /// The kind of book, at the end of a title.
    pub kind: &'static str,
    /// Adjectives of titles, separated by spaces.
    pub adjectives: &'static str,
    /// Nouns of titles, separated by spaces.
    pub nouns: &'static str,
}

pub const GENRES: [Genre; 6] = [
    Genre {
        kind: "Fantasy Novel",
        adjectives: "Burning Forgotten Silver Cursed Ancient Wild Broken Hidden",
        nouns: "Dragon Throne Sword Wizard Crown Oath Prophecy Raven",
    },
    Genre {
        kind: "Murder Mystery",
        adjectives: "Silent Missing Perfect Cold Second Last Quiet Deadly",
        nouns: "Witness Alibi Murder Inspector Verdict Motive Suspect Confession",
    },
    Genre {
        kind: "Space Opera",
        adjectives: "Distant Electric Infinite Lost Red Orbital Frozen Synthetic",
        nouns: "Star Colony Machine Signal Starship Planet Engine Contact",
    },
    Genre {
        kind: "Love Story",
        adjectives: "Sweet Secret Tender Summer Stolen Reckless Golden Faithful",
        nouns: "Kiss Heart Wedding Promise Duke Letter Bride Affair",
    },
    Genre {
        kind: "Cookbook",
        adjectives: "Easy Complete Modern Simple Fresh Everyday Practical Essential",
        nouns: "Kitchen Bread Garden Vegetables Soups Cooking Baking Table",
    },
    Genre {
        kind: "Short History",
        adjectives: "Great Bitter Long Imperial Short Untold Heroic Divided",
        nouns: "War Empire Revolution Century Navy Republic Battle General",
    },
];

pub const FIRST_NAMES: &str =
    "Mara Edwin Sofia Tobias Ines Walter Nadia Hugo Clara Ruben Leona Felix";

/// First halves of names of places and families, as in Northwick. Many names share a beginning, and a tokenizer splits
/// them into several tokens.
pub const NAME_BEGINNINGS: &str = "Ash Black Dun Gold Hart Kings North Oak Raven Thorn White Wolf";

pub const NAME_ENDS: &str = "borough brook bury by castle chester cliff combe court dale den field ford gate ham haven \
                             holm hurst land ley mere minster moor mouth port ridge shaw stead stone ton well wick wood \
                             worth";
