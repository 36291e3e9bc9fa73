"""Reads what a model is to be fine-tuned on: plain text, or questions with their answers.

    .txt, .txt.xz   documents, as data.py reads them: all of it is learned
    .jsonl          a JSON object a line, of which the answers alone are learned:
                        {"prompt": "...", "response": "..."}
                        {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

A model with a chat template has a conversation written down by it, exactly as the page and the terminal will. To one
without, as a story model, a response is how the text goes on after the prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fabella.chat import Scribe, Turn, read_messages
from fabella.errors import FabellaError, TemplateError, short_text
from fabella.template import ChatTemplate
from fabella.tokenizer import Tokenizer

from . import explain
from .data import PADDING, endless, padded
from .progress import Progress
from .sources import read_documents

LONGEST_LINE = 1 << 20  # characters
MOST_BEHIND = 64  # tokens that a template may write behind the last answer

Messages = list[dict[str, str]]  # {"role", "content"}


@dataclass(frozen=True)
class Example:
    """Tokens that are read together, and which of them are to be learned: ``learned[i]`` is of ``ids[i]``."""

    ids: list[int]
    learned: list[bool]
    n_bytes: int  # that the learned tokens spell

    @property
    def n_learned(self) -> int:
        return sum(self.learned)


class TooLong(ValueError):
    """A conversation has more tokens than a model is to read at once."""


class Writer:
    """Writes examples down as the model will meet them: by its tokenizer and, if it has one, its chat template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
        self.tokenizer = tokenizer
        self.scribe = Scribe(tokenizer, template) if template else None

    def text(self, document: str, longest: int) -> Iterator[Example]:
        """A document, in as many rows as its tokens need; every token is learned but the first."""
        ids = [*self.tokenizer.encode(document), self.tokenizer.eos_id]
        for start in range(0, len(ids) - 1, longest - 1):
            row = ids[start : start + longest]
            if n_bytes := self._count_bytes(row[1:]):  # else the end of the text alone is left
                yield Example(row, [False] + [True] * (len(row) - 1), n_bytes)

    def conversation(self, messages: Messages, longest: float = math.inf) -> Example:
        """A conversation, of which the answers are learned, each with the token that ends it.

        Raises ``TooLong`` if it has more than ``longest`` tokens; ``ValueError`` or ``FabellaError``, in words, if it
        cannot be written down.
        """
        system, turns = read_messages(messages)
        if not turns or turns[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's: it is what is learned")
        if not all(turn.text for turn in turns):
            raise ValueError("what somebody says is empty")
        ids, begins = self._continued(system, turns) if self.scribe is None else self._written(system, turns, longest)
        learned = [False] * len(ids)
        n_bytes = 0
        for begin in begins:
            stops = (place for place in range(begin, len(ids)) if ids[place] in self.tokenizer.stop_ids)
            end = next(stops, len(ids) - 1) + 1
            learned[begin:end] = [True] * (end - begin)
            n_bytes += self._count_bytes(ids[begin:end])
        if end > longest:
            raise TooLong
        if not n_bytes:
            raise ValueError("the answers hold no text")
        return Example(ids[:end], learned[:end], n_bytes)

    def _continued(self, system: str | None, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """The tokens of a prompt and of how it goes on, where that begins: for a model that knows no conversations."""
        if system is not None or len(turns) != 2:
            raise TemplateError(
                "this model has no chat template: it can learn prompts with responses, no conversations"
            )
        prompt = self.tokenizer.encode(turns[0].text)
        ids = self.tokenizer.encode(turns[0].text + turns[1].text)
        return [*ids, self.tokenizer.eos_id], [self._begin(ids, prompt)]

    def _written(self, system: str | None, turns: Sequence[Turn], longest: float) -> tuple[list[int], list[int]]:
        """The tokens of a conversation, and where its answers begin. Raises ``TooLong``."""
        assert self.scribe
        ids = self.scribe.encoded(self.scribe.written(turns, system, prompted=False))
        if len(ids) > longest + MOST_BEHIND:  # before all that is before each of its answers is encoded, too
            raise TooLong
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        begins = [
            self._begin(ids, self.scribe.encoded(self.scribe.written(turns[:number], system))) for number in answers
        ]
        if self.tokenizer.stop_ids.isdisjoint(ids[begins[-1] :]):
            ids.append(self.tokenizer.eos_id)  # this template does not end the last answer
        return ids, begins

    @staticmethod
    def _begin(ids: list[int], prompt: list[int]) -> int:
        """Where an answer begins: behind its prompt, which must be there as the model will read it."""
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            raise ValueError(
                "an answer flows into what is before it; it must not begin with a space or a line's end, or the "
                "prompt not end with one"
            )
        return len(prompt)

    def _count_bytes(self, ids: list[int]) -> int:
        return len(self.tokenizer.decode([self.tokenizer.bos_id, *ids]).encode())


def read_examples(path: Path, writer: Writer, longest: int) -> tuple[list[Example], int]:
    """The examples of a file, and how many were left out because they have more than ``longest`` tokens.

    Raises ``OSError`` or ``ValueError``, in words.
    """
    if path.suffix != ".jsonl":
        documents = read_documents(path)
        with Progress("encoding", sum(map(len, documents)), " characters") as progress:
            rows: list[Example] = []
            for document in documents:
                rows += writer.text(document, longest)
                progress.update(len(document))
        return rows, 0
    examples, too_long = [], 0
    conversations = read_conversations(path)
    with Progress("encoding", len(conversations), " examples") as progress:
        for line, messages in conversations:
            try:
                examples.append(writer.conversation(messages, longest))
            except TooLong:
                too_long += 1
            except (ValueError, FabellaError) as error:
                raise ValueError(f"{path}: line {line}: {error}") from error
            progress.update(1)
    return examples, too_long


def read_conversations(path: Path) -> list[tuple[int, Messages]]:
    """The conversations of a .jsonl file, each with the number of its line. Raises ``OSError`` or ``ValueError``."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a .txt or .jsonl file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    conversations = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    conversations.append((number, _messages(line)))
                except ValueError as error:
                    raise ValueError(f"{path}: line {number}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    if not conversations:
        raise ValueError(f"{path}: holds no examples")
    return conversations


def _messages(line: str) -> Messages:
    """The messages of a line; a prompt and a response are two."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"is longer than {LONGEST_LINE:,} characters")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {short_text(str(error))}") from error
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        messages: Messages = value["messages"]
        return messages
    if isinstance(value, dict) and isinstance(value.get("prompt"), str) and isinstance(value.get("response"), str):
        return [{"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": value["response"]}]
    raise ValueError('must be {"prompt": text, "response": text} or {"messages": [...]}')


def split_examples(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Those to learn from, and those held out: a share of them, at least one, drawn by the seed."""
    order = np.random.default_rng((seed, 0)).permutation(len(examples))
    count = max(1, round(len(examples) * share))
    held_out = set(order[:count].tolist())
    return (
        [example for number, example in enumerate(examples) if number not in held_out],
        [example for number, example in enumerate(examples) if number in held_out],
    )


def plan_round(examples: Sequence[Example], batch_tokens: int, seed: int, number: int) -> list[list[Example]]:
    """The batches of one round through the examples: those of similar length together, in an order of the round's own.

    A batch takes at most ``batch_tokens`` with its padding, or is a single example.
    """
    random = np.random.default_rng((seed, 1 + number))
    order = sorted(random.permutation(len(examples)).tolist(), key=lambda place: -len(examples[place].ids))
    batches: list[list[Example]] = []
    for place in order:
        batch = batches[-1] if batches else []
        # The first is the longest: its width is that of the batch.
        if batch and (len(batch) + 1) * padded(len(batch[0].ids)) <= batch_tokens:
            batch.append(examples[place])
        else:
            batches.append([examples[place]])
    return [batches[place] for place in random.permutation(len(batches)).tolist()]


def batches(
    examples: Sequence[Example], batch_tokens: int, seed: int, step: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, round after round, beginning with that of ``step``."""
    return map(make_batch, endless(lambda number: plan_round(examples, batch_tokens, seed, number), step))


def make_batch(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [rows, longest]; what is not to be learned, and padding, has target ``PADDING``."""
    width = padded(max(len(example.ids) for example in batch) - 1)
    inputs = torch.zeros((len(batch), width), dtype=torch.int64)
    targets = torch.full((len(batch), width), PADDING)
    for row, example in enumerate(batch):
        ids = torch.tensor(example.ids)
        learned = torch.tensor(example.learned[1:])
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(learned, ids[1:], PADDING)
    return inputs, targets


if __name__ == "__main__":
    explain(__doc__)
