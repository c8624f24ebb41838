use anyhow::Result;
use serde::Serialize;

use super::open_tokenizer;
use crate::{
    arguments::InspectArguments,
    catalogue_shape::{AdaptiveVerdict, CatalogueShape},
    console::{print, print_json, table},
    dataset::Dataset,
    pretrained::Pretrained,
    responses::Responses,
};

/// The first places of a response are shown one by one.
const PLACES: usize = 8;

#[derive(Serialize)]
struct Report<'a> {
    command: &'static str,
    training_rows: usize,
    validation_rows: usize,
    test_rows: usize,
    vocabulary: usize,
    #[serde(flatten)]
    shape: &'a CatalogueShape,
    ats: &'a AdaptiveVerdict,
    advice: String,
}

/// `msl inspect`
pub fn inspect(arguments: &InspectArguments) -> Result<()> {
    let dataset = Dataset::read(&arguments.data(), 0)?;
    let catalogue = &dataset.catalogue;
    let prompt = arguments.prompt.prompt();
    let tokenizer = match &arguments.pretrained {
        Some(model) => Pretrained::open(model, arguments.tokenizer.end_token.as_deref())?.tokenizer,
        None => open_tokenizer(&arguments.tokenizer, catalogue, &prompt)?,
    };
    let responses = Responses::new(catalogue, &tokenizer)?;
    let shape = CatalogueShape::new(&responses, &dataset.training)?;
    let verdict = AdaptiveVerdict::new(&shape, arguments.eta);
    let report = Report {
        command: "inspect",
        training_rows: dataset.training.len(),
        validation_rows: dataset.validation.len(),
        test_rows: dataset.test.len(),
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
        let mut facts = table(&["catalogue", ""]);
        for (name, value) in [
            ("items", shape.items.to_string()),
            ("different titles", shape.titles.to_string()),
            ("rows to train on", self.training_rows.to_string()),
            ("to validate by", self.validation_rows.to_string()),
            ("to test on", self.test_rows.to_string()),
            ("vocabulary", self.vocabulary.to_string()),
            ("nodes of the trie", shape.nodes.to_string()),
            ("of them branching", shape.branching_nodes.to_string()),
            ("longest title, tokens", shape.depth.to_string()),
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
        let mut places = table(&["token of a title", "rows", "tokens to choose from", "unary"]);
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

fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent < 1.0 => format!("{percent:.3} %"),
        percent => format!("{percent:.1} %"),
    }
}
