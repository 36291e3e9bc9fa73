"""A visitor's code that tries every way out of the page's worker, and says what it found."""

from __future__ import annotations

import json

# Each is an expression that reaches something, or fails.
WAYS_OUT = {
    "another host": "js.fetch('https://example.com/')",
    "the page's own host": "js.fetch('index.html')",
    "the prototype's way to a host": "scope.fetch('index.html')",
    "pyodide's way to a host": "__import__('pyodide.http', fromlist=['x']).pyfetch('index.html').send(None)",
    "a request": "js.XMLHttpRequest.new()",
    "a socket": "js.WebSocket.new('wss://example.com')",
    "a stream": "js.WebTransport.new('https://127.0.0.1:1/')",
    "events": "js.EventSource.new('index.html')",
    "a beacon": "js.navigator.sendBeacon('index.html', 'x')",
    "a font": "js.FontFace.new('x', 'url(index.html)').load()",
    "Python's socket": "__import__('urllib.request', fromlist=['x']).urlopen('http://127.0.0.1')",
    "conversations": "js.indexedDB.open('fabella')",
    "the prototype's conversations": "scope.indexedDB.open('fabella')",
    "the way to conversations": "js.Object.getOwnPropertyDescriptor(scope, 'indexedDB').get",
    "models": "js.navigator.storage.getDirectory()",
    "the prototype's models": "js.WorkerNavigator.prototype.storage.getDirectory()",
    "locks of models": "js.navigator.locks.request('x', print)",
    "caches": "js.caches.open('x')",
    "cookies": "js.cookieStore.get('x')",
    "another worker": "js.Worker.new('blob:x')",
    "a worker of all tabs": "js.SharedWorker.new('blob:x')",
    "an address for a worker": "js.URL.createObjectURL(js.Blob.new())",
    "a script": "js.importScripts('index.html')",
    "other pages": "js.BroadcastChannel.new('x')",
    "JavaScript": "js.eval('1')",
    "a function": "js.Function.new('return 1')",
    "a function, made otherwise": "js.Reflect.construct(js.Function, js.Array.of('return 1'))",
    "another realm": "js.ShadowRealm.new().evaluate('1')",
    "pyodide's JavaScript": "__import__('pyodide.code', fromlist=['x']).run_js('1')",
    "a timer's JavaScript": "js.ran",
    "memory": "__import__('ctypes')",
    "a file": "open('/etc/passwd').read()",
    "files": "os.listdir('/home/pyodide')[0]",
    "the page's memory": "js.localStorage.getItem('x')",
    "the tab's memory": "js.sessionStorage.getItem('x')",
    "the page itself": "js.document.body",
}

# What is tried at once has no answer: it shows in the browser's requests, if it works. The last is what the page tells
# its worker at first, made up: it would load what it likes. The others are tried one at a token: all in one call would
# take longer, on a busy machine, than the watchdog lets code choose.
SOURCE = """
import js, json, os
from pyodide_js import loadPackage
scope = js.Object.getPrototypeOf(js.Object.getPrototypeOf(js.self))
LOAD = {"type": "load", "base": "ORIGIN", "source": {"kind": "url", "url": "secret"}, "python": {}, "assets": {
    "engines": {name: {"url": "secret", "bytes": 1} for name in ("simd", "relaxed", "threads-simd", "threads-relaxed")},
    "model": {"id": "x"}, "offers": [], "helper": {"url": "secret"}, "python": {"info": {}}}}
for attempt in (
    lambda: loadPackage("micropip"),
    lambda: js.setTimeout("self.ran = 1", 0),
    lambda: js.self.onmessage(js.JSON.parse(json.dumps({"data": LOAD}))),
):
    try:
        attempt()
    except BaseException:
        pass
def choose(logits):
    left = logits.memory.setdefault("left", list(WAYS_OUT.items()))
    if left:
        name, way = left.pop(0)
        try:
            found = eval(way)
            print(json.dumps([name, "reached", repr(found)[:60]]))
        except BaseException as error:
            print(json.dumps([name, type(error).__name__, str(error)[:60]]))
        if not left:
            print("over")
    return logits.shortlist(1)[0][0]
"""


def reaching(origin: str) -> str:
    """The code, for a page at this address."""
    return SOURCE.replace("WAYS_OUT", json.dumps(WAYS_OUT)).replace("ORIGIN", origin)


def found_in(printed: str) -> dict[str, list[str]]:
    """By the way out, what the code has printed of it last: ["reached", what] or [the error, its words]."""
    lines = printed.split("over")[-2].splitlines()
    found = {name: what for name, *what in map(json.loads, [line for line in lines if line.startswith('["')])}
    assert found.keys() == WAYS_OUT.keys()
    return found
