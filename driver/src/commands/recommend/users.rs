//! Recommends to many users, whose histories are in a table.

use std::{
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Recommended, recommended};
use crate::{
    commands::{arguments::RecommendArguments, opened_run::OpenedRun},
    console::{print_path, progress::Progress},
    data::{
        catalogue::Catalogue,
        examples::warn_of_long_rows,
        rows::parse_list,
        summary::DataReport,
        table::{Layout, Table},
    },
    evaluate::search::Searcher,
    io::output::OutputFile,
    run::{apart::check_apart, layout::run_files},
};

/// The column of the users, which need not be there.
const USER: &str = "user_id";
/// The column of the histories.
const HISTORY: &str = "history";

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    user_id: &'a str,
    recommended: Vec<Recommended<'a>>,
}

/// A user with the numbers of the items of its history, and of those that are not to be recommended.
struct User {
    id: String,
    history: Vec<u64>,
    excluded: Vec<u64>,
}

/// Writes what each user of a table is recommended, one JSON object per line, in the order of the table.
pub fn recommend_to_users(
    arguments: &RecommendArguments,
    table: &Path,
    output: &Path,
    run: &OpenedRun,
    searcher: &Searcher,
) -> Result<()> {
    let own = run_files(run.folder.path())?;
    let data = run.folder.settings().inputs();
    let inputs = own.iter().map(|path| path.as_path()).chain(data);
    let inputs: Vec<&Path> = inputs.chain([table]).collect();
    check_apart("--output", output, &inputs)?;
    let mut file = OutputFile::create(output)?;
    let catalogue = &run.dataset.catalogue;
    let users = read_users(table, arguments, run)?;
    let prompt = &run.folder.settings().prompt;
    let prompts = (users.iter())
        .map(|user| {
            let names = user.history.iter().map(|&item| catalogue.name(item));
            run.checkpoint.tokenizer.encode_prompt(&prompt.text(names))
        })
        .collect::<Result<Vec<_>>>()?;
    let positions = run.checkpoint.model.config().max_position_embeddings;
    warn_of_long_rows(prompts.iter().map(Vec::len), positions);
    let mut lines = BufWriter::new(&mut file);
    let cannot = || format!("cannot write {}", output.display());
    let mut progress = Progress::new("recommending", users.len());
    for (users, prompts) in users
        .chunks(arguments.batch_size)
        .zip(prompts.chunks(arguments.batch_size))
    {
        // A user of whose history nothing is known is recommended nothing.
        let known: Vec<usize> = (0..users.len())
            .filter(|&user| !users[user].history.is_empty())
            .collect();
        let asked: Vec<&[u32]> = known.iter().map(|&user| &prompts[user][..]).collect();
        let excluded: Vec<Vec<u64>> = known
            .iter()
            .map(|&user| users[user].excluded.clone())
            .collect();
        let mut found = vec![Vec::new(); users.len()];
        if !asked.is_empty() {
            let lists = searcher.recommend(&asked, &excluded)?.found;
            for (user, list) in known.into_iter().zip(lists) {
                found[user] = list;
            }
        }
        for (user, found) in users.iter().zip(&found) {
            let line = Line {
                user_id: &user.id,
                recommended: recommended(found, catalogue, arguments.top),
            };
            serde_json::to_writer(&mut lines, &line).with_context(cannot)?;
            writeln!(lines).with_context(cannot)?;
        }
        progress.advance(users.len());
    }
    progress.finish();
    lines.flush().with_context(cannot)?;
    drop(lines);
    print_path(file.finish_and_name()?)
}

/// Reads the users of a table. Items that the catalogue does not have are left out of histories, and said.
fn read_users(path: &Path, arguments: &RecommendArguments, run: &OpenedRun) -> Result<Vec<User>> {
    let catalogue = &run.dataset.catalogue;
    let mut table = Table::open(path, Layout::of(path)?)?;
    let (user, history) = (table.find_column(USER), table.column(HISTORY)?);
    let excluded = arguments.exclude.as_deref();
    let excluded = excluded.map(|column| table.column(column)).transpose()?;
    let mut report = DataReport::new(run.folder.settings().data.strict);
    let mut users = Vec::new();
    while let Some(line) = table.next_row()? {
        let mut known = items(&table, history, catalogue, &mut report)?;
        let mut exclude = match excluded {
            Some(column) => items(&table, column, catalogue, &mut report)?,
            None => Vec::new(),
        };
        if arguments.unseen {
            exclude.extend(&known);
        }
        let mut together = Vec::new();
        for item in exclude {
            together.extend(run.responses.together_with(item)?);
        }
        if let Some(longest) = run.folder.settings().data.history {
            known.drain(..known.len().saturating_sub(longest));
        }
        users.push(User {
            id: user.map_or_else(|| line.to_string(), |user| table.field(user).to_owned()),
            history: known,
            excluded: together,
        });
    }
    let columns = [USER, HISTORY]
        .into_iter()
        .chain(arguments.exclude.as_deref());
    report.add_file(path, &columns.collect::<Vec<_>>(), users.len());
    report.print(catalogue);
    Ok(users)
}

/// Returns the items of a list in a column of a row.
fn items(
    table: &Table,
    column: usize,
    catalogue: &Catalogue,
    report: &mut DataReport,
) -> Result<Vec<u64>> {
    let text = table.field(column);
    let ids = match text.is_empty() {
        true => Vec::new(),
        false => parse_list(text).with_context(|| {
            format!(
                "{}, column {}: expected a list of item ids such as [3, 17] or [\"B1\", \"B2\"], found {text:?}",
                table.place(),
                table.columns()[column]
            )
        })?,
    };
    let mut items = Vec::new();
    for id in ids {
        match catalogue.number(&id) {
            Some(item) => items.push(item),
            None => report.leave_out_row_of(&table.place(), &id)?,
        }
    }
    Ok(items)
}
