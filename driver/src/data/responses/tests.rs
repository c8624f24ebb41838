//! Tests the responses of catalogues.

use super::*;

/// Builds a tokenizer that has six letters and takes all others for one.
fn tokenizer(end: Option<&str>) -> TextTokenizer {
    let json = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."},
        "behavior": "Isolated", "invert": false}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "?",
        "vocab": {"</s>": 0, "?": 1, "e": 2, "m": 3, "a": 4, "s": 5, "\"": 6}}}"#;
    TextTokenizer::new(json.parse().unwrap(), end, None).unwrap()
}

#[test]
fn titles_that_the_tokenizer_does_not_tell_apart_are_counted_and_shown() {
    let titles = [
        "Emma", "EMMA", "emma", "日本", "中国", "Sea", "Sea", "Émma", "ßmma",
    ];
    let catalogue = Catalogue::of_titles(&titles).unwrap();
    let responses = Responses::new(&catalogue, &tokenizer(None)).unwrap();
    let merged = responses.merged_titles(&catalogue);
    assert_eq!(merged.count, 7);
    let groups: BTreeSet<Vec<String>> = merged.examples.iter().cloned().collect();
    let expected = [
        &["EMMA", "Emma", "emma"][..],
        &["ßmma", "Émma"],
        &["中国", "日本"],
    ];
    let expected = expected.map(|group| group.iter().map(|&title| title.into()).collect());
    let sorted = |mut group: Vec<String>| {
        group.sort();
        group
    };
    assert_eq!(groups, expected.map(sorted).into());
    let text = merged.to_string();
    for part in [
        "7 different titles",
        "\"EMMA\" = \"Emma\"",
        "counts as a hit on each",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let told_apart = Catalogue::of_titles(&["Sea", "Sea", "Emma"]).unwrap();
    let responses = Responses::new(&told_apart, &tokenizer(None)).unwrap();
    assert_eq!(
        responses.merged_titles(&told_apart),
        MergedTitles::default()
    );
}

#[test]
fn a_title_that_goes_on_behind_the_end_token_is_named_by_the_id_of_the_data() {
    let catalogue = Catalogue::of(&[("B1", "e"), ("007", "e\"ae")]).unwrap();
    let error = Responses::new(&catalogue, &tokenizer(Some("a"))).err();
    let error = error.unwrap().to_string();
    assert!(
        error.starts_with(
            "the title of item \"007\" (\"e\\\"ae\") continues where that of item \"B1\""
        ),
        "{error}"
    );
}

#[test]
fn a_trie_that_numbers_the_items_otherwise_is_of_the_same_catalogue() {
    let catalogue = Catalogue::of_titles(&["Emma", "Sea", "Sea"]).unwrap();
    let responses = Responses::new(&catalogue, &tokenizer(None)).unwrap();
    let trie = |numbers: &[u64]| {
        let paths = (0..3).map(|item| responses.path(item).unwrap());
        TokenTrie::new(numbers.iter().copied().zip(paths)).unwrap()
    };
    responses.check_same(&trie(&[30, 7, 5])).unwrap();
    assert!(responses.check_same(&trie(&[30, 7])).is_err());
}

#[test]
fn the_trie_that_a_run_keeps_is_used_where_it_is_that_of_the_catalogue() {
    let catalogue = Catalogue::of_titles(&["Emma", "Sea", "Sea", "Mass"]).unwrap();
    let tokenizer = tokenizer(None);
    let made = Responses::new(&catalogue, &tokenizer).unwrap();
    let paths: Vec<Vec<u32>> = (0..4).map(|item| made.path(item).unwrap()).collect();
    for (path, item) in paths.iter().zip(0..) {
        let mut expected = tokenizer.encode(&catalogue.name(item)).unwrap();
        expected.push(tokenizer.end());
        assert_eq!(*path, expected);
    }
    let of_run = |numbers: [u64; 4]| {
        let trie = TokenTrie::new(numbers.into_iter().zip(&paths)).unwrap();
        Responses::of_run(trie, &catalogue, &tokenizer)
    };
    // As it is kept, and by other numbers.
    for numbers in [[0, 1, 2, 3], [30, 7, 5, 100]] {
        let kept = of_run(numbers).unwrap();
        assert!((0..4).all(|item| kept.path(item).unwrap() == paths[item as usize]));
        assert_eq!(kept.leaf(1).unwrap(), kept.leaf(2).unwrap());
        assert!(kept.leaf(4).is_err());
    }
    // The tokens of other titles.
    let other = Catalogue::of_titles(&["Emma", "Sea", "Sea", "Mess"]).unwrap();
    let refused = Responses::of_run(made.trie().clone(), &other, &tokenizer).err();
    assert!(refused.unwrap().to_string().contains("another catalogue"));
}
