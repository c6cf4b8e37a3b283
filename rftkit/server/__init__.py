"""The local platform: OpenAI's fine-tuning routes over models that really train.

`python -m rftkit.server` is a light HTTP process (app, api, wire, store); it starts one worker
process (worker, rft, rollout, engine) and talks to it by lines of JSON (link). Nothing here is
imported by the client tower; the two meet on HTTP.
"""
