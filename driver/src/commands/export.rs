use std::{
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use candle_trie::TokenTrie;
use serde::Serialize;

use crate::{
    commands::arguments::ExportArguments,
    console::print_path,
    data::{catalogue::Catalogue, dataset::Dataset},
    io::output::OutputFile,
    run::{apart::check_apart, folder::RunFolder, layout::run_files},
};

/// A line of the table: a prefix of responses, and what may follow it or the items that it names.
#[derive(Serialize)]
struct Line<'a> {
    prefix: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<Vec<&'a str>>,
}

/// Runs `msl export`.
pub fn export(arguments: &ExportArguments) -> Result<()> {
    let run = RunFolder::open(&arguments.run)?;
    let run = run.moved(arguments.data.as_deref(), None)?;
    let own = run_files(run.path())?;
    let data = run.settings().inputs();
    let inputs: Vec<&Path> = own.iter().map(|path| path.as_path()).chain(data).collect();
    check_apart("--output", &arguments.output, &inputs)?;
    let mut output = OutputFile::create(&arguments.output)?;
    let dataset = Dataset::read(run.data()?, run.settings().training.seed)?;
    run.check_titles(&dataset.catalogue)?;
    let trie = run.trie()?;
    let items = dataset.catalogue.items().len();
    ensure!(
        trie.item_count() == items,
        "{}: its trie has {} items and its data {items}: give the data as they were with --data",
        run.path().display(),
        trie.item_count()
    );
    let mut lines = BufWriter::new(&mut output);
    let cannot = || format!("cannot write {}", arguments.output.display());
    write_lines(&trie, &dataset.catalogue, &mut lines).with_context(cannot)?;
    lines.flush().with_context(cannot)?;
    drop(lines);
    print_path(output.finish_and_name()?)
}

/// Writes a line for every node of the trie, from the root downwards.
fn write_lines(trie: &TokenTrie, catalogue: &Catalogue, to: &mut impl Write) -> Result<()> {
    let mut prefix: Vec<u32> = Vec::new();
    // Nodes with their depths and the tokens that lead to them.
    let mut next = vec![(trie.root(), 0, None)];
    while let Some((node, depth, token)) = next.pop() {
        prefix.truncate(usize::max(depth, 1) - 1);
        prefix.extend(token);
        let allowed = trie.children(node);
        let line = match trie.first_child(node) {
            Some(_) => Line {
                prefix: &prefix,
                allowed: Some(allowed),
                items: None,
            },
            None => Line {
                prefix: &prefix,
                allowed: None,
                items: Some(catalogue.ids(trie.items(node)).collect()),
            },
        };
        serde_json::to_writer(&mut *to, &line)?;
        writeln!(to)?;
        let children = (trie.first_child(node).into_iter()).flat_map(|first| first..);
        let children = children
            .zip(allowed)
            .map(|(child, &token)| (child, depth + 1, Some(token)));
        let children: Vec<_> = children.collect();
        next.extend(children.into_iter().rev());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_has_a_line_with_what_may_follow_or_the_items_that_it_names() {
        let paths = [[5, 7, 1], [5, 8, 1], [6, 7, 1], [5, 8, 1]];
        let trie = TokenTrie::new((0..).zip(paths)).unwrap();
        let catalogue = Catalogue::of(&[("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]).unwrap();
        let mut lines = Vec::new();
        write_lines(&trie, &catalogue, &mut lines).unwrap();
        let expected = r#"{"prefix":[],"allowed":[5,6]}
{"prefix":[5],"allowed":[7,8]}
{"prefix":[5,7],"allowed":[1]}
{"prefix":[5,7,1],"items":["a"]}
{"prefix":[5,8],"allowed":[1]}
{"prefix":[5,8,1],"items":["b","d"]}
{"prefix":[6],"allowed":[7]}
{"prefix":[6,7],"allowed":[1]}
{"prefix":[6,7,1],"items":["c"]}
"#;
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }
}
