"""Asks OpenAI-compatible servers, with retries, budgets and a ledger of all calls; loads no JAX."""

from currreft_jax.endpoint.budget import JobBudget
from currreft_jax.endpoint.client import Endpoint, open_endpoint
from currreft_jax.endpoint.errors import EndpointError
from currreft_jax.endpoint.ledger import recorded_calls
from currreft_jax.endpoint.reply import Failure, FailureReason, Reply, Usage
from currreft_jax.endpoint.request import Decoding, Message, Request, schema_format
from currreft_jax.endpoint.settings import EndpointSettings

__all__ = [
    "Decoding",
    "Endpoint",
    "EndpointError",
    "EndpointSettings",
    "Failure",
    "FailureReason",
    "JobBudget",
    "Message",
    "Reply",
    "Request",
    "Usage",
    "open_endpoint",
    "recorded_calls",
    "schema_format",
]
