"""The engine: one loaded model inside ``run.wasm``. It knows tokens and logits, and nothing of text.

An example::

    engine = Engine(host, model, source)
    logits = engine.prefill([1, 403, 407])     # the whole prompt at once
    logits = engine.forward(263)               # then token by token
    engine.rewind(2)                           # forget all but the first two positions
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from fabella import abi
from fabella.abi import E_CONFIG, E_NOT_FINITE, E_RANGE, E_TOKEN, ERRORS, struct_of
from fabella.architectures import ROPE_TENSORS, key_of, tensor_place
from fabella.errors import EngineError, ModelFileError
from fabella.formats import FORMATS
from fabella.hosts import Host, read_all
from fabella.memory import cache_size
from fabella.modelfile import ModelFile, Tensor
from fabella.rope import NO_SCALING, table_of
from fabella.sampler import Candidate, Change
from fabella.sources import ByteSource

if TYPE_CHECKING:
    from fabella.adapter import Adapter

TOKENS_AT_ONCE = 512  # tokens that there is room for where C reads them
READY = 16  # candidates that lie ready after each token: enough for most draws
CANDIDATE = struct_of(abi.CANDIDATE)
LOADED_AT_ONCE = 1 << 18  # bytes of the file that lie in C's memory while it is loaded, unless a row is longer


def _check(code: int, doing: str) -> int:
    if code < 0:
        raise EngineError(f"{doing}: {ERRORS.get(code, f'error {code}')}")
    return code


def _closed(*_: int) -> int:
    raise EngineError("this model is closed")


def _portion(tensor: Tensor) -> int:
    """How many bytes of a tensor are loaded at a time: whole rows, at least one."""
    row = tensor.size // tensor.rows
    return min(tensor.size, max(row, LOADED_AT_ONCE // row * row))


class Inside(NamedTuple):
    """What a token is like inside the model. A layer that is run several times counts as so many.

    Attributes
    ----------
    attention
        How much each head of each layer looks at each position so far, its own included: (layers, heads, positions),
        float32, as a memoryview that numbers index and NumPy reads. Each head's add up to 1; a position that the layer
        does not see has 0.
    lens
        For each layer what its stream would say if it were the last: the likeliest tokens, likeliest first, by the
        model's own last norm and output matrix. Those of the last layer are the model's.
    """

    attention: memoryview[float]
    lens: list[list[Candidate]]


class Engine:
    """A model in the memory of ``run.wasm``, with its KV cache.

    Parameters
    ----------
    host
        The module's host.
    model
        The description of the model file, already checked.
    source
        The model file's bytes. They go through C's memory a few rows at a time, from the front of the file to its end,
        and are packed into the kernels' layouts.

    Attributes
    ----------
    position : int
        How many tokens the KV cache holds; the next token is computed at this position.
    context : int
        How many it can hold.
    logits : Logits
        Those after the last token.

    Raises
    ------
    EngineError
        If memory runs out.
    ModelFileError
        If a tensor holds a value that is not a finite number, or an 8-bit weight of -128; if RoPE's angles are no such.
    """

    def __init__(self, host: Host, model: ModelFile, source: ByteSource) -> None:
        self.host = host
        self.config = model.config
        self.context = model.config.seq_len
        self.position = 0
        self._forward = host.function("forward")
        self._forward_token = host.function("forward_token")

        self._model = 0
        self._tokens = host.allocate(4 * TOKENS_AT_ONCE)
        try:
            self._model = self._new_model()
            self._set_layers()
            self._load(list(model.tensors.values()), source)
        except BaseException:
            self.close()
            raise
        self.logits = Logits(host, host.function("model_logits")(self._model), self.config.vocab_size)

    def _new_model(self) -> int:
        packed = struct_of(abi.CONFIG).pack(*(getattr(self.config, field) for field in abi.CONFIG))
        config = self.host.put(packed + bytes(4))  # the last four bytes are the place for the new model's pointer
        out = config + len(packed)
        try:
            _check(self.host.function("model_new")(config, out), "making room for the model")
            return int.from_bytes(self.host.read(out, 4), "little")
        finally:
            self.host.release(config)

    def _set_layers(self) -> None:
        """Says of each layer how it sees the positions before."""
        config, set_layer = self.config, self.host.function("set_layer")
        if not config.rope_scaling.divisors:
            self._set_rope("rope_base")
        if config.local_rope_base:
            self._set_rope("local_rope_base")
        everywhere = (0,) * config.n_layers
        for layer, (rope, window) in enumerate(
            zip(config.ropes or everywhere, config.windows or everywhere, strict=True)
        ):
            _check(set_layer(self._model, layer, rope, window), f"making room for layer {layer}")

    def _set_rope(self, field: str, divisors: Sequence[float] = ()) -> None:
        """Computes one of RoPE's tables, which Config's `field` is the base of."""
        is_local = field == "local_rope_base"
        scaling = NO_SCALING if is_local else self.config.rope_scaling
        base, key = getattr(self.config, field), key_of(self.config, field)
        exp, log = self.host.function("exponential"), self.host.function("logarithm")
        table = table_of(float(base), self.config.rope_size, scaling, divisors, key, exp, log)
        angles = self.host.put(struct.pack(f"<{len(table.angles)}d", *table.angles))
        try:
            code = self.host.function("set_rope")(self._model, int(is_local), angles, table.magnitude)
            if code == E_CONFIG:
                raise ModelFileError(scaling.divisors or key, "makes angles of RoPE that are too large")
            _check(code, "making room for the angles of RoPE")
        finally:
            self.host.release(angles)

    def _load(self, tensors: list[Tensor], source: ByteSource) -> None:
        """Has C pack all tensors, in the order in which they lie in the file."""
        buffer = self.host.allocate(max(map(_portion, tensors)))
        try:
            for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
                if tensor.name not in ROPE_TENSORS:
                    self._load_tensor(tensor, source, buffer)
                elif tensor.name == self.config.rope_scaling.divisors:
                    divisors = array("f", read_all(source, tensor.offset, tensor.size))
                    self._set_rope("rope_base", divisors)
        finally:
            self.host.release(buffer)

    def _load_tensor(self, tensor: Tensor, source: ByteSource, buffer: int) -> None:
        """Has C pack one tensor."""
        begin, pack_rows = self.host.function("tensor_begin"), self.host.function("tensor_rows")
        number, layer = tensor_place(tensor.name)
        format = FORMATS[tensor.type].number
        code = begin(self._model, number, layer, format, tensor.rows, tensor.columns, tensor.group)
        _check(code, f"loading {tensor.name}")
        scales = self.host.put(read_all(source, tensor.scales, tensor.scales_size)) if tensor.group else 0
        try:
            for start in range(0, tensor.size, _portion(tensor)):
                size = min(_portion(tensor), tensor.size - start)
                self.host.fill(buffer, source, tensor.offset + start, size)
                code = pack_rows(self._model, buffer, size, scales)
                if code in (E_NOT_FINITE, E_RANGE):
                    raise ModelFileError(tensor.name, ERRORS[code])
                _check(code, f"loading {tensor.name}")
        finally:
            self.host.release(scales)

    # ---- Adapters ------------------------------------------------------------------------------------------------

    def adapt(self, adapter: Adapter, source: ByteSource) -> None:
        """Puts an adapter beside the model's matrices, in the place of one that may be there, and switches it on.

        All tokens are forgotten by this and the next two: they were computed without it, or with another.

        Parameters
        ----------
        adapter
            What its file says.
        source
            The file's bytes.

        Raises
        ------
        ModelFileError
            If it is for another model, or holds a value that is not a finite number.
        EngineError
            If memory runs out. The model then has no adapter, as after a value that is none.
        """
        adapter.check_fits(self.config)
        self.position = 0
        _check(self._call("adapter_new", len(adapter.pairs)), "making room for the adapter")
        try:
            for name, pair in sorted(adapter.pairs.items(), key=lambda item: item[1].a.offset):
                number, layer = tensor_place(name)
                code = self._call("adapter_begin", number, layer, pair.rank, float(adapter.scale(pair)))
                _check(code, f"making room for the adapter of {name}")
                for part, tensor in enumerate((pair.a, pair.b)):
                    self._load_part(part, tensor, source)
        except BaseException:
            self.drop_adapter()
            raise

    def _load_part(self, part: int, tensor: Tensor, source: ByteSource) -> None:
        data = self.host.allocate(tensor.size)
        try:
            self.host.fill(data, source, tensor.offset, tensor.size)
            code = self._call("adapter_part", part, FORMATS[tensor.type].number, data, tensor.size)
            if code == E_NOT_FINITE:
                raise ModelFileError(tensor.name, ERRORS[code])
            _check(code, f"loading {tensor.name}")
        finally:
            self.host.release(data)

    def use_adapter(self, on: bool) -> None:
        """Switches the adapter off, or on again; without one nothing changes but that all tokens are forgotten."""
        self.position = 0
        self._call("adapter_use", int(on))

    def drop_adapter(self) -> None:
        """Takes the adapter away, and gives its memory back."""
        self.position = 0
        _check(self._call("adapter_new", 0), "taking the adapter away")

    def _call(self, name: str, *arguments: float) -> int:
        """Calls C for this model, unless it is closed."""
        if self._forward is _closed:
            _closed()
        result: int = self.host.function(name)(self._model, *arguments)
        return result

    @property
    def weights_size(self) -> int:
        """Bytes that the weights take in memory, as they are packed."""
        return int(self.host.function("weights_size")(self._model))

    @property
    def cache_size(self) -> int:
        """Bytes that the KV cache takes in memory for each token."""
        return cache_size(self.config)

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Computes `tokens` at the next positions, many in one call, and returns the logits after the last.

        Raises
        ------
        EngineError
            If they do not fit the context, a token is outside the vocabulary, or memory runs out.
        """
        if not 0 < len(tokens) <= self.context - self.position:
            raise EngineError(
                f"{len(tokens)} tokens do not fit: {self.position} of {self.context} positions are in use"
            )
        for start in range(0, len(tokens), TOKENS_AT_ONCE):
            part = tokens[start : start + TOKENS_AT_ONCE]
            try:
                self.host.write(self._tokens, struct.pack(f"<{len(part)}i", *part))
            except struct.error:
                raise EngineError(f"computing position {self.position}: {ERRORS[E_TOKEN]}") from None
            code = self._forward(self._model, self._tokens, len(part), self.position)
            _check(code, f"computing position {self.position}")
            self.position += len(part)
        self.logits.ready = 0
        return self.logits

    def forward(self, token: int) -> Logits:
        """Computes one token at the next position and returns the logits after it. Raises as :meth:`prefill` does."""
        if self.position == self.context or not 0 <= token < self.config.vocab_size:
            return self.prefill((token,))  # it says what is wrong
        ready: int = self._forward_token(self._model, token, self.position, READY)
        if ready < 0:
            _check(ready, f"computing position {self.position}")
        self.position += 1
        self.logits.ready = ready
        return self.logits

    def rewind(self, position: int) -> None:
        """Forgets all tokens from `position` on."""
        if self._forward is _closed:
            _closed()
        if not 0 <= position <= self.position:
            raise EngineError(f"cannot rewind to {position}: there are {self.position} positions")
        self.position = position

    def revisit(self, token: int, position: int) -> Logits:
        """Computes a token once more where it was computed, and returns the logits after it. As `probe`."""
        self._check_computed(token, position)
        _check(self._call("probe", token, position, 0, 0, 0), f"looking into position {position}")
        self.logits.ready = 0
        return self.logits

    def _check_computed(self, token: int, position: int) -> None:
        if not 0 <= position < self.position:
            raise EngineError(f"position {position} cannot be looked into: {self.position} are computed")
        if not 0 <= token < self.config.vocab_size:
            raise EngineError(f"looking into position {position}: {ERRORS[E_TOKEN]}")

    def probe(self, token: int, position: int, top: int = 3) -> Inside:
        """Computes a token once more and returns what it is like inside (wasm/run.c says how).

        All positions stay computed; but `logits` are now those after this token.

        Parameters
        ----------
        token, position
            The token, and where it was computed: another one would be wrong there for all after it.
        top
            How many tokens of each layer's lens.

        Raises
        ------
        EngineError
            If nothing is computed at this position, the token is outside the vocabulary, or memory runs out.
        """
        config = self.config
        layers, top = config.n_layers * config.repeats, min(max(top, 1), config.vocab_size)
        self._check_computed(token, position)
        weights, best = 4 * layers * config.n_heads * (position + 1), CANDIDATE.size * layers * top
        lens = self.host.allocate(best + weights)
        try:
            code = self._call("probe", token, position, lens + best, lens, top)
            _check(code, f"looking into position {position}")
            found = list(CANDIDATE.iter_unpack(self.host.read(lens, best)))
            attention = memoryview(self.host.read(lens + best, weights))
        finally:
            self.host.release(lens)
            self.logits.ready = 0
        per_layer = [[one for one in found[at : at + top] if one[0] >= 0] for at in range(0, len(found), top)]
        return Inside(attention.cast("f", (layers, config.n_heads, position + 1)), per_layer)

    def close(self) -> None:
        """Gives the model's memory back. The engine computes nothing any more afterwards."""
        self._forward = self._forward_token = _closed
        self.position = 0
        self.host.function("model_free")(self._model)
        self.host.release(self._tokens)


class Logits:
    """The logits after the engine's last token, of which there are always only these: they stay in C's memory.

    A logit that is not a finite number is left out of everything here. What is probable is said for a temperature: the
    softmax is that of the logits divided by it.

    Parameters
    ----------
    host
        The module's host.
    pointer
        The address of C's ``Logits`` in its memory.
    vocab_size
        How many logits there are.

    Attributes
    ----------
    ready : int
        How many of the best candidates C has already found.
    values : int
        The address of all logits, (vocab_size) floats.
    """

    def __init__(self, host: Host, pointer: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.ready = 0
        self._host = host
        self.values = host.function("logits_values")(pointer) & 0xFFFFFFFF
        self._pointer = pointer
        self._shortlist = host.function("shortlist")
        self._probabilities = host.function("probabilities")
        self._draw = host.function("draw")
        self._mean = host.function("mean_logit")
        self._log_probability = host.function("log_probability")
        self._entropy = host.function("entropy")
        self._probability = host.function("probability")
        self._drawn_begin, self._drawn_end = host.function("drawn_begin"), host.function("drawn_end")
        self._candidates = host.function("logits_candidates")(pointer) & 0xFFFFFFFF
        self._read_ready = host.reader(self._candidates, CANDIDATE.size * min(READY, vocab_size))
        self._read_logits = host.function("read_logits")
        self._exchange_logits = host.function("exchange_logits")
        self._some = _Some(host)

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        """The `k` best candidates as (token, logit), best first; of equals the smaller token first."""
        return [(token, logit) for token, logit, _ in self._read(self._find(k))]

    def candidates(self, k: int, temperature: float) -> list[tuple[int, float, float]]:
        """The `k` best candidates as (token, logit, probability); the probabilities of all tokens add up to 1."""
        count = self._find(k)
        _check(self._probabilities(self._pointer, float(temperature)), "choosing a token")
        return list(self._read(count))

    def draw(self, temperature: float, coin: float) -> int:
        """The first token, in the order of ids, up to which the probabilities add up to more than `coin`."""
        return _check(self._draw(self._pointer, float(temperature), float(coin)), "choosing a token")

    def mean(self, temperature: float) -> float:
        """The mean of the logits, each with its token's probability; NaN if no logit is finite."""
        return float(self._mean(self._pointer, float(temperature)))

    def log_probability(self, token: int) -> float:
        """The natural logarithm of a token's probability at temperature 1; -inf of what is no token."""
        return float(self._log_probability(self._pointer, token))

    def truth(self) -> tuple[list[Candidate], float]:
        """What lies ready, the best candidates with their probabilities at temperature 1, and the entropy there.

        The entropy says in nats how uncertain the next token is. Raises EngineError if no logit is finite.
        """
        count = self._find(READY)
        entropy = float(self._entropy(self._pointer))
        return list(self._read(count)), entropy

    def candidate(self, token: int, temperature: float) -> Candidate:
        """Any one token as (token, logit, probability). Raises EngineError if the vocabulary has not got it."""
        self._some.put((token,))
        _check(self._read_logits(self._pointer, self._some.ids, self._some.values, 1), "looking at a token")
        return token, self._some.get(1)[0], float(self._probability(self._pointer, token, float(temperature)))

    def drawn(self) -> tuple[float, float]:
        """Between which running sums of probabilities, in the order of ids, the token lies that `draw` found last."""
        return float(self._drawn_begin(self._pointer)), float(self._drawn_end(self._pointer))

    @contextmanager
    def changed(self, tokens: Sequence[int], change: Change) -> Iterator[Logits]:
        """These logits, but for some tokens what `change` makes of theirs, in a `with` statement (one at a time).

        Raises EngineError if a token is outside the vocabulary.
        """
        some, count = self._some, len(tokens)
        some.put(tokens)
        _check(self._read_logits(self._pointer, some.ids, some.values, count), "changing logits")
        some.set(change(some.get(count)))
        self._exchange_logits(self._pointer, some.ids, some.values, count)
        self.ready = 0
        try:
            yield self
        finally:
            self._exchange_logits(self._pointer, some.ids, some.values, count)
            self.ready = 0

    def to_array(self) -> array[float]:
        """A copy of all logits, (vocab_size), float32."""
        return array("f", self._host.read(self.values, 4 * self.vocab_size))

    def _find(self, k: int) -> int:
        """Has C find the `k` best candidates, unless they lie ready. Returns how many there are."""
        if 0 < k <= self.ready:
            return k
        self.ready = _check(self._shortlist(self._pointer, min(k, self.vocab_size)), "choosing a token")
        return self.ready

    def _read(self, count: int) -> Iterator[tuple[int, float, float]]:
        if count <= READY:
            return CANDIDATE.iter_unpack(self._read_ready()[: CANDIDATE.size * count])
        return CANDIDATE.iter_unpack(self._host.read(self._candidates, CANDIDATE.size * count))


class _Some:
    """Room in C's memory for some tokens' numbers (`ids`, int32) and their logits (`values`, float32)."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._room = self.ids = self.values = 0

    def put(self, ids: Sequence[int]) -> None:
        """Write the numbers. Raises EngineError if one is none of an int32."""
        if len(ids) > self._room:
            self._host.release(self.ids)
            self._room = max(64, 2 * len(ids))
            size = 4 * self._room
            self.ids = self._host.allocate(2 * size)
            self.values = self.ids + size
            self._write_ids = self._host.writer(self.ids, size)
            self._write_values = self._host.writer(self.values, size)
            self._read_values = self._host.reader(self.values, size)
        try:
            self._write_ids(array("i", ids).tobytes().ljust(4 * self._room))
        except OverflowError:
            raise EngineError(f"changing logits: {ERRORS[E_TOKEN]}") from None

    def get(self, count: int) -> list[float]:
        """Read so many values."""
        return array("f", self._read_values()).tolist()[:count]

    def set(self, values: Iterable[float]) -> None:
        """Write the values."""
        self._write_values(array("f", values).tobytes().ljust(4 * self._room))
