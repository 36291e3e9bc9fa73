"""Fabella: run small Llama models, in a web page or a terminal, with the same tokens in both.

The parts, in the order in which a token meets them: a model file is read by :mod:`fabella.gguf` (or
:mod:`fabella.llama2c`), text becomes tokens in :mod:`fabella.tokenizer`, :mod:`fabella.engine` has C compute the
logits inside ``run.wasm``, :mod:`fabella.sampler` picks the next token, and :mod:`fabella.generate` goes round.
"""

__version__ = "0.1.0"
