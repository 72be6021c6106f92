"""What this project takes from the inside of vLLM 0.32.0, checked name by name.

When vLLM changes one of these, the failing assertion says which, and the module under
``qprobe_server/vllm_backend`` that names the class in its docstring is the one to adapt.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import vllm
from safetensors.torch import save_file
from vllm import LLM, SamplingParams, envs
from vllm.config import (
    CacheConfig,
    ModelConfig,
    ParallelConfig,
    SpeculativeConfig,
    StructuredOutputsConfig,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.api_server.entry import build_and_serve
from vllm.entrypoints.launchers.launcher import serve_http
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import (
    ResponseCompletedEvent,
    ResponsesRequest,
    ResponsesResponse,
    StreamingResponsesResponse,
)
from vllm.entrypoints.serve.sagemaker import api_router as sagemaker
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.interfaces import SupportsEagle3, supports_eagle3
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node
from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, DPLBAsyncMPClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.executor.multiproc_executor import WorkerProc
from vllm.v1.outputs import LogprobsLists
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.worker import gpu_model_runner as v1
from vllm.v1.worker.gpu import model_runner as v2
from vllm.v1.worker.gpu.input_batch import InputBatch as InputBatchOfV2
from vllm.v1.worker.gpu.pcp_manager import PCPManager
from vllm.v1.worker.gpu.states import RequestState as RequestStateOfV2
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_worker import Worker

from qprobe_server.choice.fields import check_names
from qprobe_server.commands.arguments import parse as read_arguments
from qprobe_server.commands.parser import expand_config, normalize
from qprobe_server.commands.preflight import DEFAULT_PORT
from qprobe_server.edge.middleware import _SAGEMAKER_MODEL
from qprobe_server.edge.reply import WITH_RESPONSE
from qprobe_server.errors import StartupError
from qprobe_server.quiet import EXPECTED
from qprobe_server.vllm_backend import flags
from qprobe_server.vllm_backend.arguments import parse, prepare_engine_args
from qprobe_server.vllm_backend.checks import VLLM_VERSION, check_installation
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.client.tape import _SELDOM, Tape
from qprobe_server.vllm_backend.cpu import measure_weights
from qprobe_server.vllm_backend.sampling_parameters import for_reading
from qprobe_server.vllm_backend.worker.hooks import EXTRA_ARG


def changed(what: str) -> str:
    return f"vLLM {vllm.__version__} changed {what}, which qprobe relies on"


def source(of: Callable[..., Any]) -> str:
    return inspect.getsource(of)


def test_the_pinned_version_is_installed() -> None:
    assert vllm.__version__.split("+")[0] == VLLM_VERSION
    check_installation()


@pytest.mark.parametrize("field", ["hidden_states", "aux_hidden_states"])
@pytest.mark.parametrize("state", [v1.ExecuteModelState, v2.ExecuteModelState])
def test_state_between_forward_and_sampling(state: Any, field: str) -> None:
    assert field in state._fields, changed(f"ExecuteModelState.{field}")


@pytest.mark.parametrize("name", ["execute_model", "sample_tokens", "load_model"])
def test_worker_methods(name: str) -> None:
    assert callable(getattr(Worker, name, None)), changed(f"Worker.{name}")
    assert "self.use_v2_model_runner = " in source(Worker), changed("Worker.use_v2_model_runner")


def test_where_the_runners_keep_a_step() -> None:
    both = ("execute_model_state", "use_aux_hidden_state_outputs", "speculative_config")
    of_v1 = (*both, "input_batch", "query_start_loc", "positions", "discard_request_mask")
    of_v2 = (*both, "req_states", "pcp_manager", "parallel_config")
    for runner, names in ((v1.GPUModelRunner, of_v1), (v2.GPUModelRunner, of_v2)):
        for name in names:
            assert f"self.{name}" in source(runner), changed(f"{runner.__module__}: {name}")


def test_batches_of_v1() -> None:
    text = source(InputBatch)
    for name in ("num_prompt_tokens", "num_computed_tokens_cpu", "generators"):
        assert f"self.{name}" in text, changed(f"InputBatch.{name}")
    assert isinstance(InputBatch.req_ids, property), changed("InputBatch.req_ids")
    # The sampler reads the very dictionary that the CPU worker takes generators out of.
    assert "generators=self.generators" in text, changed("SamplingMetadata.generators")


def test_batches_of_v2() -> None:
    assert "input_batch" in v2.ExecuteModelState._fields, changed("ExecuteModelState.input_batch")
    for name in (
        "req_ids",
        "query_start_loc_np",
        "num_computed_tokens_np",
        "idx_mapping_np",
        "positions",
    ):
        assert name in InputBatchOfV2.__dataclass_fields__, changed(f"InputBatch.{name}")
    assert "self.prompt_len = UvaBackedTensor" in source(RequestStateOfV2), changed(
        "RequestState.prompt_len"
    )
    assert list(inspect.signature(PCPManager.restore_for_sampling).parameters) == [
        "self",
        "hidden_states",
        "aux_hidden_states",
    ], changed("PCPManager.restore_for_sampling()")
    # It is set after this, which would assert a speculative method.
    assert "assert self.speculative_config is not None" in source(v2.GPUModelRunner.load_model), (
        changed("GPUModelRunner.load_model")
    )


def test_scheduler_output_fields() -> None:
    for name in ("finished_req_ids", "scheduled_new_reqs", "total_num_scheduled_tokens"):
        assert name in SchedulerOutput.__dataclass_fields__, changed(f"SchedulerOutput.{name}")
    for name in ("req_id", "sampling_params"):
        assert name in NewRequestData.__dataclass_fields__, changed(f"NewRequestData.{name}")


def test_an_engine_tells_the_workers_what_has_finished_before_it_rests() -> None:
    """Scores are sent then."""
    assert "has_finished_requests()" in source(SchedulerInterface.has_requests), changed(
        "SchedulerInterface.has_requests"
    )
    assert "self.scheduler.has_requests()" in source(EngineCore.step), changed("EngineCore.step")


def test_what_is_known_of_drafting() -> None:
    for name in ("use_eagle", "uses_draft_model", "use_dflash"):
        assert callable(getattr(SpeculativeConfig, name, None)), changed(name)
    assert "enable_adaptive_verification" in SpeculativeConfig.__dataclass_fields__, changed(
        "SpeculativeConfig"
    )
    assert isinstance(ParallelConfig.use_ubatching, property), changed("use_ubatching")


def test_what_says_where_workers_run_and_what_they_compute() -> None:
    for name in (
        "nnodes",
        "distributed_executor_backend",
        "data_parallel_backend",
        "data_parallel_size_local",
        "data_parallel_size",
    ):
        assert name in ParallelConfig.__dataclass_fields__, changed(f"ParallelConfig.{name}")
    assert "kv_sharing_fast_prefill" in CacheConfig.__dataclass_fields__, changed("CacheConfig")
    assert envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND, changed("the default executor for Ray")


def test_inner_layers() -> None:
    assert callable(SupportsEagle3.set_aux_hidden_state_layers)
    assert supports_eagle3(LlamaForCausalLM), changed("LlamaForCausalLM")


def test_generate_takes_what_the_serving_code_gives() -> None:
    """Ours passes every keyword on, so only the first three names matter."""
    theirs = list(inspect.signature(AsyncLLM.generate).parameters)
    assert theirs[:4] == ["self", "prompt", "sampling_params", "request_id"], changed("generate()")
    assert list(inspect.signature(RerankingLLM.generate).parameters)[:4] == theirs[:4]
    assert "data_parallel_rank" in theirs, changed("generate(data_parallel_rank)")


def test_admission_is_checked_without_a_request_id_before_a_request_begins() -> None:
    parameters = inspect.signature(EngineClient.check_admission).parameters
    assert list(parameters) == ["self", "n", "request_id"], changed("check_admission()")
    assert "self.check_admission(request_id=" in source(AsyncLLM._add_request), changed(
        "AsyncLLM._add_request"
    )


def test_children_of_n_are_seeded_one_after_another() -> None:
    assert "seed + index" in source(ParentRequest._get_child_sampling_params), changed(
        "the seeds of n > 1"
    )


def test_calls_of_the_workers() -> None:
    assert "self.core_engines" in source(AsyncMPClient.call_utility_all_async)
    assert list(inspect.signature(AsyncMPClient._call_utility_async).parameters) == [
        "self",
        "method",
        "args",
        "engine",
    ], changed("_call_utility_async()")
    assert list(inspect.signature(EngineCore.collective_rpc).parameters) == [
        "self",
        "method",
        "timeout",
        "args",
        "kwargs",
    ], changed("EngineCore.collective_rpc()")
    assert "self.engine_inflight" in source(DPLBAsyncMPClient), changed("engine_inflight")


def test_requests_of_one_id_are_aborted_together() -> None:
    """All candidates of a prompt have the request's; of each, vLLM makes one of its own."""
    text = source(OutputProcessor.abort_requests)
    assert "internal_req_ids.extend(internal_ids)" in text, changed("OutputProcessor")
    assert "FinishReason.ABORT" in text, changed("OutputProcessor.abort_requests")
    made = source(InputProcessor.assign_request_id)
    assert "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION" in made, changed("assign_request_id()")
    assert "random_uuid()" in made, changed("assign_request_id()")


def test_a_request_is_added_in_two_steps() -> None:
    """``prepare`` takes it between them; ``FanOut`` adds its copies as vLLM adds those of n."""
    text = source(AsyncLLM.add_request)
    assert "await self._add_request(request, prompt_text, None, 0, queue)" in text, changed(
        "AsyncLLM.add_request"
    )
    for step in (
        "copy(request)",
        "child_request.sampling_params = child_params",
        "self.check_admission(parent_params.n, parent_request.request_id)",
        "self.output_processor.add_request(",
        "await self.engine_core.add_request_async(child_request)",
    ):
        assert step in text, changed("how requests of n > 1 are added")
    assert 'f"{index}_{self.request_id}"' in source(ParentRequest.get_child_info)
    generated = inspect.signature(AsyncLLM.generate).parameters.values()
    named = {each.name for each in generated if each.kind is each.KEYWORD_ONLY}
    assert named <= set(inspect.signature(AsyncLLM.add_request).parameters), changed("generate()")
    # An abort that is sent after a request reaches the engine after it.
    assert "return self.input_socket.send_multipart" in source(AsyncMPClient._send_input_message)


def test_a_request_for_logprobs_of_none_others_has_the_sampled_tokens_own() -> None:
    """It comes first in its row, and vLLM sums it; another flag may make other numbers of it."""
    assert SamplingParams(logprobs=0).num_logprobs == 0, changed("SamplingParams")
    assert SamplingParams().num_logprobs is None, changed("SamplingParams")
    text = inspect.getsource(LogprobsProcessor._update_sample_logprobs)
    assert "sampled_token_logprob = logprobs[0]" in text, changed("LogprobsProcessor")
    assert "self.cumulative_logprob += sampled_token_logprob" in text, changed("LogprobsProcessor")
    assert ModelConfig.logprobs_mode == "raw_logprobs", changed("ModelConfig")


def test_which_failures_a_client_gets_to_see() -> None:
    text = source(AsyncLLM.generate)
    assert "except EngineDeadError:" in text, changed("AsyncLLM.generate")
    assert "except (VLLMClientError, GracefulHTTPError) as e:" in text, changed("generate()")
    assert "raise EngineGenerateError() from e" in text, changed("AsyncLLM.generate")


def test_what_an_output_processor_does_with_an_output() -> None:
    """A tape takes the place of the logprobs processor, a candidate that of the collector."""
    text = source(OutputProcessor.process_outputs)
    assert "req_state.logprobs_processor.update_from_output(engine_core_output)" in text, changed(
        "OutputProcessor.process_outputs"
    )
    assert text.index("self._trim_surplus_tokens(") < text.index("update_from_output"), changed(
        "OutputProcessor.process_outputs"
    )
    assert "req_state.queue.put(request_output)" in text, changed("the collector of outputs")
    assert "state.queue.put(e)" in source(OutputProcessor.propagate_error), changed("failures")
    fields = {"request_id", "new_token_ids", "new_logprobs", "events", "trace_headers"}
    fields |= {
        "pooling_output",
        "stop_reason",
        "num_nans_in_logits",
        "mm_cache_miss_hashes",
        *_SELDOM,
    }
    assert set(EngineCoreOutput.__struct_fields__) == fields, changed("EngineCoreOutput")
    assert list(LogprobsLists._fields)[:3] == [
        "logprob_token_ids",
        "logprobs",
        "sampled_token_ranks",
    ], changed("LogprobsLists")
    made = {each.name for each in dataclasses.fields(LogprobsProcessor)}
    assert made - {"prompt_token_id_logprobs"} <= set(vars(Tape(None, print))), changed(
        "LogprobsProcessor"
    )


def test_names_of_ours_are_no_fields_of_vllms_requests() -> None:
    """They are refused beside q_probe, and so is what looks like that name."""
    for model in (
        ChatCompletionRequest,
        BatchChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
        AnthropicMessagesRequest,
    ):
        check_names(dict.fromkeys(model.model_fields))


def test_where_events_of_responses_name_the_model() -> None:
    """Before the output, which may be long; after the response come a number and the type."""
    assert list(ResponseCompletedEvent.model_fields) == ["response", "sequence_number", "type"], (
        changed("ResponseCompletedEvent")
    )
    fields = list(ResponsesResponse.model_fields)
    assert fields.index("model") < fields.index("output"), changed("ResponsesResponse")
    names = {
        get_args(event.model_fields["type"].annotation)[0].encode()
        for event in get_args(StreamingResponsesResponse)
        if "response" in event.model_fields
    }
    assert {b"response.completed"} <= names <= WITH_RESPONSE, changed("StreamingResponsesResponse")


def test_which_temperature_a_request_without_one_has() -> None:
    """Admission counts candidates before the sampling parameters are there."""
    assert callable(ModelConfig.get_diff_sampling_param), changed("ModelConfig")
    for defaults, expected in (({}, 1.0), ({"temperature": 0.25}, 0.25)):
        made = CompletionRequest(prompt="x").to_sampling_params(1, defaults)
        assert made.temperature == expected, changed("CompletionRequest.to_sampling_params")
    assert SamplingParams(temperature=1e-9).temperature == 0.01, changed("SamplingParams")


def test_requests_run_in_the_task_that_set_the_context() -> None:
    """create_task copies the context, so that generate() sees the middleware's variable."""
    assert "asyncio.create_task(handler_func" in source(with_cancellation), changed(
        "with_cancellation"
    )


def test_how_the_app_is_built_and_served() -> None:
    """Our app.py follows build_and_serve: the same steps, and no uvicorn option left out."""
    text = source(build_and_serve)
    for step in ("build_app(args, supported_tasks, model_config)", "init_app_state(engine_client,"):
        assert step in text, changed("build_and_serve")
    from qprobe_server.vllm_backend.app import _uvicorn_options

    served = text[text.index("return await serve_http(") :]
    options = set(re.findall(r"^\s+(\w+)=", served, re.MULTILINE)) - {"sock", "peer_loads"}
    ours = set(re.findall(r'"(\w+)": ', source(_uvicorn_options)))
    more = {"http", "timeout_graceful_shutdown"}
    assert options == ours - more, changed("the options of serve_http")


async def test_which_models_and_adapters_are_served() -> None:
    """By name: the base model's names come first, and an adapter's request has its path."""
    engine: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=8), renderer=None, input_processor=None
    )
    models = OpenAIServingModels(engine, [BaseModelPath(name=n, model_path="m") for n in "ab"])
    models.lora_requests["sql"] = LoRARequest("sql", 1, "/adapters/sql-3")
    assert [each.id for each in (await models.show_available_models()).data] == ["a", "b", "sql"]
    assert models.is_base_model("b"), changed("OpenAIServingModels.is_base_model")
    assert not models.is_base_model("sql"), changed("OpenAIServingModels.is_base_model")
    assert [each.name for each in models.base_model_paths] == ["a", "b"]
    assert models.lora_requests["sql"].lora_path == "/adapters/sql-3"
    assert models.lora_resolvers == []
    for name in ("load_lora_adapter", "unload_lora_adapter", "resolve_lora"):
        assert "self.lora_requests[" in source(getattr(OpenAIServingModels, name)), changed(name)


def test_how_sagemaker_names_an_adapter() -> None:
    """Its header is put over the body's model."""
    assert 'inject_adapter_id(adapter_path="model")' in inspect.getsource(sagemaker), changed(
        "/invocations"
    )
    name = "model_hosting_container_standards.sagemaker.lora.constants"
    header = importlib.import_module(name).SageMakerLoRAApiHeader.ADAPTER_IDENTIFIER
    assert header.lower() == _SAGEMAKER_MODEL


def test_how_a_server_is_stopped_before_its_engine() -> None:
    assert "app.state.server = server" in source(serve_http), changed("serve_http")
    for runs in (EngineCoreProc.run_engine_core, WorkerProc.worker_main):
        # They take SIGINT for an order to stop, unless it is masked when they are started.
        assert "signal.signal(signal.SIGINT" in source(runs), changed(runs.__qualname__)
        assert "sigmask" not in source(runs), changed(runs.__qualname__)
    assert "proc.start()" in source(CoreEngineProcManager.__init__), changed(
        "CoreEngineProcManager"
    )


@pytest.mark.parametrize(
    ("name", "beginning"), [(name, each) for name, all_ in EXPECTED.items() for each in all_]
)
def test_warnings_that_are_left_out(name: str, beginning: str) -> None:
    text = inspect.getsource(importlib.import_module(name))
    assert f'"{beginning}' in text, changed(f"a warning of {name}")
    assert "logger = init_logger(__name__)" in text, changed(f"the logger of {name}")


def test_what_is_asked_of_a_cpu() -> None:
    for name in ("get_total_num_kv_heads", "get_head_size", "get_total_num_hidden_layers"):
        assert callable(getattr(ModelConfig, name, None)), changed(f"ModelConfig.{name}")
    for name in ("use_mla", "is_hybrid", "is_attention_free"):
        assert hasattr(ModelConfig, name), changed(f"ModelConfig.{name}")
    assert callable(EngineArgs.create_model_config), changed("EngineArgs.create_model_config")
    assert "cgroup" in source(get_memory_node_info), changed("get_memory_node_info")
    assert get_visible_memory_node(), changed("get_visible_memory_node")
    text = source(CpuPlatform.check_and_update_config)
    assert "VLLM_CPU_KVCACHE_SPACE" in text, changed("the variable of the cache's size")
    assert "cache_config.block_size = 128" in text, changed("the block size on a CPU")


def test_the_size_of_a_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "wide": torch.zeros(4, 3, dtype=torch.bfloat16),
        "packed": torch.zeros(5, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert measure_weights(str(tmp_path), None) == (12, 20), changed(
        "get_safetensors_params_metadata"
    )


def test_json_without_white_space_by_any_backend() -> None:
    """Set on the configuration, since the flag wants one backend."""
    config = StructuredOutputsConfig()
    config.disable_any_whitespace = True  # not checked again
    assert pickle.loads(pickle.dumps(config)) == config
    for backend in (XgrammarBackend, GuidanceBackend):
        text = source(backend.__post_init__)
        assert "structured_outputs_config.disable_any_whitespace" in text, changed(str(backend))


@pytest.mark.parametrize(
    "name",
    [
        "collective_rpc",
        "enqueue",
        "_preprocess_chat_one",
        "_preprocess_cmpl_one",
        "get_default_sampling_params",
        "get_tokenizer",
        "reset_prefix_cache",
    ],
)
def test_methods_of_the_offline_engine(name: str) -> None:
    assert callable(getattr(LLM, name, None)), changed(f"LLM.{name}")


def test_the_offline_engine_runs_step_by_step_in_this_process() -> None:
    """With VLLM_ENABLE_V1_MULTIPROCESSING=0, so that equal requests meet in equal batches."""
    assert callable(LLMEngine.step), changed("LLMEngine.step")
    assert callable(LLMEngine.has_unfinished_requests), changed("LLMEngine")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" in source(LLMEngine.from_engine_args), changed(
        "LLMEngine.from_engine_args"
    )
    assert callable(EngineArgs.add_cli_args), changed("EngineArgs.add_cli_args")


@pytest.mark.parametrize("with_logprobs", [True, False])
def test_a_completion_that_is_read_takes_nothing_from_the_prefix_cache(
    *, with_logprobs: bool
) -> None:
    """Or it would lack states; vLLM's own default skips the cache for logprobs of a prompt only."""
    params = for_reading("7", 5, with_logprobs=with_logprobs)
    assert params.skip_reading_prefix_cache, changed("SamplingParams")
    assert params.prompt_logprobs == (0 if with_logprobs else None)
    assert (params.max_tokens, params.temperature) == (1, 0)
    assert params.extra_args == {EXTRA_ARG: ["7", 4]}
    assert not SamplingParams().skip_reading_prefix_cache


def test_shutdown() -> None:
    """A core that drains answers no calls of workers."""
    assert "timeout" in inspect.signature(AsyncLLM.shutdown).parameters, changed(
        "AsyncLLM.shutdown"
    )
    assert callable(EngineCoreProc._reject_utility_in_shutdown), changed("EngineCoreProc")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), ([""], [""]), (["key"], ["key", "admin"]), (["", "key"], ["key", "admin"])],
)
def test_the_admin_key_opens_all_where_a_key_is_wanted(
    monkeypatch: pytest.MonkeyPatch, given: list[str] | None, expected: list[str] | None
) -> None:
    """And closes nothing where none is: to vLLM an empty key is none."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    args = argparse.Namespace(
        api_key=given,
        admin_api_key="admin",
        api_server_count=1,
        headless=False,
        worker_cls="auto",
        additional_config=None,
    )
    prepare_engine_args(args, [20], "ours")
    assert args.api_key == expected


def test_the_flags_of_vllm() -> None:
    recorded = json.loads(flags.PATH.read_text("utf-8"))
    assert recorded == json.loads(json.dumps(flags.describe_flags())), (
        changed("its flags") + ": python -m qprobe_server.vllm_backend.flags writes them anew"
    )


def test_the_port_of_vllm() -> None:
    parser = ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())
    assert parser.get_default("port") == DEFAULT_PORT, changed("--port")
    assert parser.get_default("seed") == 0, changed("--seed")


def read_by_argparse(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> list[str]:
    """Return what vLLM's parser makes of a command line before argparse gets it."""
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", lambda _, args, __: args)
        made: Any = FlexibleArgumentParser().parse_args(argv)
    return list(made)


@pytest.mark.parametrize(
    "argv",
    [
        ["m", "--max_model_len", "4", "--api-key=a_b.c", "--beta", "0.5"],
        ["m", "-O3"],
        ["m", "-O=3"],
        ["m", "-O", "3", "--k", "4"],
        ["m", "--a_b.c_d", "x_y", "--k=4"],
        ["m", "--k", "4", "--compilation-config.pass_config.x=true", "-cc.mode", "3"],
        ["m", "--override-generation-config.a+", "1,2"],
        ["m", "-tp", "2", "--additional-config", '{"a.b": 1}'],
    ],
)
def test_a_command_line_is_read_as_vllm_reads_it(
    monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """But for the values of dotted flags, which vLLM puts together, and last."""
    theirs = [
        "{}" if each.startswith("{") and "a.b" not in each else each
        for each in read_by_argparse(monkeypatch, argv)
    ]
    assert sorted(normalize(argv)) == sorted(theirs), changed("FlexibleArgumentParser")


def test_a_config_file_is_read_as_vllm_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "port: 12\nenforce-eager: false\nheadless: false\nenable-lora: true\napi-key: [a, b]\n"
        "kv-transfer-config: {a: {b: 1}}\nallowed_media_domains: []\nseed: '7'\n"
    )
    argv = ["m", "--k", "4", "--config", str(path), "--port", "13"]
    main = FlexibleArgumentParser()
    parser = ServeSubcommand().subparser_init(main.add_subparsers())
    theirs = parser._pull_args_from_config(["serve", *argv])
    assert ["serve", *expand_config(parser, argv)] == theirs, changed("--config")


def test_vllms_help_shows_our_flags_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FlexibleArgumentParser, "_search_keyword", None)
    monkeypatch.setenv("QPROBE_ADMIN_API_KEY", "hunter2")
    for command, ours in (("serve", "--default-probe"), ("collect", "--reward-workers")):
        with pytest.raises(SystemExit) as ended:
            read_arguments([command, "--help=all"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert ours in shown
        assert "--tensor-parallel-size" in shown
        assert "hunter2" not in shown


def test_what_vllm_refuses_before_argparse_is_one_line() -> None:
    given = read_arguments(["serve", "--served-model-name", "x", "--port", "1", "org/model"])
    with pytest.raises(StartupError, match="should be provided as the first positional"):
        parse(given.argv, given.add_flags)


def test_both_parsers_read_the_same() -> None:
    """Of ours all, and of vLLM's what is checked before it is imported."""
    argv = [
        "serve",
        "org/m",
        "--probe",
        "a=b",
        "--schedule",
        "8:4,16:2",
        "--probe-layers",
        "3,final",
    ]
    argv += ["--verbose", "--port", "12", "--api-key", "x", "y", "--uds", "z", "--headless"]
    first = read_arguments(argv)
    second = parse(first.argv, first.add_flags)
    for name in vars(second).keys() & vars(first).keys():
        mine = getattr(first, name)
        assert mine is None or str(mine) == str(getattr(second, name)), name
    assert second.verbose
    collected = read_arguments(["collect", __file__, "-o", "out", "--n", "3", "--seed", "4"])
    both = parse(collected.argv, collected.add_flags)
    assert (both.prompts, both.output, both.n, both.seed) == (Path(__file__), Path("out"), 3, 4)
    assert both.model is None
