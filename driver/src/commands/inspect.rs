use anyhow::Result;
use serde::Serialize;

use crate::{
    commands::arguments::InspectArguments,
    console::{print, print_json, shown, table},
    data::{
        catalogue::Identifier,
        catalogue_shape::{AdaptiveVerdict, CatalogueShape},
        dataset::Dataset,
        responses::{Collisions, MergedTitles, Responses},
        summary::LeftOut,
        targets::{ByOccurrence, Targets},
    },
    model::pretrained::Pretrained,
};

/// Number of token positions that are shown one by one.
const PLACES: usize = 8;

#[derive(Serialize)]
struct Report<'a> {
    command: &'static str,
    training_rows: usize,
    validation_rows: usize,
    test_rows: usize,
    /// Numbers of targets of the validation rows, by whether they occur in training rows.
    validation_targets: ByOccurrence<usize>,
    /// Numbers of targets of the test rows, by whether they occur in training rows.
    test_targets: ByOccurrence<usize>,
    items_left_out: &'a LeftOut,
    rows_left_out: &'a LeftOut,
    different_titles: usize,
    collisions: Collisions,
    merged_titles: &'a MergedTitles,
    vocabulary: usize,
    #[serde(flatten)]
    shape: &'a CatalogueShape,
    ats: &'a AdaptiveVerdict,
    advice: String,
}

/// Runs `msl inspect`.
pub fn inspect(arguments: &InspectArguments) -> Result<()> {
    let data = arguments.data().with_defaults()?;
    let scratch = arguments.pretrained.is_none() && arguments.tokenizer.tokenizer.is_none();
    let only_codes = scratch && data.identifier() == Identifier::Codes;
    let prompt = &arguments.prompt.clone().with_defaults(only_codes);
    prompt.check(data.identifier())?;
    let dataset = Dataset::read(&data, 0)?;
    let catalogue = &dataset.catalogue;
    let tokenizer = match &arguments.pretrained {
        Some(model) => {
            let end_token = arguments.tokenizer.end_token.as_deref();
            let tokenizer = Pretrained::open(model, end_token)?.tokenizer;
            match catalogue.semantic_ids() {
                Some(codes) => tokenizer.with_codes(codes.codes())?.0,
                None => tokenizer,
            }
        }
        None => arguments.tokenizer.open(catalogue, prompt)?,
    };
    let responses = Responses::open(catalogue, &tokenizer, None)?;
    let shape = CatalogueShape::new(&responses, &dataset.training)?;
    let verdict = AdaptiveVerdict::new(&shape, arguments.eta);
    let report = Report {
        command: "inspect",
        training_rows: dataset.training.len(),
        validation_rows: dataset.validation.len(),
        test_rows: dataset.test.len(),
        validation_targets: Targets::new(&dataset.training, &dataset.validation).counts(),
        test_targets: Targets::new(&dataset.training, &dataset.test).counts(),
        items_left_out: &dataset.report.items_left_out,
        rows_left_out: &dataset.report.rows_left_out,
        different_titles: catalogue.distinct_names(),
        collisions: responses.collisions(),
        merged_titles: &responses.merged_titles(catalogue),
        vocabulary: tokenizer.vocabulary(),
        advice: verdict.advice(),
        shape: &shape,
        ats: &verdict,
    };
    match arguments.json {
        true => print_json(&report),
        false => report.print(),
    }
}

impl Report<'_> {
    fn print(&self) -> Result<()> {
        let shape = self.shape;
        let largest: Vec<String> = (shape.largest_fan_outs.iter())
            .map(usize::to_string)
            .collect();
        let full = self.vocabulary as f64 * shape.rows as f64;
        let collisions = match self.collisions {
            Collisions { items: 0, .. } => "–".into(),
            Collisions {
                items,
                paths,
                largest,
            } => format!("{items} on {paths} paths, at most {largest}"),
        };
        let mut facts = table(&["catalogue", ""]);
        for (name, value) in [
            ("items", shape.items.to_string()),
            (
                "left out, without a title",
                self.items_left_out.count.to_string(),
            ),
            ("different identifiers", self.different_titles.to_string()),
            ("different in tokens", shape.titles.to_string()),
            ("share a path with others", collisions),
            ("rows to train on", self.training_rows.to_string()),
            ("to validate by", self.validation_rows.to_string()),
            (TARGETS, both(self.validation_targets)),
            ("to test on", self.test_rows.to_string()),
            (TARGETS, both(self.test_targets)),
            (
                "left out, of unknown items",
                self.rows_left_out.count.to_string(),
            ),
            ("vocabulary", self.vocabulary.to_string()),
            ("nodes of the trie", shape.nodes.to_string()),
            ("of them branching", shape.branching_nodes.to_string()),
            ("longest identifier, tokens", shape.depth.to_string()),
            ("fan-out of the root", shape.root_fan_out.to_string()),
            ("largest fan-outs", largest.join(", ")),
            ("labels that are unary", percent(shape.unary_share)),
            (
                "valid logits of all",
                percent(shape.valid_logits as f64 / full.max(1.0)),
            ),
        ] {
            facts.add_row([name.to_owned(), value]);
        }
        print(&facts)?;
        if self.merged_titles.count > 0 {
            print(shown(&self.merged_titles.to_string()))?;
        }
        let mut places = table(&["token of an identifier", "rows", "valid tokens", "unary"]);
        for (place, position) in (1..).zip(&shape.positions).take(PLACES) {
            places.add_row([
                format!("{place}"),
                position.rows.to_string(),
                format!("{:.1}", position.mean_fan_out),
                percent(position.unary_share),
            ]);
        }
        print(&places)?;
        print(&self.advice)
    }
}

/// The name of the lines of the table that split the rows above them by their targets.
const TARGETS: &str = "targets in training rows, in none";

fn both(targets: ByOccurrence<usize>) -> String {
    let (known, unknown) = (targets.in_training, targets.not_in_training);
    match known + unknown {
        0 => "–".into(),
        _ => format!("{known}, {unknown} ({:.1} %)", targets.percent_unknown()),
    }
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent < 1.0 => format!("{percent:.3} %"),
        percent => format!("{percent:.1} %"),
    }
}
