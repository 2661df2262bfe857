"""What a model's name may mean: prefixes of vendors and frameworks, ids of clouds, and names that are nobody's base."""

from __future__ import annotations

import pytest

from token_budget.metering._names import is_own, names, provider_of

SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.mark.parametrize(
    ("name", "provider", "found"),
    [
        ("gpt-5", None, [(None, "gpt-5")]),
        ("gpt-5", "azure", [("azure", "gpt-5"), (None, "gpt-5")]),
        ("openai/gpt-5", None, [("openai", "gpt-5"), (None, "openai/gpt-5"), (None, "gpt-5")]),
        ("openai:gpt-5", None, [("openai", "gpt-5"), (None, "openai:gpt-5"), (None, "gpt-5")]),
        (
            "openai/gpt-oss-120b",
            "groq",
            [
                ("groq", "openai/gpt-oss-120b"),
                ("openai", "gpt-oss-120b"),
                (None, "openai/gpt-oss-120b"),
                (None, "gpt-oss-120b"),
            ],
        ),
        ("models/gemini-2.5-pro", "google", [("google", "models/gemini-2.5-pro"), ("google", "gemini-2.5-pro")]),
        ("openrouter/openai/gpt-5", None, [("openrouter", "openai/gpt-5"), ("openai", "gpt-5")]),
        ("google-gla:gemini-2.5-pro", None, [("google", "gemini-2.5-pro")]),
        (SONNET, None, [("aws", SONNET), ("anthropic", "claude-sonnet-4-5-20250929-v1:0"), (None, SONNET)]),
        (
            f"us.{SONNET}",
            "aws",
            [("aws", f"us.{SONNET}"), ("aws", SONNET), ("anthropic", "claude-sonnet-4-5-20250929-v1:0")],
        ),
        ("amazon.nova-pro-v1:0", None, [("aws", "amazon.nova-pro-v1:0"), (None, "amazon.nova-pro-v1:0")]),
        (f"bedrock/converse/eu.{SONNET}", None, [("aws", f"converse/eu.{SONNET}"), ("aws", f"eu.{SONNET}")]),
        (
            f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.{SONNET}",
            None,
            [("aws", f"us.{SONNET}"), ("aws", SONNET)],
        ),
        (f"arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/{SONNET}", None, [("aws", SONNET)]),
        (
            "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc",
            None,
            [(None, "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc")],
        ),
        ("arn:aws:bedrock", None, [(None, "arn:aws:bedrock")]),
        (
            "projects/p/locations/l/publishers/google/models/gemini-2.5-pro",
            None,
            [("google", "google/gemini-2.5-pro"), ("google", "gemini-2.5-pro")],
        ),
        (
            "publishers/anthropic/models/claude-x",
            None,
            [("google", "anthropic/claude-x"), ("anthropic", "claude-x")],
        ),
        (
            "vertex_ai/claude-opus-4@20250514",
            None,
            [
                ("google", "claude-opus-4@20250514"),
                (None, "vertex_ai/claude-opus-4@20250514"),
                (None, "claude-opus-4@20250514"),
                ("google", "claude-opus-4"),
            ],
        ),
        ("chatgpt-4o-latest", None, [(None, "chatgpt-4o-latest"), ("openai", "chatgpt-4o-latest")]),
        (
            "azure/text-embedding-3-small",
            None,
            [
                ("azure", "text-embedding-3-small"),
                (None, "azure/text-embedding-3-small"),
                (None, "text-embedding-3-small"),
                ("openai", "text-embedding-3-small"),
            ],
        ),
        ("sonar-pro", None, [(None, "sonar-pro"), ("perplexity", "sonar-pro")]),
        ("models/", None, [(None, "models/")]),
        ("@", None, [(None, "@")]),
        ("unknown/gpt-5", None, [(None, "unknown/gpt-5")]),
        ("claude-3.5-sonnet", None, [(None, "claude-3.5-sonnet")]),
        ("us.x.claude", None, [(None, "us.x.claude")]),
        ("us.anthropic", None, [(None, "us.anthropic")]),
    ],
)
def test_names_are_tried_by_provider_then_prefix_then_cloud_then_bare(
    name: str, provider: str | None, found: list[tuple[str | None, str]]
) -> None:
    assert names(name, provider)[: len(found)] == found
    assert len(names(name, provider)) == len(set(names(name, provider))) <= 20


@pytest.mark.parametrize("name", ["gpt-5", "us.x.claude", "unknown/gpt-5", "models/", "@", "ft:gpt-4o:org::id"])
def test_a_name_without_a_meaning_stays_alone(name: str) -> None:
    assert names(name, None) == [(None, name)]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("ft:gpt-4o-mini-2024-07-18:org::id", True),
        ("openai/ft:gpt-4o:org::id", True),
        ("openai:ft:gpt-4o:org::id", True),
        ("davinci:ft-org-2023", True),
        ("tunedmodels/my-gemini", True),
        ("projects/p/locations/l/endpoints/123", True),
        (f"arn:aws:bedrock:us-east-1:1:custom-model/{SONNET}/abc", True),
        (f"arn:aws:bedrock:us-east-1:1:provisioned-model/{SONNET}", True),
        ("gpt-4o", False),
        ("soft:gpt", False),
        ("left-model", False),
        (SONNET, False),
    ],
)
def test_a_model_that_somebody_trained_is_not_its_base(name: str, own: bool) -> None:
    assert is_own(name) is own
    if own:
        assert not any("claude" in short and "/" not in short for _, short in names(name, None))


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("gpt-5", None, None),
        ("gpt-5", "azure", "azure"),
        ("groq/openai/gpt-oss-120b", None, "groq"),
        ("groq/openai/gpt-oss-120b", "openai", "openai"),
        (f"us.{SONNET}", None, "aws"),
    ],
)
def test_who_serves_it_is_the_one_given_else_the_one_that_the_name_says(
    name: str, given: str | None, found: str | None
) -> None:
    assert provider_of(name, given) == found


def test_a_name_of_prefixes_alone_ends() -> None:
    for name in ("openai/" * 80, "models:" * 70 + "x", "." * 500, "us." * 150, "@" * 500, "arn:" * 120, "/" * 500):
        assert len(names(name, "openai")) <= 20
