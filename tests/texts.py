"""Texts that tokenizers stumble over: many scripts, code, spaces, joined emoji, characters of every kind."""

from __future__ import annotations

import sys

from hypothesis import strategies as st

CORPUS = [
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park!",
    "It's 3.14159, isn't it? You'll see; they've gone, I'd say we're late. DON'T! I'M HERE'S",
    "Es war einmal ein König, der große Bäume über die Straße wachsen ließ. Où est la façade, naïve?",
    "Жил-был царь у самого синего моря. Он сказал: «Здравствуй!» Їжак, ґанок, Ћирилица.",
    "むかしむかし、あるところに、おじいさんとおばあさんがいました。日本語の物語、東京タワー２０２６年。",
    "从前有一个小女孩，她喜欢在公园里玩。一二三四五。繁體中文也有，龍龜。",
    "كان يا ما كان في قديم الزمان، ملك له ثلاث بنات. ١٢٣٤٥ اللُّغَة العَرَبِيَّة",
    "היה היה פעם ילד קטן. שָׁלוֹם עוֹלָם",
    "एक समय की बात है, एक छोटी लड़की थी। १२३ नमस्ते दुनिया",
    "옛날 옛적에 호랑이가 담배 피우던 시절에. 안녕하세요 세계",
    "กาลครั้งหนึ่งนานมาแล้ว มีเด็กหญิงคนหนึ่ง ๑๒๓",
    "Μια φορά κι έναν καιρό ήταν ένα μικρό κορίτσι. ΑΒΓ αβγ ς",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 1️⃣ ☃ ℵ ∮ ꙮ 𓀀 🐉🐲",
    "é vs e\u0301, Å vs A\u030a, ﬁ ligature, ǅ, ß/ẞ, Z̷a̸l̵g̶o̷, \u200bzero\u200dwidth\ufeff",
    "def f(x):\n    if x > 0:\n\t\treturn {'a': [1, 22, 333, 4444]}  # ok\n\n\nprint(f(10_000)) != 0x1F && ++i;",
    "tabs\tand\t\ttabs   three   spaces \n\n new lines \r\n\r\n  ends  ",
    "½ ² ³ ¼ Ⅷ ⅷ ① ㈠ ௰ 〇 𐄇 1234567890 12 345 6789 1,000,000.00 -5 +7 50%",
    "a_b __init__ snake_case CamelCase kebab-case http://example.org/?q=1&r=2#s user@example.org",
    "``` <|im_start|>user\nHi<|im_end|> [INST] <s> </s> <start_of_turn> <0x0A> ▁ Ġ Ċ ```",
]

SCRIPTS = "".join(sorted(set("".join(CORPUS))))
SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
APOSTROPHES = ["'s", "'S", "'ſ", "'t", "'re", "'VE", "'m", "'ll", "'LL", "'d", "’s", "''"]


def hostile_text() -> st.SearchStrategy[str]:
    """Any text of characters that this Python knows, with what tokenizers treat in a way of its own among them."""
    characters = st.characters(max_codepoint=sys.maxunicode, exclude_categories=("Cn", "Cs"))
    part = st.one_of(
        st.text(st.sampled_from(SCRIPTS), max_size=8),
        st.text(st.sampled_from(SPACES), max_size=4),
        st.text(st.sampled_from("0123456789²½Ⅷ١一"), max_size=6),
        st.sampled_from(APOSTROPHES),
        st.text(characters, max_size=4),
    )
    return st.lists(part, max_size=12).map("".join)
