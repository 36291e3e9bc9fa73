"""Code that does not end, or takes more than there is: the body of a function ``choose(logits)``, each.

Nothing here is beyond the watchdog; what is, is tried in the page (test_page_code.py), whose worker it costs.
"""

ENDLESS = {
    "loop": "while True: pass",
    "loop that counts": "n = 0\n    while n >= 0: n += 1",
    "for": "import itertools\n    for _ in itertools.count(): pass",
    "loop that catches": "while True:\n        try: pass\n        except BaseException: pass",
    "loops that catch": "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "bare except in a function": (
        "def f():\n        try:\n            while True: pass\n        except BaseException: return 1\n"
        "    while True: f()"
    ),
    "finally": "try:\n        while True: pass\n    finally:\n        while True: pass",
    "comprehension": "import itertools\n    [0 for _ in itertools.count() if 0]",
    "generator": "def g():\n        while True: yield\n    for _ in g(): pass",
    "all of a generator": "def g():\n        while True: yield 0\n    any(g())",
    "recursion": "import sys\n    def f(n): return f(n - 1) + f(n - 1) if n else 0\n    f(200)",
    "lambda": "import functools, itertools\n    functools.reduce(lambda a, b: a, itertools.count())",
    "exec": "exec('while True: pass')",
    "eval": "eval('[0 for _ in iter(int, 1)]')",
    "key": "import itertools\n    max(itertools.count(), key=lambda n: -n)",
    "sleep": "import time\n    while True: time.sleep(0.001)",
    "print": "while True: print('again')",
    "memory": "kept = []\n    while True: kept.append(len(kept))",
    "method": "class A:\n        def __getattr__(self, name): return getattr(self, name + 'x')\n    "
    "class B:\n        def __eq__(self, other):\n            while True: pass\n    B() == 1",
    "async": "async def f():\n        while True: pass\n    f().send(None)",
    "standard library": "import random\n    while random.random() < 2: pass",
    "the driver's own functions": "import itertools\n    from fabella.sampler import keep_min_p\n    "
    "keep_min_p(((0, 0.0, 1.0) for _ in itertools.count()), 0.5)",
    "clock": "import time\n    time.perf_counter = lambda: 0\n    while True: pass",
    "words of an error": "class E(Exception):\n        def __str__(self):\n            while True: pass\n    raise E",
    "result": "class N:\n        def __repr__(self):\n            while True: pass\n    return N()",
}
ENORMOUS = {
    "list": ("[0] * 10**11", "(Memory|Overflow)Error"),
    "text": ("'x' * 10**12", "(Memory|Overflow)Error"),
    "power": ("10 ** 10 ** 10 if False else int('9' * 10**5)", "ValueError"),
    "recursion": ("def f(): return f()\n    f()", "RecursionError"),
    "threads": ("import threading\n    threading.Thread(target=print).start()", "RuntimeError"),
}
