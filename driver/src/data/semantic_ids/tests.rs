//! Tests semantic IDs and what is refused of an index.

use super::*;
use crate::{data::catalogue::Identifier, data::responses::Responses, io::folder_of};

fn index(text: &str) -> Result<SemanticIndex> {
    let folder = folder_of(&[("x.index.json", text)]);
    SemanticIndex::read(&folder.path().join("x.index.json"))
}

/// Makes a catalogue of items that are identified by these paths.
fn catalogue(text: &str) -> Catalogue {
    let index = index(text).unwrap();
    let titles: Vec<(&str, &str)> = index.ids.iter().map(|id| (id.as_str(), "Emma")).collect();
    let catalogue = Catalogue::of(&titles).unwrap();
    let codes = index.of_catalogue(&catalogue).unwrap();
    catalogue.identified_by(Identifier::Codes, codes)
}

/// Builds a tokenizer that has these tokens, and reads every letter as one and all others as `?`.
fn tokenizer(tokens: &[&str], normalizer: &str) -> TextTokenizer {
    let json = tokenizer_json(tokens, normalizer);
    TextTokenizer::new(json.to_string().parse().unwrap(), None, None).unwrap()
}

fn tokenizer_json(tokens: &[&str], normalizer: &str) -> Value {
    let tokens = ["</s>", "?"].iter().chain(tokens).zip(0..);
    let vocabulary: HashMap<&str, u32> = tokens.map(|(token, id)| (*token, id)).collect();
    let json = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": {normalizer},
            "pre_tokenizer": {{"type": "Split", "pattern": {{"Regex": "<.*?>|."}}, "behavior": "Isolated", "invert": false}},
            "post_processor": null, "decoder": null,
            "model": {{"type": "WordLevel", "unk_token": "?", "vocab": {}}}}}"#,
        serde_json::to_string(&vocabulary).unwrap()
    );
    serde_json::from_str(&json).unwrap()
}

#[test]
fn paths_are_lists_of_codes_or_texts_of_codes_in_angle_brackets() {
    let lists = index(r#"{"7": ["<a_1>", "<b_2>"], "007": ["<a_1>", "<b_1>"]}"#).unwrap();
    let texts = index(r#"{"7": "<a_1><b_2>", "007": "<a_1><b_1>"}"#).unwrap();
    assert_eq!(lists.semantic_ids, texts.semantic_ids);
    let catalogue = Catalogue::of(&[("007", "A"), ("7", "B")]).unwrap();
    let codes = lists.of_catalogue(&catalogue).unwrap();
    assert_eq!(codes.codes(), ["<a_1>", "<b_2>", "<b_1>"]);
    let texts = [0, 1, 2].map(|item| codes.text(item));
    assert_eq!(
        texts,
        [Some("<a_1><b_1>".into()), Some("<a_1><b_2>".into()), None]
    );
}

#[test]
fn what_is_wrong_with_an_index_is_said_with_numbers_and_items() {
    for (text, expected) in [
        ("[]", "line 1: invalid type: sequence, expected an object"),
        ("{}", "expected items with codes, found none"),
        (
            r#"{"1": []}"#,
            "item \"1\": expected at least one code, found an empty list",
        ),
        (
            r#"{"1": [3, 7]}"#,
            "item \"1\": expected a list of codes such as [\"<a_12>\", \"<b_7>\"], found [3,7]",
        ),
        (r#"{"1": 7}"#, "item \"1\": expected a list of codes"),
        (r#"{"1": "3-9-1"}"#, "item \"1\": expected a list of codes"),
        (
            r#"{"1": ["<a_1>", ""]}"#,
            "item \"1\": expected codes, found an empty text",
        ),
        (
            r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_2>"], "3": ["<a_3>", "<b_1>"]}"#,
            "expected as many codes for each item, found 1 for 1 items such as \"2\" (<a_2>), 2 for 2 items such as \"1\" (<a_1><b_1>)",
        ),
        (
            r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>"]}"#,
            "the codes of item \"2\" (<a_1>) are the beginning of those of item \"1\" (<a_1><b_1>)",
        ),
    ] {
        let error = format!("{:#}", index(text).err().unwrap());
        assert!(
            error.contains("x.index.json") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn items_without_codes_are_counted_and_named() {
    let few = index(r#"{"1": ["<a_1>"], "9": ["<a_2>"]}"#).unwrap();
    let items = ["1", "2", "3", "4", "5"].map(|id| (id, "Emma"));
    let catalogue = Catalogue::of(&items).unwrap();
    let error = few.of_catalogue(&catalogue).unwrap_err().to_string();
    let expected = "each of the 5 items of the catalogue, found none for 4: \"2\" (\"Emma\"), \"3\" (\"Emma\"), \
                    \"4\" (\"Emma\") and 1 more";
    assert!(error.contains(expected), "{error}");
    let twice = index(r#"{"1": ["<a_1>"], "1": ["<a_2>"]}"#).unwrap();
    let catalogue = Catalogue::of(&[("1", "Emma")]).unwrap();
    let error = twice.of_catalogue(&catalogue).unwrap_err().to_string();
    assert!(error.contains("found them twice for item \"1\""), "{error}");
}

#[test]
fn codes_that_are_tokens_already_are_all_used_or_refused() {
    let catalogue = catalogue(r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_2>"]}"#);
    let codes = catalogue.semantic_ids().unwrap();
    let tokens = |known: &[&str]| {
        let (tokenizer, _) = tokenizer(known, "null").with_codes(codes.codes())?;
        codes.tokens(&tokenizer)
    };
    assert_eq!(tokens(&[]).unwrap(), [2, 3, 4]);
    assert_eq!(tokens(&["<b_2>", "<b_1>", "<a_1>"]).unwrap(), [4, 3, 2]);
    let error = tokens(&["<b_1>"]).unwrap_err().to_string();
    assert!(
        error.contains("1 of the 3 codes are tokens of the tokenizer already, such as \"<b_1>\""),
        "{error}"
    );
    let error = codes
        .tokens(&tokenizer(&["<b_1>"], "null"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has no token for 2 of the 3 codes: \"<a_1>\", \"<b_2>\""),
        "{error}"
    );
}

#[test]
fn codes_get_the_tokens_behind_those_that_both_the_tokenizer_and_its_model_have() {
    let catalogue = catalogue(r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_2>"]}"#);
    let codes = catalogue.semantic_ids().unwrap();
    let all = ["<a_1>", "<b_1>", "<b_2>"];
    for (known, rows, new, tokens) in [
        (&[][..], 2, 2..5, [2, 3, 4]),
        // The model has rows that no token uses.
        (&[], 10, 2..5, [2, 3, 4]),
        // The tokenizer has tokens that the model does not have.
        (&["x", "y"], 3, 3..7, [4, 5, 6]),
        (&all, 3, 3..5, [2, 3, 4]),
        // Nothing is new.
        (&all, 5, 5..5, [2, 3, 4]),
        (&all, 10, 5..5, [2, 3, 4]),
    ] {
        let tokenizer = tokenizer(known, "null").for_rows(rows).unwrap();
        let (tokenizer, found) = tokenizer.with_codes(codes.codes()).unwrap();
        assert_eq!(found, new, "{known:?} and {rows} rows");
        assert_eq!(codes.tokens(&tokenizer).unwrap(), tokens);
    }
    let mut json = tokenizer_json(&["x"], "null");
    json["model"]["vocab"]["x"] = 9.into();
    let tokenizer = json.to_string().parse().unwrap();
    let tokenizer = TextTokenizer::new(tokenizer, None, None).unwrap();
    let error = tokenizer
        .with_codes(codes.codes())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("\"<a_1>\" became the token 3, expected 10"),
        "{error}"
    );
}

#[test]
fn codes_that_the_tokenizer_does_not_tell_apart_are_named() {
    let tokens = |text: &str, known: &[&str], normalizer: &str| {
        let catalogue = catalogue(text);
        let tokenizer = tokenizer(known, normalizer);
        let read = catalogue.semantic_ids().unwrap().tokens(&tokenizer);
        read.unwrap_err().to_string()
    };
    let lower = r#"{"type": "Lowercase"}"#;
    let error = tokens(r#"{"1": ["<a_1>", "<A_1>"]}"#, &["<a_1>", "<A_1>"], lower);
    assert!(
        error.contains("reads the codes \"<A_1>\" and \"<a_1>\" as one token"),
        "{error}"
    );
    let error = tokens(r#"{"1": ["ab", "c"]}"#, &["ab", "c"], "null");
    assert!(
        error.contains("reads the code \"ab\" as 2 tokens"),
        "{error}"
    );
    // Beside each other they are one piece to the tokenizer.
    let error = tokens(r#"{"1": ["<a", "1>"]}"#, &["<a", "1>"], "null");
    assert!(
        error.contains("reads the code \"<a\" as 2 tokens"),
        "{error}"
    );
}

#[test]
fn the_token_of_a_code_is_looked_up_and_colliding_items_share_a_leaf() {
    let catalogue = catalogue(
        r#"{"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_2>"], "3": ["<a_1>", "<b_1>"], "4": ["<a_1>", "<b_1>"]}"#,
    );
    let codes = catalogue.semantic_ids().unwrap().codes();
    let (tokenizer, _) = tokenizer(&[], "null").with_codes(codes).unwrap();
    let responses = Responses::new(&catalogue, &tokenizer).unwrap();
    assert_eq!(responses.path(1).unwrap(), [2, 4, tokenizer.end()]);
    assert_eq!(responses.together_with(2).unwrap(), [0, 2, 3]);
    let collisions = responses.collisions();
    assert_eq!(
        (collisions.items, collisions.paths, collisions.largest),
        (3, 1, 3)
    );
    assert_eq!(responses.merged_titles(&catalogue).count, 0);
}
