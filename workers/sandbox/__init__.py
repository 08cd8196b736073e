"""The sandbox LLM: an OpenAI-compatible server that stands in where there is no key, and says so."""
