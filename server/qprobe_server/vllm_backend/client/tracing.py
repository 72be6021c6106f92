"""A span around the candidates of a prompt, in the traces that vLLM exports.

Relies on vLLM 0.32.0: ``AsyncLLM.is_tracing_enabled``, ``generate(trace_headers=)``, which makes a
span ``llm_request`` of every candidate a child of the context in these headers, and the tracer
provider that ``init_tracer`` (tracing/otel.py) sets for the process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["rerank_span"]


@contextmanager
def rerank_span(trace_headers: Mapping[str, str] | None) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a span ``rerank`` under the client's, if it has sent one.

    Yields:
        The span, for attributes, and the headers that make others its children. An exception marks
        it as failed by its class alone: messages may quote a request.
    """
    propagator = TraceContextTextMapPropagator()
    parent = propagator.extract(trace_headers or {})
    span = trace.get_tracer("qprobe").start_span("rerank", context=parent)
    headers: dict[str, str] = {}
    propagator.inject(headers, trace.set_span_in_context(span, parent))
    try:
        yield span, headers
    except BaseException as error:  # a cancelled request too
        span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        span.end()
