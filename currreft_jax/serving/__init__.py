"""The OpenAI-compatible server: requests over HTTP enter the batch of the sampler as they come."""
