"""Usage of the objects that SDKs and frameworks really give back.

Each SDK runs for real and gets its answer from a transport of the test's own; no socket is opened. What is not
installed is skipped. The warnings of these libraries are theirs, and fail nothing here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from token_budget.metering._shapes import Reading, UnknownUsage, read
from token_budget.metering._usage import Usage

pytestmark = pytest.mark.filterwarnings("ignore")

ANSWERS = Path(__file__).parent / "answers"
HI: Any = [{"role": "user", "content": "Hi."}]


def case(file: str, name: str) -> tuple[Any, Reading]:
    """Return an answer of the table, and what it reads as."""
    cases = json.loads((ANSWERS / f"{file}.json").read_text(encoding="utf-8"))
    found = next(one for one in cases if one["name"] == name)
    return found["answer"], Reading(Usage(**found["usage"]), found["model"], found["service_tier"])


def clients(sdk: str, answer: Any) -> tuple[Any, Any]:
    """Return a client and an async one of the HTTP library that the SDK uses, which get the answer for everything."""
    base = importlib.import_module(sdk).DefaultHttpxClient
    http: Any = importlib.import_module(next(kind for kind in base.__mro__ if kind.__name__ == "Client").__module__)

    def answering(request: Any) -> Any:
        if isinstance(answer, list):
            named = [f"event: {one['type']}\n" if "type" in one else "" for one in answer]
            lines = [f"{name}data: {json.dumps(one)}\n\n" for name, one in zip(named, answer, strict=True)]
            body = "".join([*lines, "data: [DONE]\n\n" if "type" not in answer[0] else ""])
            return http.Response(200, headers={"content-type": "text/event-stream"}, content=body.encode())
        return http.Response(200, json=answer)

    transport = http.MockTransport(answering)
    return http.Client(transport=transport), http.AsyncClient(transport=transport)


def of_openai(answer: Any, *, is_async: bool = False) -> Any:
    openai = pytest.importorskip("openai")
    plain, concurrent = clients("openai", answer)
    if is_async:
        return openai.AsyncOpenAI(api_key="-", http_client=concurrent)
    return openai.OpenAI(api_key="-", http_client=plain)


def of_anthropic(answer: Any) -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(api_key="-", http_client=clients("anthropic", answer)[0])


# ---------------------------------------------------------------- SDKs


@pytest.mark.parametrize(
    "name", ["chat", "chat, reasoning", "chat, audio in and out", "chat, null details", "chat, written to the cache"]
)
def test_openai_chat(name: str) -> None:
    answer, expected = case("openai", name)
    assert read(of_openai(answer).chat.completions.create(model="m", messages=HI)) == expected


@pytest.mark.parametrize(
    "name",
    ["DeepSeek", "DeepSeek, before it had details", "Moonshot", "xAI", "OpenRouter", "Perplexity", "Groq", "Mistral"],
)
def test_openai_chat_of_another_provider_whose_counts_the_sdk_does_not_know(name: str) -> None:
    answer, expected = case("compatible", name)
    assert read(of_openai(answer).chat.completions.create(model="m", messages=HI)) == expected


@pytest.mark.parametrize(
    "name", ["responses", "responses, two searches and an opened page", "responses, written to the cache"]
)
def test_openai_responses(name: str) -> None:
    answer, expected = case("openai", name)
    assert read(of_openai(answer).responses.create(model="m", input="Hi.")) == expected


def test_openai_embeddings_and_raw_answers() -> None:
    answer, expected = case("openai", "embeddings")
    assert read(of_openai(answer).embeddings.create(model="m", input="a", encoding_format="float")) == expected
    raw = of_openai(answer).embeddings.with_raw_response.create(model="m", input="a", encoding_format="float")
    assert read(raw.parse()) == expected


def test_openai_chat_stream() -> None:
    answer, expected = case("streams", "OpenAI chat, the extra chunk")
    chunks = list(of_openai(answer).chat.completions.create(model="m", messages=HI, stream=True))
    assert len(chunks) == len(answer)
    assert read(chunks) == expected


def test_openai_responses_with_images_that_a_tool_made() -> None:
    answer, expected = case("openai", "responses, tools that are billed beside it")
    answer = {**answer, "tools": [{"type": "image_generation", "model": "gpt-image-2"}]}
    reading = read(of_openai(answer).responses.create(model="m", input="Draw."))
    assert reading[:3] == expected[:3]
    assert [(one.model, one.output) for one in reading.images] == [("gpt-image-2", 1_056)]
    image = {"id": "i", "type": "image_generation_call", "status": "completed", "quality": "low", "size": "1024x1024"}
    answer = {**answer, "output": [image], "tool_usage": None}
    assert read(of_openai(answer).responses.create(model="m", input="Draw.")).images[0].image_output == 196


@pytest.mark.parametrize("name", ["OpenAI responses", "OpenAI responses, cut short by its limit"])
def test_openai_responses_stream(name: str) -> None:
    answer, expected = case("streams", name)
    assert read(list(of_openai(answer).responses.create(model="m", input="Hi.", stream=True))) == expected


@pytest.mark.parametrize(
    "name", ["message", "message, kept for an hour", "message, plain", "message, nulls", "message, searches"]
)
def test_anthropic_messages(name: str) -> None:
    answer, expected = case("anthropic", name)
    assert read(of_anthropic(answer).messages.create(model="m", max_tokens=9, messages=HI)) == expected


@pytest.mark.parametrize("name", ["Anthropic", "Anthropic, the input grown by a search"])
def test_anthropic_stream(name: str) -> None:
    answer, expected = case("streams", name)
    events = list(of_anthropic(answer).messages.create(model="m", max_tokens=9, messages=HI, stream=True))
    assert read(events) == expected
    with of_anthropic(answer).messages.stream(model="m", max_tokens=9, messages=HI) as stream:
        assert read(stream.get_final_message()).usage.total_tokens == expected.usage.total_tokens


@pytest.mark.parametrize(
    "name",
    ["plain", "thoughts", "thoughts without an answer", "cached", "audio in, with a tool", "audio out", "Vertex"],
)
def test_gemini(name: str) -> None:
    types = pytest.importorskip("google.genai.types")
    answer, expected = case("gemini", name)
    assert read(types.GenerateContentResponse.model_validate(answer)) == expected


def test_gemini_stream() -> None:
    types = pytest.importorskip("google.genai.types")
    answer, expected = case("streams", "Gemini, an array")
    assert read([types.GenerateContentResponse.model_validate(one) for one in answer]) == expected


def test_groq() -> None:
    groq = pytest.importorskip("groq")
    answer, expected = case("compatible", "Groq")
    client = groq.Groq(api_key="-", http_client=clients("groq", answer)[0])
    assert read(client.chat.completions.create(model="m", messages=HI)) == expected
    last, expected = case("compatible", "Groq, the last chunk of a stream")
    client = groq.Groq(api_key="-", http_client=clients("groq", [last])[0])
    assert read(list(client.chat.completions.create(model="m", messages=HI, stream=True))) == expected


def test_mistral() -> None:
    models = pytest.importorskip("mistralai.client.models")
    answer, expected = case("compatible", "Mistral")
    assert read(models.ChatCompletionResponse.model_validate(answer)) == expected
    chunk = {**answer, "choices": [{"index": 0, "delta": {"content": "Hi."}, "finish_reason": "stop"}]}
    chunk = {**chunk, "object": "chat.completion.chunk"}
    assert read([models.CompletionEvent.model_validate({"data": chunk})]) == expected


def test_bedrock() -> None:
    boto3 = pytest.importorskip("boto3")
    stub = pytest.importorskip("botocore.stub")
    answer, expected = case("others", "Bedrock Converse, cached")
    keys = {"aws_access_key_id": "-", "aws_secret_access_key": "-"}
    client = boto3.client("bedrock-runtime", region_name="us-east-1", **keys)
    with stub.Stubber(client) as stubber:
        stubber.add_response("converse", answer)
        assert read(client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "Hi."}]}])) == expected


def test_cohere() -> None:
    """Its SDK turns counts into floats; 5.0 is a count, and 5.5 is none."""
    cohere = pytest.importorskip("cohere")
    models = pytest.importorskip("cohere.core.unchecked_base_model")
    answer, expected = case("others", "Cohere chat")
    chat = models.construct_type(type_=cohere.V2ChatResponse, object_=answer)
    assert type(chat.usage.billed_units.input_tokens) is float
    assert read(chat) == expected
    answer["usage"]["billed_units"]["input_tokens"] = 5.5
    with pytest.raises(UnknownUsage, match="input_tokens"):
        read(models.construct_type(type_=cohere.V2ChatResponse, object_=answer))
    answer, expected = case("others", "Cohere embed")
    assert read(models.construct_type(type_=cohere.EmbedByTypeResponse, object_=answer)) == expected


# ---------------------------------------------------------------- LangChain


def of_langchain(answer: Any, **options: Any) -> Any:
    langchain_openai = pytest.importorskip("langchain_openai")
    return langchain_openai.ChatOpenAI(model="m", api_key="-", http_client=clients("openai", answer)[0], **options)


def test_langchain_message() -> None:
    answer, expected = case("openai", "chat, audio in and out")
    assert read(of_langchain(answer).invoke("Hi.")) == expected


def test_langchain_responses_message() -> None:
    answer, expected = case("openai", "responses")
    assert read(of_langchain(answer, use_responses_api=True).invoke("Hi.")) == expected


def test_langchain_names_the_tier_in_the_names_of_its_counts() -> None:
    answer, expected = case("openai", "chat")
    reading = read(of_langchain({**answer, "service_tier": "priority"}).invoke("Hi."))
    assert reading == expected._replace(service_tier="priority")


def test_langchain_result_of_two_prompts_with_two_choices_each() -> None:
    answer, expected = case("openai", "chat")
    answer["choices"] *= 2
    message = pytest.importorskip("langchain_core.messages").HumanMessage("Hi.")
    result = of_langchain(answer).generate([[message], [message]])
    assert [len(choices) for choices in result.generations] == [2, 2]
    assert read(result).usage == expected.usage + expected.usage
    assert sum(map(Usage.from_response, result.flatten())) == expected.usage + expected.usage


def test_langchain_stream() -> None:
    answer, expected = case("streams", "OpenAI chat, the extra chunk")
    chunks = list(of_langchain(answer, stream_usage=True).stream("Hi."))
    assert read(chunks).usage == expected.usage
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert read(whole).usage == expected.usage


@pytest.mark.parametrize("name", ["message", "message, kept for an hour", "message, plain"])
def test_langchain_message_of_claude(name: str) -> None:
    langchain_anthropic = pytest.importorskip("langchain_anthropic")
    answer, expected = case("anthropic", name)
    model = langchain_anthropic.ChatAnthropic(model="m", api_key="-", max_tokens=9)
    model.__dict__["_client"] = of_anthropic(answer)  # it makes its own at the first call, and keeps it here
    assert read(model.invoke("Hi.")) == expected


def test_langchain_messages_of_an_agent() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    told = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
    state = {
        "messages": [
            messages.HumanMessage("Hi."),
            messages.AIMessage("4?", usage_metadata=told),
            messages.ToolMessage("4", tool_call_id="t"),
            messages.AIMessage("4!", usage_metadata=told),
        ]
    }
    assert Usage.from_response(state) == Usage(input_tokens=18, output_tokens=6)
    with pytest.raises(UnknownUsage):
        Usage.from_response(messages.AIMessage("Hi."))


# ---------------------------------------------------------------- LiteLLM, pydantic-ai, openai-agents


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks the network for prices
    pytest.importorskip("openai")
    return pytest.importorskip("litellm")


def test_litellm(litellm: Any) -> None:
    answer, expected = case("openai", "chat")
    reading = read(litellm.completion(model="openai/gpt-4o", messages=HI, client=of_openai(answer), api_key="-"))
    assert reading.usage == expected.usage
    answer, expected = case("frameworks", "LiteLLM, Claude")
    assert read(litellm.ModelResponse(**{**answer, "usage": litellm.Usage(**answer["usage"])})) == expected


def test_litellm_stream(litellm: Any) -> None:
    answer, expected = case("streams", "OpenAI chat, the extra chunk")
    answer[1]["choices"][0]["finish_reason"] = "stop"
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "api_key": "-"}
    chunks = list(litellm.completion(model="openai/gpt-4o", messages=HI, client=of_openai(answer), **options))
    assert Usage.from_response(chunks).input_tokens == expected.usage.input_tokens
    assert Usage.from_response(chunks).output_tokens == expected.usage.output_tokens


def test_pydantic_ai() -> None:
    pytest.importorskip("openai")
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    answer, expected = case("openai", "chat, reasoning")
    provider = providers.OpenAIProvider(openai_client=of_openai(answer, is_async=True))
    result = pydantic_ai.Agent(models.OpenAIChatModel("gpt-5", provider=provider)).run_sync("Hi.")
    assert Usage.from_response(result) == expected.usage
    assert Usage.from_response(result._state) == expected.usage
    assert Usage.from_response(result.all_messages()) == expected.usage
    assert read(result.all_messages()[-1]) == expected
    twice = result.all_messages() + result.all_messages()
    assert Usage.from_response(twice) == expected.usage + expected.usage


def test_pydantic_ai_usage_of_claude_and_of_none() -> None:
    usages = pytest.importorskip("pydantic_ai.usage")
    one = usages.RequestUsage(input_tokens=300, cache_write_tokens=100, cache_read_tokens=150, output_tokens=40)
    expected = Usage(input_tokens=300, output_tokens=40, cache_read_input_tokens=150, cache_creation_input_tokens=100)
    assert Usage.from_response(one) == expected
    for nothing in (usages.RequestUsage(), usages.RunUsage()):
        with pytest.raises(UnknownUsage):
            Usage.from_response(nothing)


def agents_result(answer: Any, model: Callable[[Any, Any], Any]) -> Any:
    agents = pytest.importorskip("agents")
    agents.set_tracing_disabled(True)
    agent = agents.Agent(name="a", model=model(agents, of_openai(answer, is_async=True)))
    return agents.Runner.run_sync(agent, "Hi.")


def test_openai_agents_chat() -> None:
    answer, expected = case("openai", "chat, reasoning")
    result = agents_result(answer, lambda agents, client: agents.OpenAIChatCompletionsModel("gpt-5", client))
    assert Usage.from_response(result) == expected.usage
    assert Usage.from_response(result.context_wrapper.usage) == expected.usage
    assert Usage.from_response(result.raw_responses) == expected.usage


def test_openai_agents_responses() -> None:
    answer, expected = case("openai", "responses")
    result = agents_result(answer, lambda agents, client: agents.OpenAIResponsesModel("gpt-5", client))
    assert Usage.from_response(result) == expected.usage
    assert Usage.from_response(result.raw_responses + result.raw_responses) == expected.usage + expected.usage
    agents = pytest.importorskip("agents")
    with pytest.raises(UnknownUsage):
        Usage.from_response(agents.Usage())
