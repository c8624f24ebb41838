use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::{
    commands::arguments::MergeArguments,
    console::print,
    io::json::write_json,
    model::{
        adapter,
        precision::{Place, Precision},
        pretrained::{self, Pretrained},
    },
    run::{folder::RunFolder, layout::MERGED_FILE, output_folder::OutputFolder},
};

/// The content of the file by which msl recognises the folder of a merged model as its own.
#[derive(Serialize)]
struct Merged<'a> {
    adapters: &'a Path,
    model: &'a Path,
}

/// Runs `msl merge`.
pub fn merge(arguments: &MergeArguments) -> Result<()> {
    let source = Source::open(arguments)?;
    if let Some(base) = source.base()
        && base.join(MERGED_FILE).exists()
    {
        eprintln!(
            "warning: {} was merged from adapters itself, and those of {} are added to them",
            base.display(),
            arguments.adapter.display()
        );
    }
    let inputs: Vec<&Path> = [arguments.adapter.as_path()]
        .into_iter()
        .chain(source.base())
        .collect();
    let output = OutputFolder::create(&arguments.output, arguments.overwrite, &inputs)?;
    let place = Place {
        device: Device::Cpu,
        precision: Some(Precision::F32),
    };
    let (mut model, tokenizer) = match &source {
        Source::Run(run) => {
            let checkpoint = run.best(&place)?;
            (checkpoint.model, checkpoint.tokenizer)
        }
        Source::Adapters { base, .. } => {
            let end_token = arguments.end_token.as_deref();
            let (mut model, tokenizer) =
                Pretrained::open(base, end_token)?.read(Precision::F32, &place.device)?;
            adapter::load(&arguments.adapter, &mut model)?;
            let tokenizer = match model.added_tokens() {
                Some(tokens) => adapter::tokenizer(&arguments.adapter, &tokenizer, &tokens)?,
                None => tokenizer,
            };
            (model, tokenizer)
        }
    };
    let dtype = match arguments.precision {
        Precision::Stored => None,
        asked => Some(asked.dtype(DType::F32, &Device::Cpu)?),
    };
    let trained = model.parameters().iter();
    let trained = trained.map(|(name, weight)| (name.as_str(), weight.as_tensor()));
    check_finite(trained).with_context(|| {
        format!(
            "{} holds what a training that has diverged leaves, and no model of use can be made of it",
            arguments.adapter.display()
        )
    })?;
    let weights = model.merged_weights_in(dtype)?;
    check_finite(weights.iter().map(|(name, weight)| (name.as_str(), weight))).context(
        "the sum of the model and its adapters leaves the range of its type, or the model itself is damaged: try \
         --dtype f32",
    )?;
    pretrained::save(output.path(), model.config(), &tokenizer, &weights)?;
    let merged = Merged {
        adapters: &arguments.adapter,
        model: source.base().unwrap_or(&arguments.adapter),
    };
    write_json(&output.path().join(MERGED_FILE), &merged)?;
    output.finish()?.discard(&arguments.output)?;
    print(arguments.output.display())
}

/// Fails where a weight is NaN or infinite.
fn check_finite<'a>(weights: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    for (name, weight) in weights {
        // 0 times a number that is not finite is NaN.
        let sum = weight.affine(0.0, 0.0)?.sum_all()?.to_dtype(DType::F32)?;
        ensure!(
            sum.to_scalar::<f32>()? == 0.0,
            "the tensor {name} is not finite"
        );
    }
    Ok(())
}

/// The source of the adapters.
enum Source {
    /// A run, which knows its model.
    Run(Box<RunFolder>),
    /// A folder as PEFT writes it, or that of a checkpoint.
    Adapters { base: PathBuf },
}

impl Source {
    fn open(arguments: &MergeArguments) -> Result<Self> {
        let folder = &arguments.adapter;
        let model = arguments.model.as_deref();
        if RunFolder::is_one(folder) {
            ensure!(
                arguments.end_token.is_none(),
                "{} is a run, which says itself what --end-token is: to name another, give the folder of one of its \
                 checkpoints",
                folder.display()
            );
            let run = RunFolder::open(folder)?.moved(None, model)?;
            return Ok(Self::Run(Box::new(run)));
        }
        let base = match model {
            Some(model) => model.to_owned(),
            None => adapter::base(folder)?,
        };
        // A checkpoint that is still in its run belongs to the model of the run.
        let run = folder.canonicalize().ok();
        if let Some(run) = run.as_deref().and_then(Path::parent)
            && RunFolder::is_one(run)
        {
            RunFolder::open(run)?
                .moved(None, Some(&base))?
                .check_model()?;
        }
        Ok(Self::Adapters { base })
    }

    /// Returns the model that the adapters are added to; `None` where all weights of a run were trained.
    fn base(&self) -> Option<&Path> {
        match self {
            Self::Run(run) => run.settings().pretrained.as_deref(),
            Self::Adapters { base } => Some(base),
        }
    }
}
