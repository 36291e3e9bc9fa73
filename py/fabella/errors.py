"""What can go wrong, as exceptions whose messages a visitor of the page can read."""


def short_text(text: str, longest: int = 100) -> str:
    """One line of at most so many characters, for people to read.

    Whoever wrote the file wrote the text: what cannot be seen is left out, such as what turns the text around it.
    """
    seen = [" " if c.isspace() else c for c in text[: 10 * longest] if c.isspace() or c.isprintable()]
    line = " ".join("".join(seen).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


class FabellaError(Exception):
    """Base of every error this package raises on purpose; `str(error)` is meant for people."""


class FieldError(FabellaError):
    """Something is wrong with one named thing: `field` names it, `problem` says what and what to do."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{short_text(field)}: {problem}")
        self.field = field
        self.problem = problem


class ModelFileError(FieldError):
    """A model or tokenizer file is refused; `field` is the header field, metadata key or tensor at fault."""


class SettingsError(FieldError):
    """A sampling setting is outside what its definition allows; `field` is the setting's name."""


class PromptError(FabellaError):
    """The prompt cannot be used, for example because it is longer than the model's context."""


class EngineError(FabellaError):
    """The engine (run.wasm) reported a failure, or computed something that cannot be sampled from."""


class ConstraintError(FabellaError):
    """A constraint on the text cannot be made, or leaves no token to go on with."""


class TemplateError(FabellaError):
    """A model's chat template is missing, wrong or does too much."""


class ConversationError(FabellaError):
    """Something cannot be done with a conversation as it is, or a list of messages is none."""


class CodeError(FabellaError):
    """Code that picks the tokens (live.py) cannot be used or went wrong.

    Attributes
    ----------
    line : int or None
        Where.
    printed : str
        What it had printed, if it never came to be used.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.printed = ""
