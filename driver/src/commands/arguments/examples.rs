//! Holds the examples that `--help` shows after the options.

/// Examples of `msl`.
pub const EXAMPLES: &str = "\
A first run, with nothing but this program:
  msl demo

On real data, which two scripts of the repository fetch and `msl inspect` describes:
  scripts/get-movielens && scripts/get-smollm2
  msl inspect data/ml-100k
  msl train --data data/ml-100k --prompt titles --output runs/scratch
  msl evaluate runs/scratch";

/// Examples of `msl demo`.
pub const DEMO_EXAMPLES: &str = "\
The catalogue holds 2,016 books of 168 authors, in series and single; every title names its author. Its shape
is that of the Amazon data sets of the paper: 1.6 training rows per item, titles of some 14 tokens of which
three in four are unary (no other token can follow), and 93 tokens that a title can begin with. One book of
every author comes out after the training rows, and half of the test targets are such books: a model can only
know them by their titles. A user mostly takes the next volume of a series, or else another book of the author,
of the genre, or a popular one.

A small Llama-style model is pretrained on the titles alone. From these weights it is tuned on the same rows
with each loss: the plain language-model loss (LML), the masked softmax loss (MSL) at temperature 1, MSL with
the adaptive temperature strategy (ATS, root scope), and MSL at temperature 1 with BEAR's row weights. Each is
evaluated by beam search over the trie. At temperature 1 the masked losses rank about as well as the plain one,
and better on new books. After few rows these three are overconfident, and the higher temperature of ATS helps
against that.

Examples:
  msl demo
  msl demo --training-rows 500 --pretraining-epochs 2 --epochs 1    takes a few seconds";

/// Examples of `msl train`.
pub const TRAIN_EXAMPLES: &str = "\
Examples:
  A small model from scratch, on films. A title needs no instruction around it, and the best of the
  checkpoints is the one with the lowest item NLL on 500 users' last but one film:
    msl train --data data/ml-100k --prompt titles \\
      --validation 500 --patience 3 --output runs/scratch
  Adapters of a pretrained model. It is large: four rows at a time are in memory. Its titles begin
  with one of two tokens, so ats needs the statistics of all branching rows (msl inspect says so):
    msl train --data data/ml-100k --noun movie --verb watched --samples 200 --epochs 1 \\
      --model data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --scope branching \\
      --batch-size 8 --micro-batch-size 4 --learning-rate 1e-3 --output runs/smollm2
  The same over semantic IDs, whose codes become new tokens of the model (docs/semantic-ids.md):
    msl train --data data/films --model … --output runs/codes
  The baselines that a result should be compared with:
    msl train … --loss lml                     the plain language-model loss
    msl train … --loss msl --temperature 1     the masked loss at a fixed temperature
    msl train … --loss bear                    the same, with weights for titles that beam search keeps
  Ctrl-C finishes and saves the current step; msl resume continues from there.
  Watch a run with tensorboard --logdir runs, or read its metrics.jsonl.";

/// Examples of `msl resume`.
pub const RESUME_EXAMPLES: &str = "\
Examples:
  msl resume runs/scratch
All other options are in the run's training.json. The result is bit-identical to that of an uninterrupted run.";

/// Examples of `msl inspect`.
pub const INSPECT_EXAMPLES: &str = "\
Examples:
  msl inspect data/ml-100k    with a tokenizer trained on the titles
  msl inspect data/ml-100k --model data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
The last lines say which --scope of ats to give to msl train.";

/// Examples of `msl export`.
pub const EXPORT_EXAMPLES: &str = "\
Examples:
  msl merge runs/codes --output served            the model, as a Hugging Face folder
  msl export runs/codes --output allowed.jsonl    what its answers may be
docs/serving.md shows a logits processor that reads this file.";

/// Examples of `msl evaluate`.
pub const EVALUATE_EXAMPLES: &str = "\
Examples:
  msl evaluate runs/scratch                       all test users, at the temperature of training
  msl evaluate runs/scratch --samples 100         a hundred of them
  msl evaluate runs/scratch --split validation    the rows that the checkpoint was chosen by; of RecBole's files,
                                                  all of them, of which --validation may have used some
A run that has no lower item NLL than uniform and popularity has not learned.";

/// Examples of `msl recommend`.
pub const RECOMMEND_EXAMPLES: &str = "\
Examples:
  msl recommend runs/scratch \"Toy Story\" \"Babe\"
  msl recommend runs/scratch \"Toy Story\" --top 5 --unseen
  msl recommend runs/scratch --users users.jsonl --output lists.jsonl
users.jsonl has lines such as {\"user_id\": \"u7\", \"history\": [\"17\", \"3\"], \"bought\": [\"9\"]}, of which --exclude bought would
keep item 9 from being recommended.";

/// Examples of `msl report`.
pub const REPORT_EXAMPLES: &str = "\
Examples:
  msl report runs/scratch
  msl report runs/lml runs/msl runs/ats --output losses.html
The page needs no other file and no network. It shows how well a run recommends after msl evaluate.";
