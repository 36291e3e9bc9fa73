"""Each knob changes the distribution as its definition says, and the same seed picks what llama2.c picks."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from builder.tools import ROOT
from fabella.errors import ConstraintError, EngineError, FabellaError, SettingsError
from fabella.sampler import (
    REALS,
    SHORTLIST,
    WHOLES,
    Candidate,
    Change,
    Sampler,
    Settings,
    Trace,
    Xorshift,
    draw,
    random_seed,
)

NAN, INF = math.nan, math.inf


class ListLogits:
    """Logits in a list, with the definitions of `fabella.sampler.Logits` taken literally."""

    def __init__(self, logits: Sequence[float]) -> None:
        self.logits = list(logits)
        self.vocab_size = len(logits)
        self.finite = [(token, logit) for token, logit in enumerate(logits) if math.isfinite(logit)]
        self.ranked = sorted(self.finite, key=lambda pair: (-pair[1], pair[0]))
        self.asked: list[int] = []  # every k

    def shortlist(self, k: int) -> list[tuple[int, float]]:
        self.asked.append(k)
        return self.ranked[:k]

    def candidates(self, k: int, temperature: float) -> list[Candidate]:
        total = self.total(temperature)
        return [(token, logit, self.weight(logit, temperature) / total) for token, logit in self.shortlist(k)]

    def mean(self, temperature: float) -> float:
        total = self.total(temperature)
        return math.fsum(self.weight(logit, temperature) / total * logit for _, logit in self.finite)

    @contextmanager
    def changed(self, tokens: Sequence[int], change: Change) -> Iterator[ListLogits]:
        changed = list(self.logits)
        for token, logit in zip(tokens, change([self.logits[token] for token in tokens]), strict=True):
            changed[token] = logit
        yield ListLogits(changed)

    def weight(self, logit: float, temperature: float) -> float:
        return math.exp((logit - self.ranked[0][1]) / temperature)

    def total(self, temperature: float) -> float:
        return math.fsum(self.weight(logit, temperature) for _, logit in self.finite)

    def draw(self, temperature: float, coin: float) -> int:
        if not self.finite:
            raise EngineError("no finite logit")
        reached, total = 0.0, self.total(temperature)
        for token, logit in self.finite:
            reached += self.weight(logit, temperature) / total
            if coin < reached:
                return token
        return self.finite[-1][0]


def sample_many(logits: Sequence[float], count: int = 10_000, **settings: Any) -> Counter[int]:
    sampler = Sampler(Settings(**({"seed": 1337} | settings)))
    kept = ListLogits(logits)
    return Counter(sampler.sample(kept) for _ in range(count))


def expected(
    logits: Sequence[float],
    temperature: float,
    top_k: int = 0,
    top_p: float = 0.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
) -> dict[int, float]:
    """The distribution by definition: softmax, then what each step keeps, scaled to 1."""
    weights = {token: math.exp(logit / temperature) for token, logit in enumerate(logits) if math.isfinite(logit)}
    ranked = sorted(weights, key=lambda token: (-weights[token], token))
    if 0 < typical_p < 1:
        everything = sum(weights.values())
        surprise = {token: -math.log(weight / everything) for token, weight in weights.items()}
        entropy = sum(weights[token] / everything * surprise[token] for token in weights)
        usual = sorted(ranked, key=lambda token: abs(surprise[token] - entropy))
        ranked = [token for token in ranked if token in head(usual, weights, typical_p)]
    ranked = ranked[: top_k or len(logits)]
    if 0 < top_p < 1:
        ranked = head(ranked, weights, top_p)
    ranked = [token for token in ranked if weights[token] >= min_p * weights[ranked[0]]]
    total = sum(weights[token] for token in ranked)
    return {token: weights[token] / total for token in ranked}


def head(ranked: Sequence[int], weights: dict[int, float], p: float) -> list[int]:
    """The fewest first ones that hold more than p of the weight that all of them have (or, of all, all)."""
    total = sum(weights[token] for token in ranked)
    sizes = (n for n in range(1, len(ranked) + 1) if sum(weights[t] for t in ranked[:n]) > p * total)
    return list(ranked[: next(sizes, len(ranked))])


def assert_follows(counts: Counter[int], distribution: dict[int, float]) -> None:
    """Pearson's chi-square test; counts that really follow the distribution fail it once in 100,000 times.

    The bound is Wilson and Hilferty's approximation of that quantile (https://doi.org/10.1073/pnas.17.12.684).
    """
    assert set(counts) <= set(distribution)
    total = counts.total()
    statistic = sum((counts[token] - p * total) ** 2 / (p * total) for token, p in distribution.items())
    freedom = len(distribution) - 1
    if freedom:
        spread = 2 / (9 * freedom)
        assert statistic <= freedom * (1 - spread + 4.26 * math.sqrt(spread)) ** 3


# Not sorted, with equal ones among them.
LOGITS = [0.3, 2.0, -1.0, 1.1, 2.0, 0.0, -3.0, 1.5, 0.9, -0.5, 1.1, 0.2]


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.8, 100.0])
def test_temperature(temperature: float) -> None:
    for off in (0.0, 1.0):
        counts = sample_many(LOGITS, temperature=temperature, top_p=off)
        assert_follows(counts, expected(LOGITS, temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_k", [1, 2, 3, 7, 11])
def test_top_k(temperature: float, top_k: int) -> None:
    counts = sample_many(LOGITS, temperature=temperature, top_k=top_k, top_p=1.0)
    distribution = expected(LOGITS, temperature, top_k=top_k)
    assert len(distribution) == top_k
    assert_follows(counts, distribution)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p(temperature: float, top_p: float) -> None:
    counts = sample_many(LOGITS, temperature=temperature, top_p=top_p)
    assert_follows(counts, expected(LOGITS, temperature, top_p=top_p))


@pytest.mark.parametrize("top_k", [2, 5, 9])
@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.95])
def test_all_together(top_k: int, top_p: float) -> None:
    """Top-p looks at what top-k left, scaled to 1."""
    counts = sample_many(LOGITS, temperature=0.8, top_k=top_k, top_p=top_p)
    assert_follows(counts, expected(LOGITS, 0.8, top_k=top_k, top_p=top_p))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.4, 0.9, 1.0])
def test_min_p(temperature: float, min_p: float) -> None:
    counts = sample_many(LOGITS, temperature=temperature, top_p=1.0, min_p=min_p)
    assert_follows(counts, expected(LOGITS, temperature, min_p=min_p))


# None of them equally far from their mean, where a rounding would decide which is kept.
UNEVEN = [0.31, 2.0, -1.02, 1.13, 2.47, 0.04, -3.05, 1.56, 0.97, -0.58, 1.29, 0.2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("typical_p", [0.01, 0.2, 0.5, 0.8, 0.95])
def test_typical(temperature: float, typical_p: float) -> None:
    counts = sample_many(UNEVEN, temperature=temperature, top_p=1.0, typical_p=typical_p)
    distribution = expected(UNEVEN, temperature, typical_p=typical_p)
    assert_follows(counts, distribution)


def test_typical_may_leave_the_likeliest_out() -> None:
    """Where it is certain, the likeliest is usual; where many share what is left, they are."""
    certain = [10.0] + [0.0] * 10
    assert set(sample_many(certain, 500, top_p=1.0, typical_p=0.5)) == {0}
    open_ = [3.0] + [0.0] * 100
    assert 0 not in sample_many(open_, 500, top_p=1.0, typical_p=0.5)


@pytest.mark.parametrize("top_k", [0, 6])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("min_p", [0.0, 0.15])
@pytest.mark.parametrize("typical_p", [1.0, 0.9])
def test_combinations(top_k: int, top_p: float, min_p: float, typical_p: float) -> None:
    """Typical first, of the whole distribution; then top-k, top-p of what that left, and min-p."""
    steps: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    assert_follows(sample_many(UNEVEN, temperature=0.9, **steps), expected(UNEVEN, 0.9, **steps))


def test_the_test_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_follows(sample_many(LOGITS, temperature=1.0, top_p=0.0), expected(LOGITS, 1.1))


def test_temperature_0_takes_the_likeliest() -> None:
    """The first of equals, without using a random number."""
    sampler = Sampler(Settings(temperature=0, seed=7))
    assert {sampler.sample(ListLogits(LOGITS)) for _ in range(10)} == {1}
    assert sampler.random.coin() == Xorshift(7).coin()


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.0}, {"top_p": 0.5}, {"top_k": 3}, {"top_k": 1}, {"temperature": 1e-6}]
)
def test_one_coin_a_token(settings: dict[str, Any]) -> None:
    sampler, alone = Sampler(Settings(**settings, seed=7)), Xorshift(7)
    for _ in range(5):
        sampler.sample(ListLogits(LOGITS))
        alone.coin()
    assert sampler.random.state == alone.state


@pytest.mark.parametrize("top_k", [12, 13, 1 << 40])
def test_top_k_of_everything_is_off(top_k: int) -> None:
    for top_p in (0.0, 0.7):
        one, other = Sampler(Settings(top_k=top_k, top_p=top_p, seed=5)), Sampler(Settings(top_p=top_p, seed=5))
        for _ in range(100):
            assert one.sample(ListLogits(LOGITS)) == other.sample(ListLogits(LOGITS))


def test_top_p_at_a_boundary() -> None:
    """The token with which the sum first exceeds p is in; a sum that just equals p is not enough."""
    halves = [math.log(2), 0.0, 0.0]  # probabilities ½, ¼, ¼, exactly
    for top_k in (0, 2, 3):
        assert set(sample_many(halves, 500, top_p=0.49, top_k=top_k)) == {0}
    assert set(sample_many(halves, 500, top_p=0.51)) == {0, 1}
    assert set(sample_many(halves, 500, top_p=0.76)) == {0, 1, 2}
    assert set(sample_many([0.0] * 4, 500, top_p=0.5)) == {0, 1, 2}


def test_top_p_smaller_than_any_probability() -> None:
    """Keeps one token. llama2.c reads outside its array here."""
    assert set(sample_many([0.0] * 8, 500, top_p=0.01)) == {0}


def test_top_p_asks_for_more_until_the_nucleus_fits() -> None:
    logits = ListLogits([0.0] * 5000)
    picked = {Sampler(Settings(top_p=0.95, seed=seed)).sample(logits) for seed in range(1, 20)}
    assert set(logits.asked) == {SHORTLIST * 4**i for i in range(6)}
    assert max(picked) < math.ceil(0.95 * 5000) + 1
    assert max(picked) > 4096
    easy = ListLogits([10.0] * 3 + [0.0] * 5000)
    Sampler(Settings(top_p=0.5, seed=1)).sample(easy)
    assert easy.asked == [SHORTLIST]


def test_a_trace_tells_what_each_step_keeps_and_changes_nothing() -> None:
    settings = Settings(temperature=0.8, top_k=6, top_p=0.7, seed=3)
    traced, plain = Sampler(settings), Sampler(settings)
    for _ in range(50):
        traced.trace = Trace()
        token = traced.sample(ListLogits(LOGITS))
        assert token == plain.sample(ListLogits(LOGITS))
        names, kept = zip(*traced.trace.steps, strict=True)
        assert names == ("temperature", "top-k", "top-p")
        distributions = (
            expected(LOGITS, 0.8),
            expected(LOGITS, 0.8, top_k=6),
            expected(LOGITS, 0.8, top_k=6, top_p=0.7),
        )
        for candidates, distribution in zip(kept, distributions, strict=True):
            probabilities = {token: probability for token, _, probability in candidates}
            assert probabilities == pytest.approx(distribution)
            assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert token in probabilities


# ---- Penalties and bias ----

SAID = [3, 1, 1, 4, 7, 1, 4, 6, 0, 3]


def penalised(logits: Sequence[float], said: Sequence[int], settings: Settings) -> list[float]:
    """The penalties as their papers and interfaces define them, told plainly."""
    changed = list(logits)
    for token in range(len(logits)):
        changed[token] += settings.logit_bias.get(token, 0.0)
        count = list(said)[-settings.penalty_window :].count(token)
        if count:
            repetition = settings.repetition_penalty
            changed[token] = changed[token] / repetition if changed[token] > 0 else changed[token] * repetition
            changed[token] -= settings.presence_penalty + settings.frequency_penalty * count
    return changed


@pytest.mark.parametrize(
    "knobs",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"presence_penalty": 0.7},
        {"frequency_penalty": 0.4},
        {"presence_penalty": -0.5, "frequency_penalty": 0.2},
        {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2, "penalty_window": 4},
        {"repetition_penalty": 1.2, "penalty_window": 1},
        {"logit_bias": {1: -3.0, 9: 2.5}},
        {"logit_bias": {1: -math.inf}},
        {"logit_bias": {3: 1.0, 9: 2.5}, "repetition_penalty": 1.3, "frequency_penalty": 0.1},
    ],
)
def test_penalties_and_bias(knobs: dict[str, Any]) -> None:
    settings = Settings(temperature=0.9, top_p=0.85, seed=5, **knobs)
    changed = penalised(LOGITS, SAID, settings)
    sampler, plain = Sampler(settings), Sampler(Settings(temperature=0.9, top_p=0.85, seed=5))
    counts: Counter[int] = Counter()
    for _ in range(10_000):
        token = sampler.sample(ListLogits(LOGITS), SAID)
        assert token == plain.sample(ListLogits(changed))
        counts[token] += 1
    assert_follows(counts, expected(changed, 0.9, top_p=0.85))
    greedy = Sampler(Settings(temperature=0, **knobs)).sample(ListLogits(LOGITS), SAID)
    assert greedy == max(range(len(changed)), key=lambda token: (changed[token], -token))


def test_what_ends_a_text_is_no_repetition() -> None:
    settings = Settings(temperature=0, repetition_penalty=2.0, presence_penalty=5.0)
    assert Sampler(settings).sample(ListLogits([0.0, 3.0, 2.0]), [1, 2]) == 0
    assert Sampler(settings, spared=[1]).sample(ListLogits([0.0, 3.0, 2.0]), [1, 2]) == 1


def test_a_window_sees_the_last_tokens_only() -> None:
    settings = Settings(temperature=0, repetition_penalty=10.0, penalty_window=2)
    assert Sampler(settings).sample(ListLogits([3.0, 2.0, 1.0]), [0, 1, 2]) == 0
    assert Sampler(settings).sample(ListLogits([3.0, 2.0, 1.0]), [1, 0, 2]) == 1
    assert Sampler(settings).sample(ListLogits([3.0, 2.0, 1.0]), []) == 0


def test_a_bias_for_what_is_no_token() -> None:
    with pytest.raises(SettingsError, match="there is no token 12, only 12"):
        Settings(seed=1, logit_bias={12: 1.0}).check(12)
    Settings(seed=1, logit_bias={12: 1.0}).check(13)


# ---- Constraints ----


@pytest.mark.parametrize("knobs", [{"top_p": 1.0}, {"top_p": 0.8}, {"top_k": 5, "top_p": 1.0}, {"min_p": 0.2}])
def test_a_constraint_keeps_what_it_allows_of_what_the_steps_kept(knobs: dict[str, Any]) -> None:
    settings = Settings(temperature=0.9, seed=9, **knobs)
    sampler = Sampler(settings)
    counts = Counter(sampler.sample(ListLogits(LOGITS), allowed=lambda token: token % 2 == 1) for _ in range(10_000))
    steps: dict[str, Any] = {"top_p": settings.top_p, "top_k": settings.top_k, "min_p": settings.min_p}
    kept = {token: p for token, p in expected(LOGITS, 0.9, **steps).items() if token % 2}
    assert_follows(counts, {token: p / sum(kept.values()) for token, p in kept.items()})


def test_where_a_constraint_allows_nothing_of_that_the_likeliest_that_it_does_is_taken() -> None:
    knobs: dict[str, Any]
    for knobs in ({"top_k": 2, "top_p": 1.0}, {"top_p": 0.1}, {"temperature": 0}, {"temperature": 1e-6}):
        sampler = Sampler(Settings(**knobs, seed=1))
        assert sampler.sample(ListLogits(LOGITS), allowed=lambda token: token in (6, 9, 11)) == 11
    thousands = [0.0] * 5000
    assert Sampler(Settings(seed=1, top_k=3)).sample(ListLogits(thousands), allowed=lambda token: token == 4999) == 4999


@pytest.mark.parametrize("knobs", [{"temperature": 0}, {"top_k": 3}, {"top_p": 1.0}])
def test_a_constraint_that_allows_nothing(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError, match="forbids every token"):
        Sampler(Settings(**knobs, seed=1)).sample(ListLogits(LOGITS), allowed=lambda token: False)


@given(st.data())
def test_never_what_is_forbidden(data: st.DataObject) -> None:
    """Whatever else is asked for."""
    reals = st.floats(0, 1)
    settings = Settings(
        temperature=data.draw(st.sampled_from([0.0, 1e-6, 0.7, 3.0])),
        top_p=data.draw(reals),
        top_k=data.draw(st.integers(0, 15)),
        min_p=data.draw(reals),
        typical_p=data.draw(reals),
        repetition_penalty=data.draw(st.floats(0.5, 3)),
        frequency_penalty=data.draw(st.floats(-2, 2)),
        logit_bias=data.draw(
            st.dictionaries(st.integers(0, 11), st.floats(-100, 100) | st.just(-math.inf), max_size=3)
        ),
        seed=data.draw(st.integers(1, 99)),
    )
    forbidden = {token for token, bias in settings.logit_bias.items() if bias == -math.inf}
    permitted = data.draw(st.sets(st.integers(0, 11), min_size=1)) - forbidden
    sampler, said = Sampler(settings), [1, 1, 2]
    for _ in range(20):
        try:
            token = sampler.sample(ListLogits(LOGITS), said, allowed=lambda token: token in permitted)
        except ConstraintError:
            assert not permitted
            return
        assert token in permitted
        said.append(token)


def test_a_trace_tells_of_every_step() -> None:
    sampler = Sampler(Settings(top_k=8, top_p=0.9, min_p=0.01, typical_p=0.99, repetition_penalty=1.2, seed=3))
    sampler.trace = Trace()
    token = sampler.sample(ListLogits(LOGITS), [1], allowed=lambda token: token != 4)
    names, kept = zip(*sampler.trace.steps, strict=True)
    assert names == ("penalties", "temperature", "typical", "top-k", "top-p", "min-p", "constraint")
    assert [len(candidates) for candidates in kept] == sorted(map(len, kept), reverse=True)
    assert token in [candidate[0] for candidate in kept[-1]]
    assert sampler.trace.coin == Xorshift(3).coin()


@pytest.mark.parametrize(("temperature", "names"), [(0.0, []), (0.8, ["temperature"])])
def test_a_trace_of_a_draw_from_all_tokens(temperature: float, names: list[str]) -> None:
    traced, plain = (Sampler(Settings(temperature, top_p=1, seed=4)) for _ in range(2))
    for _ in range(20):
        traced.trace = Trace()
        assert traced.sample(ListLogits(LOGITS)) == plain.sample(ListLogits(LOGITS))
        assert [name for name, _ in traced.trace.steps] == names
        assert (traced.trace.coin is None) == (temperature == 0)


def test_draw() -> None:
    """A coin that equals the running sum goes to the next; one beyond the sum, by rounding, to the last."""
    candidates = [(3, 1.0, 0.5), (1, 0.0, 0.25), (2, -1.0, 0.125)]
    assert [draw(candidates, coin) for coin in (0.0, 0.499, 0.5, 0.749, 0.75, 0.875, 0.999)] == [3, 3, 1, 1, 2, 2, 2]


def test_no_rounding_escapes() -> None:
    """However the sum of probabilities is rounded, a coin just below 1 finds a token that is kept."""
    for size in (3, 7, 64, 65, 1000):
        for top_p in (0.9, 1 - 2**-53):
            sampler = Sampler(Settings(top_p=top_p, seed=1))
            sampler.random.coin = lambda: 1 - 2**-24  # type: ignore[method-assign]
            assert 0 <= sampler.sample(ListLogits([1e-3 * token for token in range(size)])) < size


# --- Logits that are not as they should be ---

KNOBS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"top_p": 0.0},
    {"top_p": 0.8},
    {"top_k": 3, "top_p": 0.0},
    {"top_k": 3, "top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.9},
    {"repetition_penalty": 1.5},
]


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("logits", [[], [NAN] * 5, [INF] * 5, [-INF] * 5, [NAN, INF, -INF, NAN, NAN]])
def test_nothing_to_pick_from(knobs: dict[str, Any], logits: list[float]) -> None:
    with pytest.raises(EngineError):
        Sampler(Settings(**knobs, seed=1)).sample(ListLogits(logits))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_logits_are_never_picked(bad: float) -> None:
    logits = [bad, *LOGITS[:6], bad, bad, *LOGITS[6:], bad]
    for temperature, top_k, top_p in ((1.0, 0, 0.0), (0.7, 0, 0.8), (0.7, 4, 0.0), (1.5, 6, 0.7)):
        counts = sample_many(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        assert_follows(counts, expected(logits, temperature, top_k=top_k, top_p=top_p))
    assert set(sample_many(logits, 10, temperature=0)) == {2}


def test_all_equal() -> None:
    logits = [-7.5] * 10
    assert_follows(sample_many(logits, top_p=0.0), expected(logits, 1.0))
    assert_follows(sample_many(logits, top_p=0.45), dict.fromkeys(range(5), 0.2))
    assert_follows(sample_many(logits, top_k=4, top_p=0.0), dict.fromkeys(range(4), 0.25))
    assert set(sample_many(logits, 10, temperature=0)) == {0}


@pytest.mark.parametrize("knobs", KNOBS)
def test_a_vocabulary_of_one(knobs: dict[str, Any]) -> None:
    assert Sampler(Settings(**knobs, seed=1)).sample(ListLogits([3.0])) == 0


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e6, 1e300])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e38])
def test_extremes(temperature: float, scale: float) -> None:
    """As far as float32 logits go, nothing overflows; the colder, the surer."""
    logits = [scale, -scale, 0.5 * scale, scale]
    for knobs in KNOBS[1:]:
        counts = sample_many(logits, 200, temperature=temperature, **knobs)
        if scale / temperature > 1e3:
            assert set(counts) <= {0, 3}


@pytest.mark.parametrize("module", ["sampler", "engine", "session", "generate", "chat", "constraint", "stops"])
def test_what_decides_a_token_asks_no_library_for_an_exponential(module: str) -> None:
    """Libraries differ in the last bit from one machine to the next (so do their powers, of floats)."""
    tree = ast.parse((ROOT / f"py/fabella/{module}.py").read_text(encoding="utf-8"))
    used = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "math"
    }
    assert used <= {"isfinite", "fsum", "inf"}  # whose results are exact
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not imported & {"math", "cmath"}
    assert "pow" not in called
    powers = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)]
    assert all(ast.literal_eval(node.left) == 10 and type(ast.literal_eval(node.right)) is int for node in powers)


# --- llama2.c ---


class Llama2c:
    """llama2.c's sampling, told plainly in float32 over the whole vocabulary."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature = np.float32(temperature)
        self.top_p = np.float32(top_p)
        self.state = seed

    def coin(self) -> np.float32:
        self.state ^= self.state >> 12
        self.state = (self.state ^ self.state << 25) % 2**64
        self.state ^= self.state >> 27
        u32 = self.state * 0x2545F4914F6CDD1D % 2**64 >> 32
        return np.float32(u32 >> 8) / np.float32(16777216)

    def sample(self, logits: NDArray[np.float32]) -> int | None:
        """Return a token, or None where llama2.c would read outside its array."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits / self.temperature
        weights = np.exp(scaled - scaled.max())
        # cumsum adds one by one, as the loops in C do.
        p = weights / np.cumsum(weights)[-1]
        coin = self.coin()
        if self.top_p <= 0 or self.top_p >= 1:
            reached = np.cumsum(p)
            order = np.arange(len(p))
        else:
            cutoff = (1 - self.top_p) / np.float32(len(p) - 1)
            kept = np.flatnonzero(p >= cutoff)
            if len(kept) == 0:
                return None
            order = kept[np.argsort(-p[kept], kind="stable")]
            reached = np.cumsum(p[order])
            over = np.flatnonzero(reached > self.top_p)
            last = over[0] if len(over) else len(order) - 1
            order, reached = order[: last + 1], reached[: last + 1]
            coin = coin * reached[last]
        assert reached.dtype == np.float32
        found = np.flatnonzero(coin < reached)
        return int(order[found[0]] if len(found) else order[-1])


@pytest.mark.parametrize("vocab_size", [2, 3, 32, 512, 4096])
def test_same_tokens_as_llama2c(vocab_size: int) -> None:
    """For every seed; only a coin within float32's rounding of a boundary could tell the two apart."""
    random = np.random.default_rng(vocab_size)
    compared = 0
    for _ in range(1000 if vocab_size < 4096 else 150):
        temperature = float(random.choice([0.0, 0.1, 0.5, 0.8, 1.0, 1.5]))
        top_p = float(random.choice([0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0]))
        seed = int(random.integers(1, 1 << 64, dtype=np.uint64))
        theirs, ours = Llama2c(temperature, top_p, seed), Sampler(Settings(temperature, top_p, 0, seed))
        for _ in range(2):
            logits = random.normal(0, random.choice([0.1, 1, 3, 8]), vocab_size).astype(np.float32)
            token = theirs.sample(logits)
            sampled = ours.sample(ListLogits(logits.tolist()))
            assert token is None or sampled == token
            assert ours.random.state == theirs.state
            compared += token is not None
    assert compared > 200


# From the generator in C.
COINS = {
    1: [4711630, 11259814, 12177677, 5092376],
    42: [5688906, 13124075, 13256299, 15838407],
    1337: [3864082, 3196366, 5215452, 15144113],
    2**64 - 1: [16329929, 9434244, 3435669, 12932812],
}


@pytest.mark.parametrize("seed", COINS)
def test_generator(seed: int) -> None:
    random = Xorshift(seed)
    assert [random.coin() * 2**24 for _ in COINS[seed]] == COINS[seed]


@given(seed=st.integers(1, 2**64 - 1))
def test_coins_are_float32_below_1(seed: int) -> None:
    random = Xorshift(seed)
    for _ in range(3):
        coin = random.coin()
        assert 0 <= coin < 1
        assert np.float32(coin) == coin


# --- Settings ---


def test_defaults_are_llama2cs() -> None:
    assert Settings() == Settings(
        temperature=1.0,
        top_p=0.9,
        top_k=0,
        seed=0,
        min_p=0.0,
        typical_p=1.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        penalty_window=64,
        logit_bias={},
    )
    assert not Sampler(Settings(top_p=1.0, seed=1)).steps(ListLogits(LOGITS))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in REALS for value in (NAN, INF, -INF, -101, "1", None, True)),
        *((field, -0.1) for field in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")),
        ("temperature", 1e-7),
        ("temperature", -1),
        ("top_p", 1.01),
        *((field, value) for field in WHOLES for value in (-1, 1.0, "1", None, True)),
        ("penalty_window", 0),
        ("repetition_penalty", 0.0),
        *(("logit_bias", bias) for bias in (None, [1], {"1": 1.0}, {-1: 1.0}, {1: "1"}, {1: NAN}, {1: INF}, {1: 101})),
        ("seed", 1 << 64),
    ],
)
def test_wrong_settings(field: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert isinstance(caught.value, FabellaError)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 2}, {"top_p": 0}, {"top_p": 1}, {"seed": 2**64 - 1}]
)
def test_right_settings(settings: dict[str, Any]) -> None:
    Settings(**settings)


@pytest.mark.parametrize("seed", [0, -1, 1 << 64])
def test_the_generator_needs_a_seed(seed: int) -> None:
    """Seed 0 would give 0 for ever; whoever offers "any seed" chooses one first. Greedy choice needs none."""
    with pytest.raises(SettingsError) as caught:
        Xorshift(seed).coin()
    assert caught.value.field == "seed"


def test_greedy_choice_needs_no_seed() -> None:
    assert Sampler(Settings(temperature=0)).sample(ListLogits([1.0, 3.0, 2.0])) == 1


def test_random_seeds() -> None:
    """Each another, and none has more digits than the page's field takes."""
    seeds = {random_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert 1 <= min(seeds) <= max(seeds) < 10**18
    assert Settings(seed=max(seeds)).seed == max(seeds)
