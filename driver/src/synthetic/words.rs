//! The words that synthetic titles are made of.

/// A genre: what its titles speak of.
pub struct Genre {
    pub adjectives: &'static [&'static str],
    pub nouns: &'static [&'static str],
    pub places: &'static [&'static str],
}

pub const GENRES: [Genre; 6] = [
    Genre {
        adjectives: &[
            "Burning",
            "Forgotten",
            "Silver",
            "Cursed",
            "Ancient",
            "Wild",
            "Broken",
            "Hidden",
        ],
        nouns: &[
            "Dragon", "Throne", "Sword", "Wizard", "Crown", "Oath", "Prophecy", "Raven",
        ],
        places: &[
            "Avalon",
            "Eldermoor",
            "the North",
            "Karth",
            "the Hollow Hills",
            "Ysmere",
        ],
    },
    Genre {
        adjectives: &[
            "Silent", "Missing", "Perfect", "Cold", "Second", "Last", "Quiet", "Deadly",
        ],
        nouns: &[
            "Witness",
            "Alibi",
            "Murder",
            "Inspector",
            "Verdict",
            "Motive",
            "Suspect",
            "Confession",
        ],
        places: &[
            "London",
            "the Library",
            "Room Nine",
            "the Vicarage",
            "Harbour Street",
            "Oxford",
        ],
    },
    Genre {
        adjectives: &[
            "Distant",
            "Electric",
            "Infinite",
            "Lost",
            "Red",
            "Orbital",
            "Frozen",
            "Synthetic",
        ],
        nouns: &[
            "Star", "Colony", "Machine", "Signal", "Starship", "Planet", "Engine", "Contact",
        ],
        places: &[
            "Mars",
            "Orion",
            "the Outer Rim",
            "Titan",
            "Deep Space",
            "Ganymede",
        ],
    },
    Genre {
        adjectives: &[
            "Sweet", "Secret", "Tender", "Summer", "Stolen", "Reckless", "Golden", "Faithful",
        ],
        nouns: &[
            "Kiss", "Heart", "Wedding", "Promise", "Duke", "Letter", "Bride", "Affair",
        ],
        places: &[
            "Paris",
            "Tuscany",
            "Willow Lane",
            "the Manor",
            "Savannah",
            "the Lighthouse",
        ],
    },
    Genre {
        adjectives: &[
            "Easy",
            "Complete",
            "Modern",
            "Simple",
            "Fresh",
            "Everyday",
            "Practical",
            "Essential",
        ],
        nouns: &[
            "Kitchen",
            "Bread",
            "Garden",
            "Vegetables",
            "Soups",
            "Cooking",
            "Baking",
            "Table",
        ],
        places: &["Italy", "Provence", "the Farm", "Mexico", "Home", "Japan"],
    },
    Genre {
        adjectives: &[
            "Great", "Bitter", "Long", "Imperial", "Short", "Untold", "Heroic", "Divided",
        ],
        nouns: &[
            "War",
            "Empire",
            "Revolution",
            "Century",
            "Navy",
            "Republic",
            "Battle",
            "General",
        ],
        places: &[
            "Rome",
            "Prussia",
            "the Pacific",
            "Gettysburg",
            "the Balkans",
            "Byzantium",
        ],
    },
];

pub const FIRST_NAMES: [&str; 12] = [
    "Mara", "Edwin", "Sofia", "Tobias", "Ines", "Walter", "Nadia", "Hugo", "Clara", "Ruben",
    "Leona", "Felix",
];

pub const LAST_NAMES: [&str; 18] = [
    "Vale",
    "Thorne",
    "Castell",
    "Brandt",
    "Okafor",
    "Lindqvist",
    "Marlowe",
    "Farrow",
    "Ashby",
    "Duarte",
    "Keller",
    "Novak",
    "Penrose",
    "Quill",
    "Sandoval",
    "Tanaka",
    "Whitlock",
    "Zeller",
];
