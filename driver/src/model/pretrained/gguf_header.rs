//! Reads the header of a GGUF file. Every count and size in it is compared with the size of the file before memory is
//! allocated.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{
    DType, Device, Shape, Tensor,
    quantized::{
        GgmlDType,
        gguf_file::{TensorInfo, Value},
    },
};

use crate::io::binary;

const MAGIC: [u8; 4] = *b"GGUF";
/// The most dimensions of a tensor: GGML_MAX_DIMS.
const LARGEST_RANK: u32 = 4;
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open GGUF file: its metadata, and where its tensors lie.
pub struct GgufFile {
    pub path: PathBuf,
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
    file: BufReader<File>,
    /// Offset of the tensors' data in the file, in bytes.
    data: u64,
}

impl GgufFile {
    /// Opens a file and reads all but its tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let file = binary::open(path)?;
        let length = file.metadata()?.len();
        let mut reader = Reader {
            file: BufReader::new(file),
            left: length,
        };
        let named = || path.display().to_string();
        let (metadata, tensors) = reader.header().with_context(named)?;
        let position = length - reader.left;
        let alignment = alignment(&metadata).with_context(named)?;
        let found = Self {
            data: position.next_multiple_of(alignment),
            path: path.to_owned(),
            file: reader.file,
            metadata,
            tensors,
        };
        found.check_sizes(length).with_context(named)?;
        Ok(found)
    }

    /// Reads a tensor. A quantised one is dequantised to f32; another keeps its type.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        let info = self.tensors.get(name).context("there is none")?;
        let tensor = info.read(&mut self.file, self.data, &Device::Cpu)?;
        let tensor = tensor.dequantize(&Device::Cpu)?;
        Ok(match info.ggml_dtype {
            GgmlDType::F16 => tensor.to_dtype(DType::F16)?,
            GgmlDType::BF16 => tensor.to_dtype(DType::BF16)?,
            _ => tensor,
        })
    }

    /// Refuses tensors that are larger than the rest of the file: each, and all together.
    fn check_sizes(&self, length: u64) -> Result<()> {
        let mut left = length.saturating_sub(self.data);
        for (name, info) in &self.tensors {
            let dims = info.shape.dims();
            let kind = info.ggml_dtype;
            let elements = (dims.iter()).try_fold(1usize, |product, &dim| product.checked_mul(dim));
            let bytes = elements
                // candle does not expect a tensor of nothing: its pointer has no alignment.
                .filter(|&elements| elements > 0)
                .filter(|_| {
                    dims.last()
                        .is_none_or(|row| row.is_multiple_of(kind.block_size()))
                })
                .and_then(|elements| (elements / kind.block_size()).checked_mul(kind.type_size()))
                .with_context(|| format!("a tensor {name} of {kind:?} cannot be {dims:?}"))?;
            left = left.checked_sub(bytes as u64).with_context(|| {
                format!("the file ends before its tensors do: {name} of {kind:?} is to be {dims:?}")
            })?;
        }
        Ok(())
    }
}

fn alignment(metadata: &HashMap<String, Value>) -> Result<u64> {
    match metadata.get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => (value.to_u64().ok())
            .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 20)
            .with_context(|| format!("{ALIGNMENT} is {value:?}, expected a power of two")),
    }
}

/// The metadata of a GGUF file.
pub struct Metadata<'a>(pub &'a HashMap<String, Value>);

impl Metadata<'_> {
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn get(&self, key: &str) -> Result<&Value> {
        let value = self.0.get(key);
        value.with_context(|| format!("the file has no {key}"))
    }

    pub fn text(&self, key: &str) -> Result<&str> {
        Ok(self.get(key)?.to_string().with_context(|| key.to_owned())?)
    }

    /// Returns a number that is not negative. Where a file has one for each layer, they must be the same.
    pub fn whole(&self, key: &str) -> Result<usize> {
        let value = self.get(key)?;
        let layers = match value {
            Value::Array(layers) => layers.as_slice(),
            one => std::slice::from_ref(one),
        };
        let first = layers.first().and_then(whole);
        first
            .filter(|_| layers.iter().all(|layer| whole(layer) == first))
            .with_context(|| format!("{key} is {value:?}, expected one whole number"))
    }

    /// Returns a truth value, or the default where the file has none.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.0.get(key) {
            Some(value) => value.to_bool().with_context(|| key.to_owned()),
            None => Ok(default),
        }
    }

    /// Returns an f32 as the f64 of the same decimal digits: 1e-5, and not 9.99999974e-6.
    pub fn number(&self, key: &str) -> Result<f64> {
        let value = self.get(key)?.to_f32().with_context(|| key.to_owned())?;
        Ok(value.to_string().parse()?)
    }
}

fn whole(value: &Value) -> Option<usize> {
    let value = match *value {
        Value::I8(value) => u64::try_from(value),
        Value::I16(value) => u64::try_from(value),
        Value::I32(value) => u64::try_from(value),
        Value::I64(value) => u64::try_from(value),
        _ => return value.to_u64().ok()?.try_into().ok(),
    };
    value.ok()?.try_into().ok()
}

/// A reader that knows how many bytes of the file are left.
struct Reader {
    file: BufReader<File>,
    left: u64,
}

type Header = (HashMap<String, Value>, HashMap<String, TensorInfo>);

impl Reader {
    fn header(&mut self) -> Result<Header> {
        ensure!(self.array()? == MAGIC, "this is no GGUF file");
        let version = self.u32()?;
        ensure!(
            version == 0 || version.trailing_zeros() < 16,
            "this is a big-endian GGUF file: convert it to little-endian with llama.cpp's gguf_convert_endian.py"
        );
        ensure!(
            matches!(version, 2 | 3),
            "the file has the version {version} of GGUF, expected 2 or 3"
        );
        // The smallest tensor and the smallest entry, in bytes: with an empty name, no dimension, one byte of value.
        let tensors = self.count("tensors", 24)?;
        let entries = self.count("metadata entries", 13)?;
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).with_context(|| key.clone())?;
            ensure!(
                metadata.insert(key.clone(), value).is_none(),
                "{key} occurs twice"
            );
        }
        let mut infos = HashMap::new();
        for _ in 0..tensors {
            let name = self.text()?;
            let info = self
                .tensor()
                .with_context(|| format!("the tensor {name}"))?;
            ensure!(
                infos.insert(name.clone(), info).is_none(),
                "the tensor {name} occurs twice"
            );
        }
        Ok((metadata, infos))
    }

    fn tensor(&mut self) -> Result<TensorInfo> {
        let rank = self.u32()?;
        ensure!(
            rank <= LARGEST_RANK,
            "it has {rank} dimensions, expected at most {LARGEST_RANK}"
        );
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(usize::try_from(self.u64()?)?);
        }
        dims.reverse();
        Ok(TensorInfo {
            shape: Shape::from(dims),
            ggml_dtype: tensor_type(self.u32()?)?,
            offset: self.u64()?,
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()? != [0]),
            8 => Value::String(self.text()?),
            9 => {
                let kind = self.u32()?;
                // An element of an array is a byte at least. Arrays of arrays are allowed, and nobody writes them.
                ensure!(kind != 9, "it is an array of arrays");
                let count = self.count("elements", 1)?;
                let values: Result<Vec<Value>> = (0..count).map(|_| self.value(kind)).collect();
                Value::Array(values?)
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => bail!("it has the unknown type {other}"),
        })
    }

    /// Reads how many parts follow. Each takes at least `smallest` bytes, so that the rest of the file bounds the
    /// number.
    fn count(&mut self, what: &str, smallest: u64) -> Result<u64> {
        let count = self.u64()?;
        ensure!(
            count <= self.left / smallest,
            "{count} {what} are to follow, more than fit in the {} bytes that are left of the file",
            self.left
        );
        Ok(count)
    }

    fn text(&mut self) -> Result<String> {
        let length = self.count("bytes of text", 1)?;
        let mut text = vec![0; length as usize];
        self.fill(&mut text)?;
        Ok(String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .to_owned())
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.context("the file ends in the middle of its header")?;
        (self.file.read_exact(bytes)).context("the file cannot be read")
    }
}

/// Returns the type of a tensor by its number in the format.
fn tensor_type(number: u32) -> Result<GgmlDType> {
    Ok(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        other => {
            let name = UNREADABLE.iter().find(|(number, _)| *number == other);
            bail!(
                "it has the type {}, which cannot be read: take a file of F32, F16, BF16, Q8_0 or another plain or K \
                 quantisation",
                name.map_or(format!("number {other}"), |(_, name)| name.to_string())
            )
        }
    })
}

/// The numbers and names of ggml's types that cannot be read.
const UNREADABLE: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];
