"""Questions to an OpenAI-compatible server: retries, budgets, and a ledger that is never asked twice; loads no JAX."""

from currreft_jax.endpoint.client import Endpoint, open_endpoint
from currreft_jax.endpoint.errors import EndpointError
from currreft_jax.endpoint.reply import Failure, FailureReason, Reply, Usage
from currreft_jax.endpoint.request import Decoding, Message, Request
from currreft_jax.endpoint.settings import EndpointSettings, ImageEncoding

__all__ = [
    "Decoding",
    "Endpoint",
    "EndpointError",
    "EndpointSettings",
    "Failure",
    "FailureReason",
    "ImageEncoding",
    "Message",
    "Reply",
    "Request",
    "Usage",
    "open_endpoint",
]
