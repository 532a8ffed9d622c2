"""Settings of a judge of answers."""

from dataclasses import dataclass, field
from enum import Enum

from currreft_jax.config.endpoint import EndpointLimits


class JudgeKind(Enum):
    """Who judges: the rewards' rules, without a network, or a model at an OpenAI-compatible server."""

    RULES = "rules"
    ENDPOINT = "endpoint"


@dataclass(slots=True)
class Judge:
    """A judge of answers.

    Attributes:
        kind: rules, or a model at a server.
        model: its name at the server.
        url: base URL of the server, such as `http://localhost:8000/v1`.
        max_new_tokens: token limit of a model's reply; one that thinks before it replies needs more.
        endpoint: how the server is asked, and what that may cost.
    """

    kind: JudgeKind = JudgeKind.RULES
    model: str = ""
    url: str = ""
    max_new_tokens: int = 1024
    endpoint: EndpointLimits = field(default_factory=EndpointLimits)
