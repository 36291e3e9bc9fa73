"""What the page keeps on the visitor's machine: looked at, damaged and removed by tests."""

from __future__ import annotations

import json
from typing import Any

from .browsers import wait_for
from .conftest import Visit

# Once no tab is loading a model: until then its files are in use.
FOLDER = """
while ((await navigator.locks.query()).held.length) await new Promise((resolve) => setTimeout(resolve, 20));
const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("fabella-models", { create: true });
const write = async (name, change) => {
  const handle = await folder.getFileHandle(name, { create: true });
  const stream = await handle.createWritable({ keepExistingData: true });
  await change(stream, (await handle.getFile()).size);
  await stream.close();
};
"""


def in_folder(visit: Visit, script: str, *given: object) -> Any:
    """Runs the body of an async function in the page, with the `folder`, once it is at rest, and what is `given`."""
    return visit.page.evaluate(f"(async (given) => {{ {FOLDER} {script} }})({json.dumps(given)})")


def files(visit: Visit) -> dict[str, int]:
    """The sizes of the files that are kept, by their names."""
    found: dict[str, int] = in_folder(
        visit,
        """const found = {};
        for await (const [name, file] of folder.entries()) found[name] = (await file.getFile()).size;
        return found;""",
    )
    return found


def read_json(visit: Visit, name: str) -> Any:
    """A mark or a note."""
    return in_folder(
        visit, "return JSON.parse(await (await (await folder.getFileHandle(given[0])).getFile()).text());", name
    )


def write(visit: Visit, name: str, text: str, at: int = 0) -> None:
    """Writes over part of a file, or makes one."""
    in_folder(
        visit,
        "await write(given[0], (file) => file.write({ type: 'write', position: given[1], data: given[2] }));",
        name,
        at,
        text,
    )


def truncate(visit: Visit, name: str, size: int) -> None:
    """Leaves so many bytes of a file."""
    in_folder(visit, "await write(given[0], (file) => file.truncate(given[1]));", name, size)


def remove(visit: Visit, name: str) -> None:
    """Removes a file."""
    in_folder(visit, "await folder.removeEntry(given[0]);", name)


def forget(visit: Visit) -> None:
    """Removes all that is kept, as a browser does that needs the room."""
    in_folder(visit, "for await (const name of folder.keys()) await folder.removeEntry(name);")


PART = """async (size) => {
  try {
    const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("fabella-models");
    for await (const [name, file] of folder.entries()) {
      if (name.endsWith(".part")) return (await file.getFile()).size >= size;
    }
  } catch {
    // there is no folder, or the file has just been moved
  }
  return false;
}"""


def wait_for_part(visit: Visit, size: int) -> None:
    """Waits until so many bytes of a download are kept."""
    wait_for(lambda: visit.page.evaluate(PART, size), f"{size} bytes of a part")  # wait_for_function awaits no promise
