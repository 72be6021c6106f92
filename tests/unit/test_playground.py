"""The playground's routes and files, without an engine and without a browser."""

import json
import re
import shutil
import subprocess
from importlib import resources
from urllib.parse import quote, urljoin

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Message

from qprobe.probe.voting import NO_CLASS, vote_weights
from qprobe_server.edge.playground import routes as playground_routes

FILES = {
    file.name: file
    for file in (resources.files("qprobe_server.edge.playground") / "page").iterdir()
}
ASSETS = sorted(set(FILES) - {"index.html"})
MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# A name that browsers compare and never fetch.
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(playground_routes.router)
    return TestClient(app, follow_redirects=False)


def test_the_page_comes_with_a_policy_that_allows_only_its_own_files(client: TestClient) -> None:
    reply = client.get("/playground")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"
    policy = dict(
        part.strip().split(" ", maxsplit=1)
        for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


@pytest.mark.parametrize("name", ASSETS)
def test_assets_have_their_type_and_the_pages_headers(client: TestClient, name: str) -> None:
    reply = client.get(f"/playground/{name}")
    assert reply.status_code == 200
    assert reply.content == FILES[name].read_bytes()
    assert reply.headers["content-type"] == MEDIA_TYPES[name.rpartition(".")[2]]
    page = client.get("/playground")
    for header in ("content-security-policy", "x-content-type-options", "cache-control"):
        assert reply.headers[header] == page.headers[header]


def test_what_a_browser_has_is_not_sent_again(client: TestClient) -> None:
    for path in ("/playground", "/playground/playground.js"):
        etag = client.get(path).headers["etag"]
        again = client.get(path, headers={"if-none-match": f'"other", W/{etag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
        assert client.head(path).status_code == 200
        assert client.post(path).status_code == 405


@pytest.mark.parametrize(
    "name",
    [
        "missing.js",
        "index.html",
        "..",
        "../routes.py",
        "../../playground/routes.py",
        "..\\routes.py",
        "/etc/passwd",
        "./playground.js",
        "playground.js/",
        "playground.js\0.css",
        "PLAYGROUND.JS",
    ],
)
async def test_nothing_else_is_served(name: str) -> None:
    """Asked as a server asks an app: a client would tidy these paths up before sending them."""
    app = FastAPI()
    app.include_router(playground_routes.router)
    sent: list[Message] = []
    path = f"/playground/{name}"
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("host", 80),
        "root_path": "",
    }

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] in (307, 404)
    assert b"import" not in b"".join(message.get("body", b"") for message in sent)


def test_a_slash_at_the_end_is_taken_off_by_a_relative_redirect(client: TestClient) -> None:
    reply = client.get("/playground/")
    assert (reply.status_code, reply.headers["location"]) == (308, "../playground")


def test_every_file_that_is_referred_to_exists_also_below_a_prefix() -> None:
    app = FastAPI()
    app.include_router(playground_routes.router)
    client = TestClient(Starlette(routes=[Mount("/some/prefix", app)]), base_url="http://host")
    waiting, seen = ["http://host/some/prefix/playground"], set[str]()
    while waiting:
        url = waiting.pop()
        seen.add(url)
        reply = client.get(url)
        assert reply.status_code == 200, url
        found = re.findall(
            r'<[^>]* (?:src|href)="([^"]+)"|^import .* from "(.+)"', reply.text, re.M
        )
        urls = {urljoin(url, "".join(groups)) for groups in found}
        waiting += urls - seen - set(waiting)
    assert seen == {
        "http://host/some/prefix/playground",
        *(f"http://host/some/prefix/playground/{name}" for name in ASSETS),
    }


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_names_another_host(name: str) -> None:
    text = FILES[name].read_text().replace(SVG_NAMESPACE, "")
    assert re.findall(r"(?:[a-z]+:)?//[\w.-]+\.\w+|@import", text) == []


def test_the_page_has_no_code_or_style_of_its_own() -> None:
    """The policy would block it, and the page would look whole in a test that reads it."""
    page = FILES["index.html"].read_text()
    assert re.findall(r"<style|\son\w+=|\sstyle=|<script(?![^>]*\ssrc=)", page) == []


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_no_script_makes_markup_or_code_of_text(name: str) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert re.findall(forbidden, FILES[name].read_text()) == []


def test_every_control_of_the_page_has_a_label() -> None:
    page = FILES["index.html"].read_text()
    labelled = set(re.findall(r'<label for="([^"]+)"', page))
    for tag in re.findall(r"<(?:input|select|textarea)\b[^>]*>", page):
        name = re.search(r'\sid="([^"]+)"', tag)
        assert (name and name[1] in labelled) or "aria-label=" in tag or 'type="radio"' in tag, tag
    used = re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', page)
    identifiers = re.findall(r'\sid="([^"]+)"', page)
    assert set(used) <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_the_scripts_only_look_for_what_the_page_has() -> None:
    page = FILES["index.html"].read_text()
    identifiers = set(re.findall(r'\sid="([^"]+)"', page))
    scripts = "".join(FILES[name].read_text() for name in ASSETS if name.endswith(".js"))
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= identifiers


@pytest.mark.skipif(shutil.which("node") is None, reason="no node, which runs the page's module")
def test_the_page_weighs_votes_as_the_server_does() -> None:
    """By the page's own module, for scores with ties and betas of both ends."""
    rng = np.random.default_rng(4)
    cases: list[tuple[list[float], list[int], float]] = [
        (rng.normal(size=6).round(1).tolist(), rng.integers(-1, 3, size=6).tolist(), beta)
        for beta in (0.0, 0.1, 1.0, 5.0)
        for _ in range(5)
    ]
    cases += [([0.0, 1.0], [NO_CLASS, NO_CLASS], 0.5), ([0.0] * 4, [0, 1, 0, 1], 0.0)]
    sent = [[s, [None if c == NO_CLASS else c for c in of], beta] for s, of, beta in cases]
    module = quote(FILES["choice.js"].read_text())
    code = (
        f"import {{ weighVote }} from 'data:text/javascript,{module}';"
        f"console.log(JSON.stringify({json.dumps(sent)}.map((each) => weighVote(...each))))"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True
    )
    for (scores, of, beta), weights in zip(cases, json.loads(done.stdout), strict=True):
        wanted = vote_weights(np.array(scores), np.array(of), beta)
        assert weights == pytest.approx(wanted, abs=1e-9)
