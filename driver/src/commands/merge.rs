use anyhow::{Result, ensure};
use candle_core::{DType, Device};

use crate::{
    adapter,
    arguments::MergeArguments,
    output::OutputFolder,
    precision::{Place, Precision},
    pretrained,
    pretrained::Pretrained,
    run_folder::RunFolder,
};

/// `msl merge`
pub fn merge(arguments: &MergeArguments) -> Result<()> {
    OutputFolder::check(&arguments.output, arguments.overwrite)?;
    let place = Place {
        device: Device::Cpu,
        precision: Some(Precision::F32),
    };
    let (mut model, tokenizer) = if RunFolder::is_one(&arguments.adapter) {
        ensure!(
            arguments.model.is_none() && arguments.end_token.is_none(),
            "{} is a run, which says itself what --model and --end-token are: to name others, give the folder of one of \
             its checkpoints",
            arguments.adapter.display()
        );
        let checkpoint = RunFolder::open(&arguments.adapter)?.best(&place)?;
        (checkpoint.model, checkpoint.tokenizer)
    } else {
        let base = match &arguments.model {
            Some(model) => model.clone(),
            None => adapter::base(&arguments.adapter)?,
        };
        let (mut model, tokenizer) = Pretrained::open(&base, arguments.end_token.as_deref())?
            .read(Precision::F32, &Device::Cpu)?;
        adapter::load(&arguments.adapter, &mut model)?;
        (model, tokenizer)
    };
    let dtype = match arguments.precision {
        Precision::Stored => None,
        asked => Some(asked.dtype(DType::F32, &Device::Cpu)?),
    };
    let weights = model.merged_weights_in(dtype)?;
    let output = OutputFolder::create(&arguments.output, arguments.overwrite)?;
    pretrained::save(output.path(), model.config(), &tokenizer, &weights)?;
    output.finish()?;
    println!("{}", arguments.output.display());
    Ok(())
}
