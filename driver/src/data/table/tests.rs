//! Tests the reading of tables.

use std::{fs, sync::Arc};

use parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use super::*;

/// Three rows: an id, a time that the second lacks, and a list of 2, 0 and 1 codes.
fn parquet_bytes(compression: Compression) -> Vec<u8> {
    let schema = "message rows { required binary id (UTF8); optional double at; required group codes (LIST) {
        repeated group list { required binary element (UTF8); } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression);
    let mut file =
        SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).unwrap();
    let texts = |texts: &[&str]| -> Vec<ByteArray> {
        texts.iter().map(|&text| ByteArray::from(text)).collect()
    };
    let mut rows = file.next_row_group().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    let ids = texts(&["x", "Émma", "7"]);
    let id = column.typed::<ByteArrayType>();
    id.write_batch(&ids, None, None).unwrap();
    column.close().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    let at = column.typed::<DoubleType>();
    at.write_batch(&[1.5, 3e9], Some(&[1, 0, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    let (values, defined) = (texts(&["<a>", "<b>", "<c>"]), [1, 1, 0, 1]);
    (column.typed::<ByteArrayType>())
        .write_batch(&values, Some(&defined), Some(&[0, 1, 0, 0]))
        .unwrap();
    column.close().unwrap();
    rows.close().unwrap();
    file.into_inner().unwrap()
}

#[test]
fn parquet_gives_texts_numbers_and_lists_as_json_lines_do() {
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let rows = read(&parquet_bytes(compression), Layout::Parquet).unwrap();
        assert_eq!(
            rows,
            [
                ["id", "at", "codes"],
                ["x", "1.5", "[\"<a>\",\"<b>\"]"],
                ["Émma", "", "[]"],
                ["7", "3000000000.0", "[\"<c>\"]"],
            ]
        );
    }
}

#[test]
fn bytes_are_texts_times_are_numbers_and_decimals_have_no_bare_point_in_parquet() {
    let schema = "message rows { required binary name; required int64 at (TIMESTAMP_MILLIS); required int32 day (DATE);
        required int32 price (DECIMAL(5, 0)); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let bytes = |name: &[u8]| {
        let mut file =
            SerializedFileWriter::new(Vec::new(), schema.clone(), Default::default()).unwrap();
        let mut rows = file.next_row_group().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let name = ByteArray::from(name.to_vec());
        (column
            .typed::<ByteArrayType>()
            .write_batch(&[name], None, None))
        .unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        (column
            .typed::<Int64Type>()
            .write_batch(&[1_600_000_000_500], None, None))
        .unwrap();
        column.close().unwrap();
        for value in [18_000, 17] {
            let mut column = rows.next_column().unwrap().unwrap();
            (column
                .typed::<Int32Type>()
                .write_batch(&[value], None, None))
            .unwrap();
            column.close().unwrap();
        }
        rows.close().unwrap();
        file.into_inner().unwrap()
    };
    let rows = read(&bytes("Émma".as_bytes()), Layout::Parquet).unwrap();
    assert_eq!(rows[1], ["Émma", "1600000000500", "18000", "17"]);
    let error = format!(
        "{:#}",
        read(&bytes(b"\xff\xfe"), Layout::Parquet).unwrap_err()
    );
    assert!(
        error.contains("row 1, column name: expected text in UTF-8, found 2 other bytes"),
        "{error}"
    );
}

#[test]
fn damaged_parquet_is_an_error_that_names_the_file() {
    let whole = parquet_bytes(Compression::SNAPPY);
    for damaged in [&b""[..], b"{}", &whole[..whole.len() - 9], &whole[9..]] {
        let error = format!("{:#}", read(damaged, Layout::Parquet).unwrap_err());
        assert!(error.contains("as Parquet"), "{error}");
    }
    for byte in (0..whole.len()).step_by(3) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0xff;
        // It may be read, as what is damaged may be a text, but nothing panics.
        let _ = read(&damaged, Layout::Parquet);
    }
}

fn read(bytes: &[u8], layout: Layout) -> Result<Vec<Vec<String>>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("table");
    fs::write(&path, bytes)?;
    let mut table = Table::open(&path, layout)?;
    let mut rows = vec![table.columns().to_vec()];
    while table.next_row()?.is_some() {
        let fields = (0..table.record.len()).map(|column| table.field(column).to_owned());
        rows.push(fields.collect());
    }
    Ok(rows)
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_column_in_either_layout() {
    let comma = read(
        "\u{feff}a,b\n1,\"2, 3\"\n".as_bytes(),
        Layout::CommaSeparated,
    );
    assert_eq!(comma.unwrap(), [["a", "b"], ["1", "2, 3"]]);
    let atomic = read(
        "\u{feff}a:token\tb:float\r\n\"1\t2\r\n".as_bytes(),
        Layout::Atomic,
    );
    assert_eq!(atomic.unwrap(), [["a", "b"], ["\"1", "2"]]);
}

#[test]
fn json_lines_are_rows_of_the_columns_of_the_first() {
    let text = "{\"a\": \"x\", \"b\": [1, 2]}\n\n{\"b\": 0.5, \"c\": 1, \"a\": null}\n{\"a\": 7}";
    let rows = read(text.as_bytes(), Layout::JsonLines).unwrap();
    assert_eq!(rows, [["a", "b"], ["x", "[1,2]"], ["", "0.5"], ["7", ""]]);
}

#[test]
fn the_name_of_a_file_tells_its_layout() {
    for (name, expected) in [
        ("x.csv", Layout::CommaSeparated),
        ("x.CSV.gz", Layout::CommaSeparated),
        ("x.tsv.zst", Layout::TabSeparated),
        ("x.jsonl", Layout::JsonLines),
        ("x.inter", Layout::Atomic),
        ("x.parquet", Layout::Parquet),
    ] {
        assert_eq!(Layout::of(Path::new(name)).unwrap(), expected);
    }
    let error = Layout::of(Path::new("x.parquet.gz"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("x.parquet.gz: expected a table"), "{error}");
}

#[test]
fn lines_are_counted_whatever_ends_them_and_whatever_is_between() {
    let text = "a,b\n1,2\n\n3,\"4\n5\"\n6,7\n\n\n8,9";
    for (text, layout) in [
        (text.to_owned(), Layout::CommaSeparated),
        (text.replace('\n', "\r\n"), Layout::CommaSeparated),
        (
            "a:token\tb:float\r\n1\t2\r\n\r\n3\t4\r\n\r\n5\t6\r\n".into(),
            Layout::Atomic,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        fs::write(&path, &text).unwrap();
        let mut table = Table::open(&path, layout).unwrap();
        let mut lines = Vec::new();
        while let Some(line) = table.next_row().unwrap() {
            lines.push(line);
            assert!(!table.field(1).ends_with('\r'));
        }
        let expected: &[u64] = match layout {
            Layout::CommaSeparated => &[2, 4, 6, 9],
            _ => &[2, 4, 6],
        };
        assert_eq!(lines, expected, "{text:?}");
    }
}

#[test]
fn what_is_wrong_with_a_table_is_said_with_its_line() {
    let (comma, atomic, lines) = (Layout::CommaSeparated, Layout::Atomic, Layout::JsonLines);
    for (bytes, layout, expected) in [
        (
            &b"a,b\n1,2\n3\n"[..],
            comma,
            "line 3: expected 2 fields (a, b), found 1",
        ),
        (
            b"a,b\n1,2\n\n3,\xe9\n",
            comma,
            "line 4: expected text in UTF-8, found other bytes in field 2",
        ),
        (b"a\xe9,b\n", comma, "line 1: expected text in UTF-8"),
        (b"a,b,a\n", comma, "line 1: two columns are called a"),
        (
            b"a:token\ta:float\n",
            atomic,
            "line 1: two columns are called a",
        ),
        (
            b"a:token\tb\n",
            atomic,
            "line 1: expected fields such as item_id:token",
        ),
        (b"", atomic, "found an empty file"),
        (b"", comma, "found an empty file"),
        (b"\n \n", lines, "found an empty file"),
        (
            b"{\"a\": 1}\n\n[2]\n",
            lines,
            "line 3: expected one JSON object",
        ),
    ] {
        let error = format!("{:#}", read(bytes, layout).unwrap_err());
        assert!(
            error.contains("table") && error.contains(expected),
            "{error}"
        );
    }
}
