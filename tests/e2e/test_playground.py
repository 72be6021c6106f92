"""The playground in Chromium, against the real server.

``QPROBE_SCREENSHOTS=docs/images pytest tests/e2e/test_playground.py -k screenshots`` writes the
pictures of the documentation. Long, since all of it needs the same visit, and test modules share
nothing but what is in conftest.
"""

import ast
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"
)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PROMPT = "Write a Python function `add(a, b)` that returns a + b."
# Whatever a shell or Python could read as something else.
AWKWARD = "it's \"quoted\" $HOME `id` \\n 'x' 😀 %s {0}\nsecond line\\"
CONTRAST = Path(__file__).with_name("contrast.js").read_text()


@dataclass
class Visit:
    """A page, and all that it asked for and complained of.

    Attributes:
        page: At the playground.
        url: The server's.
        key: The server's.
        requests: Everything that the page requested.
        complaints: Console messages above info, uncaught errors and violations of the policy.
    """

    page: Page
    url: str
    key: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def connect(self) -> None:
        """Open the page and type the key, as a user does."""
        self.page.goto(f"{self.url}/playground")
        expect(self.page.locator("#connection")).to_have_text("Key needed")
        self.take_complaints("status of 401")
        self.page.get_by_label("API key").fill(self.key)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#connection")).to_have_text("Connected, 3 probes")

    def take_complaints(self, *expected: str) -> None:
        """Check that there are just these complaints, and forget them."""
        # The browser may report a little after the page has shown what came of it.
        for _ in range(50):
            if len(self.complaints) >= len(expected):
                break
            self.page.wait_for_timeout(100)
        assert len(self.complaints) == len(expected), self.complaints
        for complaint, part in zip(self.complaints, expected, strict=True):
            assert part in complaint
        self.complaints.clear()

    def ask(self, prompt: str = PROMPT, **fields: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fill the form, run it, wait for the cards, and return request and reply."""
        self.fill(prompt, **fields)
        with self.page.expect_response("**/v1/chat/completions") as answered:
            self.page.keyboard.press("Control+Enter")
        reply = answered.value.json()
        assert answered.value.status == 200, reply
        expect(self.page.locator(".card[data-index]")).to_have_count(reply["q_probe"]["k"])
        asked = answered.value.request.post_data_json
        assert asked
        return asked, reply

    def fill(self, prompt: str = PROMPT, **fields: object) -> None:
        """Fill the form; fields go by their ids."""
        for name, value in {"seed": 1, "max_tokens": 16, "k": 4, **fields}.items():
            self.page.locator(f"#{name}").fill(str(value))
        self.page.get_by_label("Prompt", exact=True).fill(prompt)

    def weights(self) -> list[float]:
        """Return the weights of the cards, in the order of the candidates."""
        cards = self.page.locator(".card[data-index]").all()
        shown = {
            int(card.get_attribute("data-index") or ""): float(
                card.get_attribute("data-weight") or "nan"
            )
            for card in cards
        }
        return [shown[index] for index in range(len(cards))]

    def copied(self, button: str) -> str:
        """Press a button that copies, by its id, and return what is on the clipboard then."""
        # By its id: its name is what changes, and another button may still say "Copied".
        pressed = self.page.locator(f"#{button}")
        pressed.click()
        expect(pressed).to_have_text("Copied")
        text: str = self.page.evaluate("navigator.clipboard.readText()")
        return text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1440, "height": 1000}, color_scheme="light")
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    made.set_default_timeout(60_000)
    yield made
    made.close()


@pytest.fixture
def visit(context: BrowserContext, server: Any) -> Iterator[Visit]:
    """Return a visit; in the end nothing must have been complained of, and no other host asked."""
    page = context.new_page()
    made = Visit(page, server.url, server.key)
    context.on("request", lambda request: made.requests.append(request))
    page.on("pageerror", lambda error: made.complaints.append(f"uncaught: {error}"))

    def note(message: Any) -> None:
        if message.type in ("error", "warning"):
            made.complaints.append(message.text)

    page.on("console", note)
    page.add_init_script(
        "addEventListener('securitypolicyviolation',"
        " (event) => console.error('policy: ' + event.violatedDirective))"
    )
    made.connect()
    yield made
    made.take_complaints()
    hosts = {request.url.split("/playground")[0].split("/v1/")[0] for request in made.requests}
    assert hosts == {server.url}


def softmax(scores: list[float], beta: float) -> list[float]:
    if beta == 0:
        return [float(score == max(scores)) for score in scores]
    parts = [math.exp((score - max(scores)) / beta) for score in scores]
    return [part / sum(parts) for part in parts]


def test_a_run_shows_what_the_reply_says(visit: Visit) -> None:
    page = visit.page
    page.get_by_text("System prompt", exact=True).click()
    page.get_by_role("textbox", name="System prompt").fill("Answer with code.")
    page.locator("#probe-rows select").select_option("early")
    assert page.locator("#model option").all_text_contents() == ["smollm2-135m"]
    request, reply = visit.ask(k=5, temperature=0.9)
    assert request == {
        "model": "smollm2-135m",
        "messages": [
            {"role": "system", "content": "Answer with code."},
            {"role": "user", "content": PROMPT},
        ],
        "max_tokens": 16,
        "temperature": 0.9,
        "seed": 1,
        "q_probe": {
            "probe": "early",
            "k": 5,
            "beta": 0.1,
            "schedule": "off",
            "return_token_scores": True,
        },
    }
    (result,) = reply["q_probe"]["results"]
    assert visit.weights() == pytest.approx(result["weights"], abs=1e-9)
    chosen = page.locator(".card", has=page.locator(".badge.chosen"))
    assert [card.get_attribute("data-index") for card in chosen.all()] == [
        str(index) for index in result["selected"]
    ]
    for index, candidate in enumerate(result["candidates"]):
        card = page.locator(f'.card[data-index="{index}"]')
        assert card.locator(".text").text_content() == (candidate["text"].strip() or "(empty)")
    shown = [card.get_attribute("data-index") for card in page.locator(".card").all()]
    scores = result["scores"]
    assert [int(index or "") for index in shown] == sorted(range(5), key=lambda i: -scores[i])
    page.get_by_text("By index").click()
    shown = [card.get_attribute("data-index") for card in page.locator(".card").all()]
    assert shown == ["0", "1", "2", "3", "4"]
    expect(page.locator("#figures")).to_contain_text(f"{result['kl']:.2f}")


def test_how_sure_a_probe_is_stands_on_the_cards(visit: Visit, sure: str) -> None:
    page = visit.page
    page.reload()
    expect(page.locator("#connection")).to_have_text("Connected, 4 probes")
    page.locator("#probe-rows select").select_option(sure)
    expect(page.locator("#probe-facts")).to_have_text(
        "Reads layer 4, mean + layer final, last + layer 2, gated + mean logprob, length, cut; "
        "trained by ce; tells how sure it is"
    )
    _, reply = visit.ask(k=3)
    (result,) = reply["q_probe"]["results"]
    for index, confidence in enumerate(result["confidence"]):
        card = page.locator(f'.card[data-index="{index}"]')
        expect(card).to_contain_text(f"confidence {confidence:.2f}")
    page.get_by_role("button", name="Candidate 1").click()
    expect(page.locator("#detail-figures")).to_contain_text(f"{result['confidence'][1]:.2f}")


def test_moving_beta_weighs_anew_and_sends_nothing(visit: Visit) -> None:
    page = visit.page
    _, reply = visit.ask(k=6)
    scores = reply["q_probe"]["results"][0]["scores"]
    num_requests = len(visit.requests)
    slider, output = page.get_by_role("slider", name="Beta"), page.locator("#beta-value")
    slider.focus()
    before = visit.weights()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "PageUp", "PageDown"):
        page.keyboard.press(key)
        beta = float(output.inner_text())
        weights = visit.weights()
        assert weights == pytest.approx(softmax(scores, beta), abs=1e-9)
        assert sum(weights) == pytest.approx(1)
        assert weights != before
        before = weights
        seen.append(beta)
    assert seen[:4] == [0.11, 0.13, 0.14, 0.13]
    page.keyboard.press("Home")
    assert visit.weights() == softmax(scores, 0)
    likeliest = page.locator(".card", has=page.locator(".badge.now:visible"))
    assert likeliest.get_attribute("data-index") == str(scores.index(max(scores)))
    expect(page.locator("#figures")).to_contain_text(f"{math.log(6):.2f}")
    page.keyboard.press("ArrowRight")
    assert output.inner_text() == "0.01"
    page.keyboard.press("End")
    assert visit.weights() == pytest.approx([1 / 6] * 6)
    expect(likeliest).to_have_count(0)
    page.keyboard.press("ArrowLeft")
    assert output.inner_text() == "10"
    page.get_by_role("button", name="Back to 0.1").click()
    assert visit.weights() == pytest.approx(softmax(scores, 0.1), abs=1e-9)
    assert len(visit.requests) == num_requests


@pytest.mark.parametrize(("key", "kl"), [("Home", math.log(4)), ("End", 0.0)])
def test_the_ends_of_the_slider_are_understood(visit: Visit, key: str, kl: float) -> None:
    visit.page.get_by_role("slider", name="Beta").focus()
    visit.page.keyboard.press(key)
    _, reply = visit.ask()
    (result,) = reply["q_probe"]["results"]
    assert result["kl"] == pytest.approx(kl, abs=1e-6)
    assert visit.weights() == pytest.approx(result["weights"], abs=1e-9)
    expect(visit.page.get_by_role("button", name="Back to")).to_be_hidden()


def test_a_candidate_opens_with_its_token_scores(visit: Visit) -> None:
    page = visit.page
    _, reply = visit.ask(k=3)
    (result,) = reply["q_probe"]["results"]
    (index,) = result["selected"]
    candidate = result["candidates"][index]
    opener = page.get_by_role("button", name=f"Candidate {index}")
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_have_text(f"Candidate {index}")
    points = (page.locator("#line polyline").get_attribute("points") or "").split()
    scores, tokens = candidate["token_scores"], candidate["tokens"]
    assert len(points) == len(scores) > 1
    heights = [-float(point.split(",")[1]) for point in points]
    for one, other in itertools.pairwise(range(len(scores))):
        # Drawn to a hundredth of a pixel.
        assert (heights[other] - heights[one]) * (scores[other] - scores[one]) >= -1e-2
    assert page.locator("#detail-text").text_content() == "".join(tokens)
    line = page.get_by_role("slider", name="Token")
    expect(line).to_be_focused()
    for key, place in (("ArrowRight", 1), ("End", len(scores) - 1), ("Home", 0)):
        page.keyboard.press(key)
        said = line.get_attribute("aria-valuetext") or ""
        assert said.startswith(f"token {place + 1} of {len(scores)}, ")
        assert json.dumps(tokens[place], ensure_ascii=False) in said
        shown = float(said.rpartition(" ")[2].replace("\u2212", "-"))
        assert shown == pytest.approx(scores[place], abs=0.006)
    box = line.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 50)
    expect(page.locator("#line-readout")).to_contain_text(f"{len(scores)} of {len(scores)}")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(opener).to_be_focused()


def test_copied_requests_are_the_one_that_is_sent(visit: Visit, tmp_path: Path) -> None:
    request, _ = visit.ask(AWKWARD, k=3)
    curl, python = visit.copied("copy-curl"), visit.copied("copy-python")
    assert visit.key not in curl + python
    environment = {**os.environ, "OPENAI_API_KEY": visit.key}
    spy = f"curl() {{ printf '%s\\0' \"$@\"; }}\n{curl}"
    arguments = bash(spy, environment).split("\0")
    assert json.loads(arguments[arguments.index("-d") + 1]) == request
    assert f"Authorization: Bearer {visit.key}" in arguments
    reply, _, status = bash(curl.rstrip() + " -w '\n%{http_code}'", environment).rpartition("\n")
    assert status == "200", reply
    assert len(json.loads(reply)["q_probe"]["results"][0]["scores"]) == 3
    (call,) = [
        node
        for node in ast.walk(ast.parse(python))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("completions.create")
    ]
    named = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    extra = named.pop("extra_body")
    assert {**named, **extra} == request
    script = tmp_path / "copied.py"
    script.write_text(python)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\[[012]\] \[.+, .+, .+\]$", done.stdout, re.MULTILINE)


def bash(command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mix_of_probes(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Mix with another probe").click()
    weights = page.get_by_label("Weight")
    weights.nth(1).fill("-0.5")
    names = [each.input_value() for each in page.locator("#probe-rows select").all()]
    assert len(set(names)) == 2
    request, reply = visit.ask()
    assert request["q_probe"]["probe"] == {names[0]: 1, names[1]: -0.5}
    assert reply["q_probe"]["probe"] == request["q_probe"]["probe"]
    page.get_by_role("button", name="Remove this probe").first.click()
    request, _ = visit.ask()
    assert request["q_probe"]["probe"] == names[1]


def test_errors_are_said_and_their_field_is_marked(visit: Visit) -> None:
    page, error = visit.page, visit.page.get_by_role("alert")
    visit.fill(k=1000)
    page.get_by_role("button", name="Run").click()
    expect(error).to_contain_text("q_probe.k")
    expect(error).to_contain_text("status 400, field q_probe.k")
    expect(page.locator("#k")).to_have_attribute("aria-invalid", "true")
    visit.take_complaints("status of 400")

    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="Run").click()
    expect(error).to_contain_text(f"The server at {visit.url} cannot be reached.")
    expect(page.locator("#k")).not_to_have_attribute("aria-invalid", "true")
    visit.take_complaints("ERR_CONNECTION_REFUSED")
    page.unroute("**/v1/chat/completions")

    page.get_by_label("API key").fill("another-key")
    page.keyboard.press("Tab")
    expect(error).to_contain_text("The server refused the API key.")
    expect(page.locator("#connection")).to_have_text("Key refused")
    visit.take_complaints("status of 401")
    visit.fill()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_label("API key")).to_have_attribute("aria-invalid", "")
    expect(error).to_contain_text("The server refused the API key.")
    visit.take_complaints("status of 401")

    page.get_by_label("API key").fill("no key at all")
    page.keyboard.press("Enter")
    expect(error).to_contain_text("has a character that no key can have")
    page.get_by_label("API key").fill(visit.key)
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_have_text("Connected, 3 probes")
    expect(error).to_be_hidden()
    visit.ask()


def test_cancelling_frees_the_engine_and_brings_the_last_run_back(visit: Visit) -> None:
    page = visit.page
    visit.ask()
    before = visit.weights()
    for by_key in (False, True):
        visit.fill("Tell me a long story.", k=16, max_tokens=1500, temperature=1.5)
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".skeleton")).to_have_count(16)
        expect(page.locator("#run-line")).to_have_text(
            re.compile(r"^Sampling 16 candidates, \d+\.\d s$")
        )
        wait_until(lambda: num_running(visit) > 0)
        if by_key:
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#run-line")).to_have_text(re.compile(r"^Cancelled after \d+\.\d s$"))
        wait_until(lambda: num_running(visit) == 0)
        assert visit.weights() == before
    visit.ask()


def num_running(visit: Visit) -> float:
    text = httpx.get(f"{visit.url}/metrics").text
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
    assert found
    return sum(map(float, found))


def wait_until(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_a_model_writes_is_text_and_never_markup(visit: Visit) -> None:
    """The real reply, with markup put in place of every text in it."""
    page, hostile = visit.page, "</pre><img src=x onerror=alert(1)><script>alert(2)</script>"

    def poison(route: Route) -> None:
        answer = route.fetch()
        reply = answer.json()
        reply["q_probe"]["notice"] = hostile
        for candidate in reply["q_probe"]["results"][0]["candidates"]:
            candidate["text"] = candidate["finish_reason"] = hostile
            candidate["tokens"] = [hostile for _ in candidate["tokens"]]
        route.fulfill(response=answer, json=reply)

    page.on("dialog", lambda dialog: visit.complaints.append(dialog.message))
    page.route("**/v1/chat/completions", poison)
    visit.ask(k=2)
    page.get_by_role("button", name="Candidate 0").click()
    shown = page.locator("#detail-text").text_content()
    assert shown
    assert shown.replace(hostile, "") == ""
    assert page.locator(".card .text").all_text_contents() == [hostile] * 2
    assert page.locator("#notice").text_content() == hostile
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_the_key_stays_in_the_tab_and_the_theme_stays(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    assert visit.key not in page.evaluate("JSON.stringify([{...localStorage}, document.cookie])")
    assert visit.key in page.evaluate("JSON.stringify({...sessionStorage})")
    page.reload()
    expect(page.locator("#connection")).to_have_text("Connected, 3 probes")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate("localStorage.length") == 0


FOCUSED = """() => {
  const element = document.activeElement;
  // What shows the focus may be the card that a button spans, or the label of a radio button.
  const shown = [[element, null], [element, "::after"], [element.nextElementSibling, null]];
  const outlined = ([each, pseudo]) =>
    each && getComputedStyle(each, pseudo).outlineStyle !== "none";
  return [element === document.body ? "" : element.id || element.value || element.textContent,
          shown.some(outlined)];
}"""


def test_everything_is_reached_by_the_keyboard_with_a_visible_focus(visit: Visit) -> None:
    page = visit.page
    visit.ask(k=2)
    page.locator("h1").click()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outlined = page.evaluate(FOCUSED)
        if not name:
            break
        assert outlined, name
        reached.append(name)
    probe = page.locator("#probe-rows select").input_value()
    wanted = ["key", "theme", "prompt", "model", probe, "add-probe", "k", "max_tokens"]
    wanted += ["temperature", "seed", "run", "copy-curl", "copy-python", "beta", "score"]
    assert [name for name in reached if name in wanted] == wanted
    assert set(reached[-2:]) == {"Candidate 0", "Candidate 1"}


def test_the_page_fits_and_its_contrast_is_enough(visit: Visit) -> None:
    """AA in both themes, for the page, an error and a candidate; no sideways scrolling."""
    page = visit.page
    visit.ask(k=3, max_tokens=40)
    num_texts = 0
    for width in (360, 768, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            for opened in (False, True):
                if opened:
                    page.locator(".open").first.click()
                assert page.evaluate("document.scrollingElement.scrollWidth") <= width
                wide = "dialog[open]" if opened else "main"
                inner = page.evaluate(
                    f"(e => e.scrollWidth - e.clientWidth)(document.querySelector('{wide}'))"
                )
                assert inner <= 0
                # Widths and colours move for a moment.
                page.wait_for_timeout(200)
                found = page.evaluate(CONTRAST)
                assert found["poor"] == []
                num_texts += found["numTexts"]
                if opened:
                    page.keyboard.press("Escape")
    assert num_texts > 12 * 40
    visit.fill(k=1000)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST)["poor"] == []
    visit.take_complaints("status of 400")


def test_screenshots_for_the_documentation(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    folder = Path(os.environ.get("QPROBE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.locator("#probe-rows select").select_option("python")
    visit.ask(
        "Write a Python function `double_all(numbers)` that returns each number times two.",
        **{"k": 9, "max_tokens": 96, "seed": 1},
    )
    page.evaluate("document.activeElement.blur()")
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        path = folder / f"playground-{scheme}.png"
        page.screenshot(path=path)
        assert 10_000 < path.stat().st_size < 300_000
