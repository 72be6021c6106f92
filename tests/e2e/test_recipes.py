"""The examples of docs/client.md, run as they stand there, against a running server.

LlamaIndex wants an older openai than vLLM; its examples run in an environment of its own, which is
made in ``build`` once.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qprobe_client import Client

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "client.md"
LLAMA_INDEX = "llama-index-llms-openai-like==0.8.1"
LLAMA_INDEX_TITLES = ("LlamaIndex", "LlamaIndex, streamed")

SELECTED = r"\[\d+\]"
FLOAT = r"-?\d+\.\d+(e-?\d+)?"
FLOATS = rf"\[{FLOAT}(, {FLOAT})*\]"
# What each example prints; texts may hold anything, and be of several lines.
PRINTED = {
    "Chat": rf".+\n{SELECTED} {FLOATS} \d+\n",
    "Early rejection": r"\[(None|\d+)(, (None|\d+)){15}\] \[\d+(, \d+){15}\]\n",
    "A vote": rf"\[(None|\d+)(, (None|\d+)){{7}}\] \[.*\] ({FLOATS}|\[\])\n",
    "A mix, a KL budget, scores of tokens": rf"{FLOAT} {FLOAT}\n(\[\(.+, {FLOAT}\)\]\n){{8}}",
    "Streaming": rf".+\n{SELECTED} Usage\(prompt_tokens=\d+, completion_tokens=\d+\)\n",
    "Several prompts": rf"(\[.+, .+\] {FLOATS}\n){{2}}",
    "asyncio": r".+\n.+\n",
    "Probes": r"[0-9a-f]{64} \[\{'kind': .+\}\] \{.+\}\n\[.*'python'.*\] 0\n",
    "Errors": r"404 q_probe\.probe \S+\n",
    "openai-python": rf".+ {SELECTED}\n",
    "openai-python, streamed": rf".+\n{SELECTED}\n",
    "LangChain": r".+\n",
    "LangChain, streamed": r".+",
    "LlamaIndex": rf".+ {SELECTED}\n",
    "LlamaIndex, streamed": rf".+\n{SELECTED}\n",
}


def read_examples() -> dict[str, str]:
    """Return the code of each example by the heading that it stands under."""
    parts = re.split(r"^###? (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    examples: dict[str, str] = {}
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        for code in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            assert title not in examples, f"two examples under {title!r}"
            examples[title] = code
    return examples


@pytest.fixture(scope="module")
def concise(server: Any, shipped: Path) -> Iterator[None]:
    """Serve the second shipped probe, and no longer than these tests run."""
    with Client(server.url, api_key=server.admin_key) as admin:
        admin.upload_probe("concise", (shipped / "concise.safetensors").read_bytes())
        yield
        admin.delete_probe("concise")


@pytest.fixture(scope="module")
def llama_index() -> Path:
    """Return a Python that has LlamaIndex."""
    folder = ROOT / "build" / LLAMA_INDEX
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [str(python), *("-m", "pip", "install", "--disable-pip-version-check", "-q")]
        subprocess.run([*install, LLAMA_INDEX], check=True, timeout=600)
        done.touch()
    return python


def run(server: Any, code: str, *, python: str | Path, folder: Path) -> str:
    """Run code as a user would, and return what it prints."""
    names = {"url": server.url, "key": server.key, "admin_key": server.admin_key}
    environment = {
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_BASE": f"{server.url}/v1",
        "OPENAI_API_KEY": server.key,
        # Neither library may report to anybody.
        "LANGSMITH_TRACING": "false",
        "PYTHONUTF8": "1",
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        [python, "-W", "error::ResourceWarning", "-"],
        input="".join(f"{name} = {value!r}\n" for name, value in names.items()) + code,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert list(read_examples()) == list(PRINTED)


@pytest.mark.usefixtures("concise")
@pytest.mark.parametrize("title", [title for title in PRINTED if title not in LLAMA_INDEX_TITLES])
def test_an_example(server: Any, shipped: Path, title: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    file = tmp_path / "runs" / "probe.safetensors"
    file.write_bytes((shipped / "python.safetensors").read_bytes())
    printed = run(server, read_examples()[title], python=sys.executable, folder=tmp_path)
    assert re.fullmatch(PRINTED[title], printed, re.DOTALL), printed


@pytest.mark.parametrize("title", LLAMA_INDEX_TITLES)
def test_an_example_of_llama_index(
    server: Any, llama_index: Path, title: str, tmp_path: Path
) -> None:
    printed = run(server, read_examples()[title], python=llama_index, folder=tmp_path)
    assert re.fullmatch(PRINTED[title], printed, re.DOTALL), printed


def test_langchain_asks_and_cannot_read_the_result_back(server: Any, tmp_path: Path) -> None:
    """As docs/client.md says: the probe is used, and no part of the answer tells of it."""
    code = """
from langchain_openai import ChatOpenAI
from qprobe_client import Client

asked = {"q_probe": {"probe": "early", "k": 3}}
llm = ChatOpenAI(model="smollm2-135m", max_tokens=4, extra_body=asked)
with Client(url, api_key=key) as client:
    before = client.probe("early").num_requests
    answers = [llm.invoke("Say hello."), *llm.stream("Say hello.")]
    print(client.probe("early").num_requests - before)
print(any("q_probe" in repr(answer) for answer in answers))
"""
    assert run(server, code, python=sys.executable, folder=tmp_path) == "2\nFalse\n"
