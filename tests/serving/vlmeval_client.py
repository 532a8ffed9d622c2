"""Asks a server by VLMEvalKit's own client; run by the interpreter of an environment that has one of its wheels.

Usage: python vlmeval_client.py < {"url", "key", "model", "threads", "rows": [{"image", "text"}]} > answers.json

Gives the messages that the client made of each row, and the answers. The package itself is never imported: it would
switch off TLS verification. Its modules are, below empty packages.
"""

import contextlib
import importlib
import importlib.util
import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def main() -> None:
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        client = client_class()(
            model=asked["model"],
            api_base=f"{asked['url']}/chat/completions",
            key=asked["key"],
            img_size=-1,
            retry=1_000,
            wait=1,
            max_tokens=32_768,
        )
        messages = [client.prepare_inputs(message(row)) for row in asked["rows"]]
        working = client.working()
        with ThreadPoolExecutor(asked["threads"]) as pool:
            answers = list(pool.map(client.generate, map(message, asked["rows"])))
    json.dump({"working": working, "messages": messages, "answers": answers}, sys.stdout)


def message(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"type": "image", "value": row["image"]}, {"type": "text", "value": row["text"]}]


def client_class() -> Any:
    spec = importlib.util.find_spec("vlmeval")
    assert spec and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("", ".api"):
        module = types.ModuleType(f"vlmeval{name}")
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[module.__name__] = module
    return importlib.import_module("vlmeval.api.gpt").GPT4V


if __name__ == "__main__":
    main()
