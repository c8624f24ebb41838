//! What `--help` shows after the options.

/// Of `msl`.
pub const EXAMPLES: &str = "\
A first run, with nothing but this program:
  msl demo

On real data, which two scripts of the repository fetch, and which `msl inspect` then explains:
  scripts/get-movielens && scripts/get-smollm2
  msl inspect data/ml-100k
  msl train --data data/ml-100k --prompt titles --output runs/scratch
  msl evaluate runs/scratch";

/// Of `msl demo`.
pub const DEMO_EXAMPLES: &str = "\
The catalogue holds 2,016 books of 168 authors, in series and single; every title names its author. Its shape
is that of the Amazon sets of the paper: 1.6 training rows by item, titles of some 14 tokens of which three in
four are unary, a fan-out of about 95 at the root. One book of every author comes out after the training rows,
and half of the test targets are among these: only their titles can tell a model of them. A user mostly takes
the next volume of a series, or else another book of the author, of the genre, or anything popular.

A small Llama-style model is pretrained on the titles alone. From these weights it is tuned on the same rows
under each loss: the plain language-model loss (LML), the masked softmax loss (MSL) at temperature 1, MSL with
the adaptive temperature strategy (ATS, root scope), and MSL at temperature 1 with BEAR's row weights. Each is
evaluated by beam search over the trie. At temperature 1 the masked losses rank about as the plain one does:
after few rows all of them are overconfident, and training at the higher temperature of ATS is what helps.

Examples:
  msl demo
  msl demo --training-rows 500 --pretraining-epochs 2 --epochs 1    in a few seconds, to see how it looks";

/// Of `msl train`.
pub const TRAIN_EXAMPLES: &str = "\
Examples:
  A small model from scratch, on films. A title needs no instruction around it, and the best of the
  checkpoints is the one with the lowest item NLL on 500 users' last but one film:
    msl train --data data/ml-100k --prompt titles \\
      --validation 500 --patience 3 --output runs/scratch
  Adapters of a pretrained model. It is large: four rows at a time are in memory. Its titles begin
  with one of two tokens, so ats must look at all rows (msl inspect says so):
    msl train --data data/ml-100k --noun movie --verb watched --samples 200 --epochs 1 \\
      --model data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --scope branching \\
      --batch-size 8 --micro-batch-size 4 --learning-rate 1e-3 --output runs/smollm2
  The baselines that a result should be compared with:
    msl train … --loss lml                     the plain language-model loss
    msl train … --loss msl --temperature 1     the masked loss at a fixed temperature
    msl train … --loss bear                    the same, with weights for titles that beam search keeps
  Ctrl-C finishes and saves the step in hand; msl resume goes on from there.
  Watch a run with tensorboard --logdir runs, or read its metrics.jsonl.";

/// Of `msl resume`.
pub const RESUME_EXAMPLES: &str = "\
Examples:
  msl resume runs/scratch
The run's own training.json says everything else. The result has the bits of a run that was never interrupted.";

/// Of `msl inspect`.
pub const INSPECT_EXAMPLES: &str = "\
Examples:
  msl inspect data/ml-100k    with a tokenizer trained on the titles
  msl inspect data/ml-100k --model data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
The last lines say whether ats is defined, and which --scope to give to msl train.";

/// Of `msl evaluate`.
pub const EVALUATE_EXAMPLES: &str = "\
Examples:
  msl evaluate runs/scratch                       all test users, at the temperature of training
  msl evaluate runs/scratch --samples 100         a hundred of them
  msl evaluate runs/scratch --split validation    the rows held out to choose the checkpoint by; of RecBole's,
                                                  all, where --validation may have taken some
A run that beats neither uniform nor popularity in item NLL has not learned.";

/// Of `msl recommend`.
pub const RECOMMEND_EXAMPLES: &str = "\
Examples:
  msl recommend runs/scratch \"Toy Story\" \"Babe\"
  msl recommend runs/scratch \"Toy Story\" --top 5 --unseen";

/// Of `msl report`.
pub const REPORT_EXAMPLES: &str = "\
Examples:
  msl report runs/scratch
  msl report runs/lml runs/msl runs/ats --output losses.html
The page needs no other file and no network. A run shows what it has: msl evaluate adds how well it recommends.";
