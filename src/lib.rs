//! Trie-masked softmax losses for candle.
