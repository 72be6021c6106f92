"""The OpenAPI document against the server, by schemathesis.

Our own routes as they are documented; of vLLM's, what we add to them: a chat completion that is the
same but for its ``q_probe``, which schemathesis makes up within the documented schema.
"""

import copy
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

CHAT = "/v1/chat/completions"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# Generated anew each time would be a test that chance decides; no shrinking on a real engine.
RUN = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def fetch(server: Any) -> dict[str, Any]:
    document: dict[str, Any] = server.client().get("/openapi.json").json()
    return document


@pytest.fixture(scope="module")
def our_routes(server: Any) -> Any:
    document = fetch(server)
    ours = {path: each for path, each in document["paths"].items() if "/v1/probes" in path}
    made = schemathesis.openapi.from_dict({**document, "paths": ours})
    made.config.update(base_url=server.url)
    return made


@pytest.fixture(scope="module")
def reranked_chat(server: Any) -> Any:
    """A chat completion of which only ``q_probe`` varies, by probes and counts that are served."""
    document = copy.deepcopy(fetch(server))
    schemas = document["components"]["schemas"]
    asked = schemas["QProbeRequest"]
    names = {"type": "string", "enum": ["end", "early", "python", "nobody"]}
    mix = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"type": "number"} for name in ("end", "early")},
        "minProperties": 1,
    }
    asked["properties"]["probe"] = {"anyOf": [names, mix]}
    asked["properties"]["k"] = {"type": "integer", "minimum": 1, "maximum": 3}
    asked["required"] = ["probe", "k"]
    messages = [{"role": "user", "content": "Say hello."}]
    fixed = {"model": "smollm2-135m", "messages": messages, "max_tokens": 2, "seed": 1}
    operation = document["paths"][CHAT]["post"]
    operation["requestBody"]["content"]["application/json"]["schema"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{name: {"const": value} for name, value in fixed.items()},
            "q_probe": {"$ref": "#/components/schemas/QProbeRequest"},
        },
        "required": [*fixed, "q_probe"],
    }
    reply = operation["responses"]["200"]["content"]
    reply["application/json"]["schema"]["required"] = ["q_probe"]
    document["paths"] = {CHAT: {"post": operation}}
    made = schemathesis.openapi.from_dict(document)
    made.config.update(base_url=server.url)
    made.config.generation.update(modes=[schemathesis.GenerationMode.POSITIVE])
    return made


def check_operation(operation: Any, key: str, statuses: set[int]) -> set[int]:
    """Run cases of an operation; return the statuses that came.

    By hand, since schemathesis' plugin does not run under this pytest.
    """
    came = set()

    @RUN
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        # Else a generated name might hit a probe of the other tests.
        assume(case.path_parameters.get("name") not in ("python", "end", "early"))
        reply = case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {key}"})
        assert reply.status_code in statuses, reply.text
        came.add(int(reply.status_code))

    check()
    return came


def test_our_routes_are_as_documented(server: Any, our_routes: Any) -> None:
    expected = {
        ("/v1/probes", "GET"): {200},
        ("/v1/probes/{name}", "GET"): {404},
        ("/v1/probes/{name}", "PUT"): {400},
        ("/v1/probes/{name}", "DELETE"): {404},
    }
    for (path, method), statuses in expected.items():
        came = check_operation(our_routes[path][method], server.admin_key, statuses)
        assert came == statuses, (path, method)


def test_a_q_probe_of_the_documented_form_is_taken(server: Any, reranked_chat: Any) -> None:
    """Or refused as documented; and the reply's is of its documented form."""
    came = check_operation(reranked_chat[CHAT]["POST"], server.key, {200, 400, 404})
    assert came >= {200, 400}
