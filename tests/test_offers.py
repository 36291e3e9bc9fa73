"""The page's own words, and the models that it offers: what the build makes of them."""

from __future__ import annotations

import hashlib
import html
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import builder.offers
import builder.page
import builder.serve
from builder.offers import describe, find_offer
from builder.serve import content_security_policy
from builder.tools import WEB, BuildError
from fabella.gguf import read_gguf
from fabella.modelfile import Config
from fabella.sources import BytesSource, FileSource
from fabella.summary import summary

from .llama2c_files import model_bin
from .random_models import write_random_model
from .test_build import assets, run_build
from .test_chat import TEMPLATE

SMALL = Config(dim=32, hidden_dim=32, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=300, seq_len=64)
URL = "https://models.example/a%20b/model.gguf?download=1"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return (
        write_random_model(folder / "stories.gguf", SMALL),
        write_random_model(folder / "chats.gguf", SMALL, seed=1, template=TEMPLATE),
    )


# ---- Words -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with words of its own, that offers another model."""
    out = tmp_path_factory.mktemp("page") / "dist"
    words = ["--title", "Foxes & <hens>", "--about", 'Tales of "foxes".', "--language", "fr-CA"]
    beginnings = ["--beginning", "Il était </textarea><script>", "--beginning", "Un renard"]
    run_build("--model", models[0], "--offer", models[1], "--out", out, *words, *beginnings)
    return out


def test_a_page_says_what_its_builder_says(page: Path) -> None:
    text = (page / "index.html").read_text(encoding="utf-8")
    title, about = html.escape("Foxes & <hens>"), html.escape('Tales of "foxes".')
    assert '<html lang="fr-CA">' in text
    assert f"<title>{title}</title>" in text
    assert f'<h1 id="title">{title}</h1>' in text
    assert f'<span id="about">{about}</span>' in text
    for name in ('name="description"', 'property="og:description"'):
        assert f'<meta {name} content="{about}"' in text
    assert f'<meta property="og:title" content="{title}"' in text
    assert "\nIl était &lt;/textarea&gt;&lt;script&gt;</textarea>" in text
    (picture,) = re.findall(r'property="og:image" content="(assets/share-\w+\.png)"', text)
    assert (page / picture).read_bytes() == (WEB / "share.png").read_bytes()


def test_its_words_are_in_its_model_s_file(page: Path, models: tuple[Path, Path]) -> None:
    (copy,) = (page / "assets").glob("stories-*.gguf")
    card = read_gguf(BytesSource(copy.read_bytes())).card
    assert (card.title, card.language) == ("Foxes & <hens>", "fr-CA")
    assert card.beginnings[1] == "Un renard"
    assert assets(page)["model"]["url"] == f"assets/{copy.name}"
    (other,) = (page / "assets").glob("chats-*.gguf")
    assert other.read_bytes() == models[1].read_bytes()


def test_a_page_whose_model_says_nothing_is_as_it_is_written(models: tuple[Path, Path]) -> None:
    with FileSource(models[0]) as source:
        words = [text for _, text in builder.page.words_of(summary(read_gguf(source), source.size))]
        assert words == ["random 0", "0.1 MB"], "its name and size"


def test_words_that_cannot_be_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    printed = run_build("--language", "no such language", "--out", tmp_path / "dist", status=1)
    problem = "must be a language's tag, such as en or pt-BR, not 'no such language'"
    assert printed == f"build.py: fabella.language: {problem}\n"


# ---- Offers ----------------------------------------------------------------------------------------------------------


def test_the_manifest_names_all_models(page: Path, models: tuple[Path, Path]) -> None:
    first, (second,) = assets(page)["model"], assets(page)["offers"]
    assert (first["title"], second["title"]) == ("Foxes & <hens>", None)
    assert (first["chats"], second["chats"]) == (False, True)
    assert (first["file"], second["file"]) == ("stories.gguf", "chats.gguf")
    for model in (first, second):
        data = (page / model["url"]).read_bytes()
        assert model["bytes"] == len(data)
        assert model["id"] == hashlib.sha256(data).hexdigest()
        assert model["sha256"] == [hashlib.sha256(data).hexdigest()]
    with FileSource(models[1]) as source:
        said = json.loads(json.dumps(summary(read_gguf(source), source.size)))
    assert second.items() >= said.items()
    policy = builder.serve.content_security_policy((page / "index.html").read_text())
    assert "connect-src 'self';" in policy


def test_a_large_model_is_known_by_the_hash_of_each_mebibyte(tmp_path: Path) -> None:
    config = Config(dim=256, hidden_dim=512, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, seq_len=64)
    data = write_random_model(tmp_path / "model.gguf", config).read_bytes()
    blocks = [data[at : at + 2**20] for at in range(0, len(data), 2**20)]
    assert len(blocks) > 2
    said = describe(tmp_path / "model.gguf", "x")
    assert said["sha256"] == [hashlib.sha256(block).hexdigest() for block in blocks]
    assert said["id"] == hashlib.sha256(data).hexdigest()


def test_what_cannot_run_is_not_offered(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("Once upon a time")
    (tmp_path / "model.bin").write_bytes(model_bin())
    for offer, words in (
        (tmp_path / "text.gguf", "this is not a GGUF model but a text"),
        (tmp_path / "model.bin", "only GGUF files are offered"),
        (tmp_path / "nowhere.gguf", "No such file"),
        (models[0], "the page has this model already"),
        ("http://models.example/model.gguf", "or an https:// URL"),
        ("file:///etc/passwd", "or an https:// URL"),
    ):
        printed = run_build("--model", models[0], "--offer", offer, "--out", tmp_path / "dist", status=1)
        assert words in printed
        assert not (tmp_path / "dist").exists()


class Response(BytesIO):
    """What a host answers."""

    def __init__(self, data: bytes, url: str, **headers: str) -> None:
        super().__init__(data)
        self.url = url
        self.headers = Message()
        for name, value in {"Content_Length": str(len(data)), "Access_Control_Allow_Origin": "*", **headers}.items():
            self.headers[name.replace("_", "-")] = value


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Sets what the network answers; returns the list of what it is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def answer(data: bytes, url: str = URL, **headers: str) -> list[str]:
        asked: list[str] = []

        @contextmanager
        def urlopen(request: urllib.request.Request, timeout: float) -> Iterator[Response]:
            asked.append(request.full_url)
            yield Response(data, url, **headers)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return answer


def test_a_model_at_a_url_is_looked_at_once_and_stays_there(
    host: Callable[..., list[str]], models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = host(models[1].read_bytes(), url="https://cdn.example/xyz")
    for _ in range(2):
        offer = find_offer(URL)
        assert offer.file.read_bytes() == models[1].read_bytes()
        assert (offer.file.name, offer.url) == ("model.gguf", URL)
        assert offer.origins == ("https://models.example", "https://cdn.example")
    assert asked == [URL]
    assert "delete" in capsys.readouterr().out
    out = tmp_path / "dist"
    builder.page.bundle(models[0], None, out, {}, [URL])
    assert [model["url"] for model in assets(out)["offers"]] == [URL]
    assert not list((out / "assets").glob("model-*.gguf"))
    policy = builder.serve.content_security_policy((out / "index.html").read_text())
    assert "connect-src 'self' https://models.example https://cdn.example;" in policy
    assert policy.count("https:") == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"Access_Control_Allow_Origin": "https://other.example"}, "does not let other pages read it"),
        ({"Content_Length": "1000000"}, "bytes came"),
        ({"url": "http://models.example/x"}, "which is not https://"),
    ],
)
def test_what_a_page_could_not_have_is_not_offered(
    host: Callable[..., list[str]], models: tuple[Path, Path], answer: dict[str, Any], words: str
) -> None:
    asked = host(models[1].read_bytes(), **answer)
    for _ in range(2):  # nothing half is kept
        with pytest.raises(BuildError, match=words):
            find_offer(URL)
    assert asked == [URL, URL]


def test_a_host_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BuildError, match="cannot be downloaded"):
        find_offer("https://models.invalid/model.gguf")


# ---- Models by their address -----------------------------------------------------------------------------------------


def test_a_host_is_named_in_the_policy_only_if_the_builder_wants_it(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "dist"
    builder.page.bundle(models[0], None, out, hosts=["https://models.example.org/"])
    policy = content_security_policy((out / "index.html").read_text(encoding="utf-8"))
    assert "connect-src 'self' https://models.example.org;" in policy
    assert assets(out)["hosts"] == ["https://models.example.org"]
    builder.page.bundle(models[0], None, out)
    assert "connect-src 'self';" in content_security_policy((out / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "host",
    [
        "http://x.org",
        "x.org",
        "https://",
        "https://x.org/a",
        "https://x.org; script-src *",
        "https://*",
        "https://u@x.org",
    ],
)
def test_what_is_no_host_is_refused(models: tuple[Path, Path], tmp_path: Path, host: str) -> None:
    with pytest.raises(BuildError, match="must be an origin"):
        builder.page.bundle(models[0], None, tmp_path / "dist", hosts=[host])


# ---- Where the page will be ------------------------------------------------------------------------------------------


def test_the_picture_has_a_whole_address(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "dist"
    builder.page.bundle(models[0], None, out, address="https://example.org/stories/")
    assert re.search(
        r'og:image" content="https://example\.org/stories/assets/share-\w+\.png"', (out / "index.html").read_text()
    )
    with pytest.raises(BuildError, match="must be a whole address"):
        builder.page.bundle(models[0], None, out, address="example.org")
