"""The local platform: OpenAI's fine-tuning routes over models that really train.

`python -m rftkit.server` is a light HTTP process (`http`, `api`, `evals`, `store`). It starts one
worker process (`worker`, `training`, `engine`); the two exchange JSON lines. The rest of rftkit
does not import the server; it uses the HTTP routes.
"""
