"""The server: a model behind OpenAI's API, for every client that speaks it.

    HTTP ─▶ limits (host, origin, key, size) ─▶ endpoint: schema → prompt → Request ─▶ front ─▶ worker: Decoder ─▶ pieces ─▶ JSON or SSE

- `schema` is what may be asked, `errors` what is told when it cannot be had, `limits` who may ask, and how much;
- `chat`, `completions`, `embeddings`, `scores`, `adapters` are the endpoints, `apart` takes an answer apart into thought, text and calls;
- `worker` is the thread that owns the model, `front` the event loop's way to it;
- `app` puts them together, `server` listens.

fastapi, uvicorn and prometheus-client come with `pip install 'luthier[serve]'`; nothing outside this room imports them.
"""
