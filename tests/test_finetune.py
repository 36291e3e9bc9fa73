"""Fine-tuning: LoRA, what is learned from and how it is written down, runs that stop and go on, and their export."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fabella
from fabella.adapter import read_adapter
from fabella.errors import ModelFileError, TemplateError
from fabella.gguf import read_gguf
from fabella.modelfile import BytesSource, Config, FileSource
from fabella.sentencepiece import SentencePiece
from fabella.template import ChatTemplate
from train import finetune as tuning
from train import loop
from train import train as training
from train.answers import Writer, batches, make_batch, plan_round, read_conversations, read_examples, split_examples
from train.checkpoint import Checkpoint
from train.convert import main as convert
from train.data import PADDING
from train.examples import json_answers, storyteller, three_words
from train.export import main as export
from train.files import Damaged
from train.finetune import answer_loss
from train.load import load_gguf
from train.loop import Loop
from train.lora import LoRA, add_lora, load_lora_weights, lora_weights, merge_lora
from train.model import Llama
from train.run import RunFolder
from train.sources import read_documents
from train.tuned import FineTuning

from . import families
from .random_models import tokenizer, write_random_model

torch.set_num_threads(1)
TINY = Config(dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=96)
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + ': ' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)

# --- LoRA ---


def test_an_adapter_begins_as_nothing_and_merges_into_what_it_computes() -> None:
    torch.manual_seed(0)
    model = Llama(TINY)
    tokens = torch.randint(0, TINY.vocab_size, (2, 20))
    with torch.no_grad():
        before = model(tokens)
        add_lora(model, rank=4, alpha=6.0)
        assert torch.equal(model(tokens), before)
        for weight in lora_weights(model).values():
            weight.normal_()
        after = model(tokens)
        assert not torch.allclose(after, before, atol=0.1)
        merge_lora(model)
        assert not any(isinstance(module, LoRA) for module in model.modules())
        assert torch.allclose(model(tokens), after, atol=1e-4)


def test_only_the_adapter_is_learned_and_of_the_matrices_that_were_named() -> None:
    model = Llama(TINY)
    add_lora(model, 2, 2.0, ("attn_q", "ffn_down"))
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learned == [f"blk.{n}.{m}.{part}" for n in (0, 1) for m in ("attn_q", "ffn_down") for part in "ab"]
    weights = lora_weights(model)
    assert list(weights)[:2] == ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"]
    assert [tuple(weights[f"blk.0.ffn_down.weight.lora_{part}"].shape) for part in "ab"] == [(2, 64), (32, 2)]
    other = Llama(TINY)
    add_lora(other, 2, 2.0, ("attn_q", "ffn_down"))
    load_lora_weights(other, weights)
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), lora_weights(other).values(), strict=True))


def test_the_loss_is_that_of_the_answers_alone() -> None:
    torch.manual_seed(0)
    model = Llama(TINY)
    inputs, targets = torch.randint(0, 300, (2, 3, 32))
    targets[torch.rand(3, 32) < 0.7] = PADDING
    whole = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=PADDING)
    assert torch.allclose(answer_loss(model, inputs, targets), whole)


# --- What is learned from ---


def writer(template: str | None = TEMPLATE) -> Writer:
    vocabulary = tokenizer(TINY.vocab_size)
    return Writer(vocabulary, ChatTemplate(template, "<s>", "</s>", vocabulary.controls) if template else None)


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def learned_texts(write: Writer, messages: list[dict[str, str]]) -> list[str]:
    """What is learned of a conversation, part by part."""
    example = write.conversation(messages)
    parts: list[list[int]] = []
    for place, (id, learned) in enumerate(zip(example.ids, example.learned, strict=True)):
        if learned:
            if not example.learned[place - 1]:
                parts.append([])
            parts[-1].append(id)
    assert example.n_bytes == sum(len(write.tokenizer.decode([1, *part]).encode()) for part in parts)
    assert all(part[-1] == write.tokenizer.eos_id for part in parts)
    return ["".join(write.tokenizer.decode([1, *part[:-1]])) for part in parts]


def test_the_answers_of_a_conversation_are_learned_each_with_its_end() -> None:
    assert learned_texts(writer(), said("Hi", "Hello, you!")) == ["Hello, you!"]
    system = [{"role": "system", "content": "Be brief."}]
    assert learned_texts(writer(), [*system, *said("a", "b", "c?", "d and e")]) == ["b", "d and e"]
    example = writer().conversation([*system, *said("a", "b")])
    text = writer().tokenizer.decode(example.ids)
    assert text.strip().startswith("system: Be brief."), "as the model will read it"


def test_a_control_token_that_somebody_wrote_is_text() -> None:
    (answer,) = learned_texts(writer(), said("</s> or <s>?", "Both, </s>."))
    assert answer == "Both, </s>."


def test_a_model_without_a_template_goes_on_after_its_prompt() -> None:
    write = writer(None)
    assert learned_texts(write, said("w1 w2", " w3 w4")) == ["w3 w4"]
    example = write.conversation(said("w1 w2", " w3 w4"))
    assert example.ids == [*write.tokenizer.encode("w1 w2 w3 w4"), write.tokenizer.eos_id]
    with pytest.raises(TemplateError, match="no conversations"):
        write.conversation(said("a", "b", "c", "d"))


def test_a_template_that_does_not_end_an_answer_has_it_ended() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert learned_texts(writer(template), said("a", "b")) == ["b\n"]


def test_a_text_becomes_rows_in_which_each_token_is_learned_once() -> None:
    write = writer()
    ids = write.tokenizer.encode("w1 w2 w3 " * 30)
    rows = list(write.text("w1 w2 w3 " * 30, 50))
    assert all(len(row.ids) <= 50 for row in rows)
    learned = [id for row in rows for id, counted in zip(row.ids, row.learned, strict=True) if counted]
    assert learned == [*ids[1:], write.tokenizer.eos_id]
    # Where a row ends with the last token, there is no further one that learns, or measures, no text.
    assert [len(row.ids) for row in write.text("w1 w2 w3 " * 30, len(ids))] == [len(ids)]


def test_a_conversation_of_thousands_of_answers_is_too_long_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, encoded = writer(), list[str]()
    assert write.scribe
    encode = write.scribe.encoded

    def counted(text: str) -> list[int]:
        encoded.append(text)
        return encode(text)

    monkeypatch.setattr(write.scribe, "encoded", counted)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": said(*["w1 w2"] * 2000)}) + "\n")
    assert read_examples(path, write, 100) == ([], 1)
    assert len(encoded) == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[1]", "must be {"),
        ("{", "is no JSON"),
        ('{"prompt": "a"}', "must be {"),
        ('{"prompt": "a", "response": 3}', "must be {"),
        ('{"prompt": "a", "response": ""}', "empty"),
        ('{"prompt": "", "response": "a"}', "empty"),
        ('{"messages": []}', "the last message must be the assistant's"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the last message must be the assistant's"),
        ('{"messages": [{"role": "user"}]}', 'message 1 must be {"role": text, "content": text}'),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "must be by 'user'"),
        ('{"prompt": "a", "response": " "}', "the answers hold no text"),
    ],
)
def test_a_line_that_cannot_be_learned_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match="line 3: ") as error:
        read_examples(path, writer(), 100)
    assert complaint in str(error.value)


def test_an_answer_that_cannot_be_told_from_its_prompt_is_refused() -> None:
    """The model would meet another beginning than it has learned."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "b", "▁b"]
    vocabulary = SentencePiece(pieces, [0.0] * len(pieces), [2, 3, 3, *[6] * 256, 1, 1, 1])
    write = Writer(vocabulary, ChatTemplate(TEMPLATE, "<s>", "</s>", vocabulary.controls))
    with pytest.raises(ValueError, match="an answer flows into what is before it"):
        write.conversation(said("a", "b"))


def test_files_that_are_none_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_conversations(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no examples"):
        read_conversations(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe4"}')
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_conversations(tmp_path / "latin.jsonl")


def test_batches_hold_every_example_once_and_no_more_tokens_than_asked() -> None:
    rng = random.Random(3)
    write = writer()
    examples = [write.conversation(said("w1 " * rng.randint(1, 20), "w2 " * rng.randint(1, 9))) for _ in range(90)]
    learn, held_out = split_examples(examples, 0.05, 1)
    assert (len(learn), len(held_out)) == (86, 4)
    for number in (0, 1):
        batches = plan_round(learn, 256, 1, number)
        assert sorted(map(id, (e for batch in batches for e in batch))) == sorted(map(id, learn))
        for batch in batches:
            inputs, targets = make_batch(batch)
            assert inputs.numel() <= 256 or len(batch) == 1
            assert (targets != PADDING).sum() == sum(example.n_learned for example in batch)
    assert plan_round(learn, 256, 1, 0) == plan_round(learn, 256, 1, 0) != plan_round(learn, 256, 1, 1)


def test_batches_go_on_anywhere_as_if_from_the_beginning() -> None:
    write = writer()
    examples = [write.conversation(said(f"w{i} w1", "w2 " * (1 + i % 5))) for i in range(30)]
    steps = 3 * len(plan_round(examples, 128, 1, 0))
    whole = list(islice(batches(examples, 128, 1), steps))
    for step in (0, 3, steps // 2, steps - 1):
        rest = islice(batches(examples, 128, 1, step), steps - step)
        for ours, theirs in zip(rest, whole[step:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- Runs ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that chats, in the format of SmolLM2's."""
    return write_random_model(tmp_path_factory.mktemp("base") / "base.gguf", TINY, type="Q4_1", template=TEMPLATE)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    lines = [{"prompt": f"w{i % 7}", "response": f"w{i % 7} w3"} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(base: Path, data: Path, out: Path, *more: str) -> FineTuning:
    options = [str(base), str(data), "--out", str(out), "--batch-tokens", "128", "--learning-rate", "0.02", *more]
    return tuning.finetune(tuning.parse_arguments(options))


def best_of(run: FineTuning) -> float:
    return min(bits for _, bits in run.measured)


@pytest.fixture(scope="module")
def tuned(base: Path, answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "mine"
    run(base, answers, out)
    return out


def test_it_learns_and_says_what_it_does(
    base: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(base, answers, tmp_path / "mine")
    assert done.before
    assert best_of(done) < 0.6 * done.before
    out = capsys.readouterr().out
    assert "57 examples to learn from and 3 held out" in out
    assert "Plan: an adapter of rank 4, 4,096 parameters; 3 rounds of " in out
    assert "GB of memory" in out
    assert "Best, and kept: " in out
    assert f"python -m train.export {tmp_path / 'mine'} --adapter -o mine-adapter.gguf" in out
    assert (tmp_path / "mine/curve.csv").read_text().count("\n") == len(done.curve) + 1
    assert sum(file.stat().st_size for file in (tmp_path / "mine").iterdir()) < 400_000, "the adapter alone is kept"


def test_a_text_is_learned_with_all_weights(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("w1 w2 w3 w4 w5.\n<|endoftext|>\n" * 40)
    done = run(base, tmp_path / "text.txt", tmp_path / "mine", "--full")
    assert done.before
    assert best_of(done) < 0.6 * done.before
    assert "Plan: all weights" in capsys.readouterr().out
    assert export_to(tmp_path / "mine", tmp_path / "mine.gguf", "--format", "F32") == 0
    model, _ = load_gguf(tmp_path / "mine.gguf")
    best = FineTuning.load_best(tmp_path / "mine").model
    assert all(torch.equal(weight, best[name]) for name, weight in model.state_dict().items())
    assert export_to(tmp_path / "mine", tmp_path / "a.gguf", "--adapter") == 1
    assert "has none" in capsys.readouterr().err


def test_one_of_our_own_runs_is_fine_tuned(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("One day, a dog ran to the green house and slept.\n<|endoftext|>\n" * 100)
    shape = "--vocab-size 300 --dim 32 --hidden-dim 64 --layers 1 --heads 4 --kv-heads 2 --context 64"
    small = f"{shape} --tokens 600 --batch-tokens 256 --no-compile".split()
    training.train(training.parse_arguments([str(tmp_path / "text.txt"), "--out", str(tmp_path / "run"), *small]))
    (tmp_path / "mine.jsonl").write_text('{"prompt": "One day,", "response": " a cat ran."}\n' * 40)
    done = run(tmp_path / "run", tmp_path / "mine.jsonl", tmp_path / "mine")
    assert done.before
    assert best_of(done) < done.before
    assert export_to(tmp_path / "mine", tmp_path / "mine.gguf") == 0
    with FileSource(tmp_path / "mine.gguf") as source:
        assert read_gguf(source).name == "mine"


def test_a_hugging_face_folder_is_fine_tuned(base: Path, answers: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["convert", str(base), "-o", str(tmp_path / "hf")])
        assert convert() == 0
    run(tmp_path / "hf", answers, tmp_path / "mine")
    same = FineTuning.load_best(tuned).model
    assert all(
        torch.equal(weight, same[name]) for name, weight in FineTuning.load_best(tmp_path / "mine").model.items()
    )
    (tmp_path / "hf").rename(tmp_path / "moved")
    for source, more in ((tuned, []), (tmp_path / "mine", ["--base", str(tmp_path / "moved")])):
        assert export_to(source, tmp_path / f"{source.name}-{source.parent.name}.gguf", *more, "--name", "one") == 0
    first, second = (load_gguf(path) for path in tmp_path.glob("mine-*.gguf"))
    assert first[0].state_dict().keys() == second[0].state_dict().keys()
    assert all(torch.equal(weight, second[0].state_dict()[name]) for name, weight in first[0].state_dict().items())
    assert first[1].chat_template == second[1].chat_template == TEMPLATE


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]) -> None:
    """Have something happen after so many steps of the next run."""
    step = Loop.step
    count = 0

    def counted(self: Loop, *batch: Any) -> Any:
        nonlocal count
        result = step(self, *batch)
        count += 1
        if count == steps:
            stop()
        return result

    monkeypatch.setattr(Loop, "step", counted)


def test_ctrl_c_saves_and_a_resumed_run_equals_an_uninterrupted_one(
    base: Path, answers: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FineTuning.load(tuned)
    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        stop_after(whole.step // 2 - 1, patch, lambda: signal.raise_signal(signal.SIGINT))
        run(base, answers, out)
    assert FineTuning.load(out).step == whole.step // 2 - 1
    resumed = run(base, answers, out, "--resume")
    assert resumed.step == whole.step
    assert all(torch.equal(resumed.model[name], weight) for name, weight in whole.model.items()), "to the bit"
    best, best_of_whole = FineTuning.load_best(out), FineTuning.load_best(tuned)
    assert best.step == best_of_whole.step
    assert all(torch.equal(best.model[name], weight) for name, weight in best_of_whole.model.items())


def test_what_was_learned_is_kept_when_the_loss_becomes_no_number(
    base: Path, answers: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = loop.gradients
    out = tmp_path / "mine"
    steps = 0
    last = FineTuning.load(tuned).step - 2  # behind several measurements, of which each was the best

    def spoiled(*batch: Any) -> float:
        nonlocal steps
        steps += 1
        return gradients(*batch) if steps <= last else math.nan

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", spoiled)
        patch.setattr(tuning, "tokens_a_second", lambda *_: 1000.0)
        with pytest.raises(FloatingPointError) as error:
            run(base, answers, out)
    best = FineTuning.load_best(out)
    assert f"--resume with a lower --learning-rate goes on from step {best.step}" in str(error.value)
    assert export_to(out, tmp_path / "mine.gguf") == 0
    resumed = run(base, answers, out, "--resume", "--learning-rate", "0.0001")
    assert resumed.options["learning_rate"] == 0.0001
    assert best.measured == resumed.measured[: len(best.measured)], "the best one is known to what goes on"
    assert FineTuning.load_best(out).measured[-1][1] == best_of(resumed)


def test_a_run_that_gets_only_worse_says_so_and_ends(
    base: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nats = 100.0

    def worse(model: Llama, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        nonlocal nats
        if reduction == "sum":
            nats *= 1.03
            return torch.tensor(nats)
        return answer_loss(model, inputs, targets, reduction)

    monkeypatch.setattr(tuning, "answer_loss", worse)
    done = run(base, answers, tmp_path / "mine", "--rounds", "30")
    out = capsys.readouterr().out
    assert "nothing that helps with them: begin again with a lower --learning-rate" in out
    assert "It was ended: held-out examples only become worse." in out
    assert done.before
    assert done.before < best_of(done) < done.measured[-1][1]
    assert done.tokens < 30 * done.round_tokens
    assert FineTuning.load_best(tmp_path / "mine").bits_per_byte == best_of(done), "the best that it has learned"


def test_a_run_that_is_done_says_so_and_one_without_a_measurement_can_be_exported(
    base: Path,
    answers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "mine"
    with monkeypatch.context() as patch:
        stop_after(1, patch, lambda: signal.raise_signal(signal.SIGINT))
        run(base, answers, out)
    told = capsys.readouterr().out
    assert "To go on: the same command with --resume." in told
    assert "Best, and kept" not in told
    assert export_to(out, tmp_path / "a.gguf", "--adapter") == 0
    done = run(base, answers, out, "--resume")
    for picture in out.glob("curve.*"):
        picture.unlink()
    capsys.readouterr()
    assert run(base, answers, out, "--resume").step == done.step
    assert "Done already: 3 rounds; ask for more (--rounds) to go on." in capsys.readouterr().out
    assert {path.name for path in out.glob("curve.*")} == {"curve.csv", "curve.png"}
    assert run(base, answers, out, "--resume", "--rounds", "4").step > done.step


def test_measuring_keeps_no_graph(base: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learning: dict[str, set[bool]] = {"mean": set(), "sum": set()}
    loss = answer_loss

    def watched(model: Llama, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        learning[reduction].add(torch.is_grad_enabled())
        return loss(model, inputs, targets, reduction)

    monkeypatch.setattr(tuning, "answer_loss", watched)
    run(base, answers, tmp_path / "mine", "--rounds", "1")
    assert learning == {"mean": {True}, "sum": {False}}


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr("sys.argv", ["finetune", *map(str, arguments)])
    assert tuning.main() == 1
    return capsys.readouterr().err


def test_what_does_not_fit_is_refused_in_words(
    base: Path,
    answers: Path,
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: object) -> str:
        return refusal(capsys, monkeypatch, *arguments)

    new, resume = ("--out", tmp_path / "new"), ("--out", tuned, "--resume", "--batch-tokens", 128)
    assert "no such file or folder" in refused(tmp_path / "none.gguf", answers, *new)
    assert "no such file" in refused(base, tmp_path / "none.jsonl", *new)
    assert "has a checkpoint" in refused(base, answers, "--out", tuned)
    assert "--rank: the run in" in refused(base, answers, *resume, "--rank", 8)
    (tmp_path / "other.jsonl").write_text(answers.read_text().replace("w3", "w4"))
    assert "these are not the examples" in refused(base, tmp_path / "other.jsonl", *resume)
    other = write_random_model(tmp_path / "other.gguf", TINY, seed=1, template=TEMPLATE)
    assert "is not the model that was fine-tuned" in refused(other, answers, *resume)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    assert f"{tmp_path / 'hf'}: model_type: " in refused(tmp_path / "hf", answers, *new)
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert "too few" in refused(base, tmp_path / "one.jsonl", *new)
    qwen = families.write(families.make("qwen3"), tmp_path / "qwen.gguf")
    assert "no plain Llama" in refused(qwen, answers, *new)
    assert not (tmp_path / "new").exists()


def test_examples_that_are_too_long_are_left_out_and_counted(
    base: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(answers.read_text() + json.dumps({"prompt": "w1 " * 90, "response": "w2"}) + "\n")
    run(base, path, tmp_path / "mine", "--rounds", "1")
    assert "1 examples of more than 96 tokens are left out; the model's context is 96." in capsys.readouterr().err


# --- Export ---


def export_to(run: Path, output: Path, *more: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export", str(run), "-o", str(output), *more])
        return export()


def test_the_merged_model_is_base_and_adapter_with_the_bases_words(base: Path, tuned: Path, tmp_path: Path) -> None:
    assert export_to(tuned, tmp_path / "merged.gguf", "--format", "F32") == 0
    model, file = load_gguf(tmp_path / "merged.gguf")
    assert file.chat_template == TEMPLATE
    assert file.name == "mine"
    learned = FineTuning.load_best(tuned).model
    plain, _ = load_gguf(base)
    for name, weight in plain.state_dict().items():
        if f"{name}.lora_a" in learned:
            weight = weight + 8.0 / 4 * learned[f"{name}.lora_b"] @ learned[f"{name}.lora_a"]
        assert torch.equal(model.state_dict()[name], weight)


def test_an_adapter_is_written_as_llama_cpp_has_it(tuned: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    assert export_to(tuned, tmp_path / "a.gguf", "--adapter", "--format", "F32", "--name", "Mine") == 0
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert keys == {
        gguf.Keys.General.ARCHITECTURE: "llama",
        gguf.Keys.General.TYPE: gguf.GGUFType.ADAPTER,
        gguf.Keys.Adapter.TYPE: "lora",
        gguf.Keys.Adapter.LORA_ALPHA: 8.0,
        gguf.Keys.General.NAME: "Mine",
    }
    learned = FineTuning.load_best(tuned).model
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors.keys() == learned.keys()
    for name, weight in learned.items():
        assert np.array_equal(tensors[name].data, weight.numpy())
    assert tensors["blk.0.attn_k.weight.lora_a"].shape.tolist() == [32, 4], "columns first, as GGUF counts"
    assert export_to(tuned, tmp_path / "half.gguf", "--adapter") == 0
    with FileSource(tmp_path / "half.gguf") as source:
        adapter = read_adapter(source)
    assert {pair.a.type for pair in adapter.pairs.values()} == {"BF16"}
    adapter.check_fits(TINY)
    with pytest.raises(ModelFileError, match="is for another model"):
        adapter.check_fits(replace(TINY, hidden_dim=96))


def test_the_base_is_not_overwritten(base: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = base.read_bytes()
    for more in ([], ["--adapter"], ["--base", str(base)]):
        assert export_to(tuned, base, *more) == 1
        assert "is the model that was fine-tuned; write to another file" in capsys.readouterr().err
    assert base.read_bytes() == before


def test_a_damaged_checkpoint_is_called_so(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "tuned"
    shutil.copytree(tuned, copy)
    for file in (copy / "checkpoint.pt", copy / "best.pt"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    (copy / "checkpoint.old.pt").unlink(missing_ok=True)
    for more in ([], ["--adapter"]):
        assert export_to(copy, tmp_path / "out.gguf", *more) == 1
        assert "damaged; its checksum does not fit" in capsys.readouterr().err
    with pytest.raises(Damaged, match="there is none before it to go on from"):
        FineTuning.load_to_go_on(copy)
    with pytest.raises(ValueError, match="is of a fine-tuning, not of a training"):
        Checkpoint.load(tuned)


def test_exports_that_cannot_be_are_refused_in_words(
    base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(run: Path, *more: str) -> str:
        assert export_to(run, tmp_path / "out.gguf", *more) == 1
        assert not (tmp_path / "out.gguf").exists()
        return capsys.readouterr().err

    assert "--adapter: is for the folder of a fine-tuning" in refused(base, "--adapter")
    assert "an adapter is stored as one of" in refused(tuned, "--adapter", "--format", "Q8_0")
    assert "say with --base where it is" in refused(tuned, "--base", str(tmp_path / "gone.gguf"))
    other = write_random_model(tmp_path / "other.gguf", TINY, seed=1)
    assert "is not the model that was fine-tuned" in refused(tuned, "--base", str(other))


def test_another_versions_checkpoint_is_called_so(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    content = io.BytesIO()
    torch.save({"kind": "fine-tuning", "best": {}, "weights": {}}, content)
    folder.write_checkpoint(content.getvalue())
    for more in ([], ["--adapter"]):
        assert export_to(tmp_path, tmp_path / "out.gguf", *more) == 1
        assert "was written by another version of this program" in capsys.readouterr().err


def test_an_adapter_is_no_model(tuned: Path, tmp_path: Path) -> None:
    export_to(tuned, tmp_path / "a.gguf", "--adapter")
    with pytest.raises(ModelFileError, match="this is an adapter"):
        read_gguf(BytesSource((tmp_path / "a.gguf").read_bytes()))


# --- The worked examples ---


def test_the_examples_people_are_those_of_the_data_and_others_are_measured(tmp_path: Path) -> None:
    json_answers.make(tmp_path / "people.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    assert len(lines) == json_answers.EXAMPLES
    for line in lines:
        person = json.loads(line["response"])
        assert tuple(person) == json_answers.KEYS
        assert all(str(person[key]).lower() in line["prompt"].lower() for key in ("name", "city", "likes"))
        assert str(person["age"]) in line["prompt"] or str(person["age"] + 1) in line["prompt"]
    for key, words in json_answers.TO_LEARN.items():
        assert not set(words) & set(json_answers.TO_MEASURE[key])
    json_answers.make(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "people.jsonl").read_bytes()


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """Some short stories, each with words that others have as well."""
    told = [f"The {who} saw a {what}. It was {how}, said the {who}." for who, what, how in product(*STORY_WORDS)]
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(told))
    return path


STORY_WORDS = (("fox", "hen", "mouse"), ("river", "ladder", "kite"), ("quiet", "golden", "lonely"))


def test_a_story_stands_behind_three_of_its_words(
    stories: Path,
    shipped_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"STORIES": 20, "COMMON": 4, "RARE": 2, "PROMPTS": 3}.items():
        monkeypatch.setattr(three_words, name, value)
    three_words.make(tmp_path / "words.jsonl", stories)
    lines = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    for line in lines:
        words = line["prompt"].removeprefix("Words: ").removesuffix(". Story:").split(", ")
        assert len(words) == 3
        said = three_words.words_in(line["response"])
        assert words == [word for word in said if word in words], "in its order"
    three_words.measure(shipped_model, None)
    assert "of the given words are in the stories" in capsys.readouterr().out


def test_a_beginning_is_whole_sentences() -> None:
    assert three_words.beginning_of('He ran. "Stop!" she said. Then ' + "on and " * 90) == 'He ran. "Stop!" she said.'
    assert three_words.beginning_of('She asked "Why?" He did not know.') == 'She asked "Why?" He did not know.'
    assert three_words.beginning_of("on and " * 90) == ""


def test_a_storyteller_is_measured_on_stories_it_has_not_learned_from(
    stories: Path,
    shipped_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(storyteller, "MEASURED", 2)
    storyteller.make(tmp_path / "learned.txt", stories)
    everything = read_documents(stories)
    assert read_documents(tmp_path / "learned.txt") == everything[:-2]
    with fabella.load(shipped_model) as model:
        bits = sum(model.perplexity(story) * len(story) for story in everything[-2:])
    storyteller.measure(shipped_model, None, stories)
    mean = bits / sum(map(len, everything[-2:]))
    assert f"{mean:.3f} bits per byte on 2 stories" in capsys.readouterr().out
