"""The sandbox LLM: an OpenAI-compatible server that stands in where there is no key, and says so.

`server` speaks HTTP, `chat` answers a request, `answers` knows the demo's destinations, `instances` (with `scalars`,
`patterns`, `conjunction`) draws a valid instance of any JSON Schema, `faults` spoils answers on demand.
"""
