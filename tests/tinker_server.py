"""A small server that speaks the Tinker protocol: for tests, and as a model of a busy cluster.

With a folder it trains the real (tiny) model in it, by the embedded engine's own layers but with a
loss and an update of its own, so that a test of the client tests the client. Without one it only
pretends: a completion takes `delay` seconds, and `workers` of them run at once. As with SkyRL, a
policy has one of few places, answers with its newest sampling weights whatever path is asked, and
what was saved outlives the server: start another on the same `state` folder. It answers clients of
any version, in JSON or protobuf (`tinker_proto`), unless `app.state` leaves something out. Not
here: accounts.

    python tests/tinker_server.py --state DIR --port 9001 [--folder MODEL | --delay 0.5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tinker_proto
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

Json = dict[str, Any]
BASE = "tiny-on-a-cluster"
PLACES = 2
"""Most policies at once."""


class Model:
    """The real thing, small: one engine, its policies swapped in as they are asked for."""

    def __init__(self, folder: Path, state: Path) -> None:
        from rftkit.server.engine.torch.engine import TorchEngine

        self.engine = TorchEngine(folder, name=BASE)
        self.state = state
        self.current: str | None = None
        self.policies: set[str] = set()
        self.lock = threading.Lock()

    def create(self, policy: str, lora: Json) -> None:
        from rftkit.server.engine.values import LoraConfig

        with self.lock:
            self._put_away()
            self.engine.start_policy(LoraConfig(lora["rank"], 32.0), lora.get("seed") or 0)
            self.current = policy
            self.policies.add(policy)

    def _put_away(self) -> None:
        if self.current is not None:
            folder = self.state / "away" / self.current
            folder.mkdir(parents=True, exist_ok=True)
            self.engine.save(folder)

    def _take(self, policy: str) -> None:
        if policy not in self.policies:
            raise KeyError(f"no model {policy}")
        if policy != self.current:
            self._put_away()
            self.engine.load(self.state / "away" / policy)
            self.current = policy

    def forward_backward(self, policy: str, given: Json, *, learns: bool = True) -> Json:
        import torch

        from rftkit.server.engine.torch.logprobs import token_logprobs
        from rftkit.server.engine.torch.packed import Packed

        config = given.get("loss_fn_config") or {}
        outputs = []
        with self.lock:
            self._take(policy)
            for datum in given["data"]:
                tokens = [t for chunk in datum["model_input"]["chunks"] for t in chunk["tokens"]]
                inputs = {k: v["data"] for k, v in datum["loss_fn_inputs"].items()}
                states = self.engine.hidden(
                    torch.tensor(tokens), Packed([len(tokens)], [[]], self.engine.device)
                )
                targets = torch.tensor(inputs["target_tokens"])
                logprobs = token_logprobs(states, self.engine.head, targets, None, 1.0)
                outputs.append(_logprobs(logprobs.detach().tolist()))
                if given["loss_fn"] == "cross_entropy":
                    loss = -(logprobs * torch.tensor(inputs["weights"])).sum()
                    if learns:
                        loss.backward()
                    continue
                ratio = torch.exp(logprobs - torch.tensor(inputs["logprobs"]))
                gain = ratio * torch.tensor(inputs["advantages"])
                if given["loss_fn"] == "ppo":
                    low, high = config["clip_low_threshold"], config["clip_high_threshold"]
                    cut = ratio.clamp(low, high) * torch.tensor(inputs["advantages"])
                    gain = torch.minimum(gain, cut)
                (-gain.sum()).backward()
        return {"loss_fn_output_type": "scalar", "loss_fn_outputs": outputs, "metrics": {}}

    def optim_step(self, policy: str, adam: Json) -> Json:
        import torch

        with self.lock:
            self._take(policy)
            weights, optimizer = self.engine.policies.trained()
            bound = adam.get("grad_clip_norm") or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), bound)
            for group in optimizer.param_groups:
                group.update(
                    lr=adam["learning_rate"], betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"]
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for block in self.engine.blocks:
                block.refresh()
        return {"metrics": {"grad_norm": float(norm)}}

    def forget(self, policy: str) -> None:
        with self.lock:
            self.policies.discard(policy)
            self.current = None if self.current == policy else self.current

    def save(self, policy: str, kind: str, name: str) -> None:
        folder = self.state / policy / kind / name
        folder.mkdir(parents=True)
        with self.lock:
            self._take(policy)
            (self.engine.save_adapter if kind == "sampler_weights" else self.engine.save)(folder)

    def load(self, policy: str, source: Path) -> None:
        with self.lock:
            self._take(policy)
            self.engine.load(source)

    def sample(self, adapter: Path | None, request: Json) -> Json:
        from rftkit.server.engine.values import SampleRequest

        params = request["sampling_params"]
        prompt = [t for chunk in request["prompt"]["chunks"] for t in chunk["tokens"]]
        wanted = SampleRequest(
            prompt,
            [(params.get("seed") or 0, i) for i in range(request["num_samples"])],
            params["max_tokens"],
            params.get("temperature", 1.0),
            params.get("top_p", 1.0),
        )
        with self.lock:
            [group] = self.engine.sample([wanted], adapter)
        return {
            "sequences": [
                {"stop_reason": c.stop_reason, "tokens": c.tokens, "logprobs": c.sampling_logprobs}
                for c in group
            ]
        }


def _logprobs(values: list[float]) -> Json:
    return {"logprobs": {"data": values, "dtype": "float32", "shape": [len(values)]}}


class Pretence:
    """A cluster without a model: completions of random tokens that take their time."""

    def __init__(self, state: Path, delay: float, workers: int, tokens: int) -> None:
        self.state, self.delay, self.workers, self.tokens = state, delay, workers, tokens
        self.slots = threading.Semaphore(workers)
        self.policies: set[str] = set()
        self._lock = threading.Lock()
        self._working, self._since = 0, 0.0
        self._busy_seconds = self._slot_seconds = 0.0

    def stats(self) -> Json:
        """Seconds in which anything was computed, and those of all slots together."""
        with self._lock:
            running = time.monotonic() - self._since if self._working else 0.0
            return {"busy": self._busy_seconds + running, "slots": self._slot_seconds}

    def _spend(self, seconds: float) -> None:
        with self.slots:
            self._count(+1)
            time.sleep(seconds)
            self._count(-1)
        with self._lock:
            self._slot_seconds += seconds

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._working:
                self._busy_seconds += now - self._since
            self._working, self._since = self._working + change, now

    def create(self, policy: str, lora: Json) -> None:
        self.policies.add(policy)

    def forward_backward(self, policy: str, given: Json, *, learns: bool = True) -> Json:
        # As much for a completion as sampling it costs with every slot at work.
        self._spend(self.delay * len(given["data"]) / 64 / self.workers)
        outputs = []
        for datum in given["data"]:
            values = datum["loss_fn_inputs"]["logprobs"]["data"]
            outputs.append(
                {"logprobs": {"data": values, "dtype": "float32", "shape": [len(values)]}}
            )
        return {"loss_fn_output_type": "scalar", "loss_fn_outputs": outputs, "metrics": {}}

    def optim_step(self, policy: str, adam: Json) -> Json:
        return {"metrics": {"grad_norm": 1.0}}

    def forget(self, policy: str) -> None:
        self.policies.discard(policy)

    def save(self, policy: str, kind: str, name: str) -> None:
        (self.state / policy / kind / name).mkdir(parents=True)

    def load(self, policy: str, source: Path) -> None: ...

    def sample(self, adapter: Path | None, request: Json) -> Json:
        draw = random.Random(request["sampling_params"].get("seed"))
        self._spend(self.delay * draw.uniform(0.5, 1.5))

        def sequence() -> Json:
            tokens = [draw.randrange(3, 40) for _ in range(self.tokens)]
            return {"stop_reason": "stop", "tokens": tokens, "logprobs": [-1.0] * len(tokens)}

        return {"sequences": [sequence() for _ in range(request["num_samples"])]}


def app_of(backend: Model | Pretence, state: Path, threads: int = 8) -> FastAPI:
    """The routes that the official client calls."""
    app = FastAPI()
    pool = ThreadPoolExecutor(threads)
    training = ThreadPoolExecutor(1)  # gradients and updates of a server happen in order
    futures: dict[str, Future[Any]] = {}
    samplers: dict[str, str | None] = {}
    newest: dict[str, Path] = {}
    app.state.calls = {}
    app.state.encodings = {"json", "protobuf"}  # SkyRL 0.3.0 has the first, 0.4.0 the second
    app.state.numbers_samples = True  # SkyRL does not

    def later(where: ThreadPoolExecutor, work: Callable[[], Any], **more: Any) -> Json:
        name = uuid.uuid4().hex
        futures[name] = where.submit(work)
        return {"future_id": name, "status": "pending", "request_id": name, **more}

    def saved(path: str, kind: str) -> Path:
        policy, found_kind, name = path.removeprefix("tinker://").split("/")
        folder = state / policy / kind / name
        if found_kind != kind or not folder.is_dir():
            raise HTTPException(404, f"no checkpoint {path}")
        return folder

    def create(policy: str, lora: Json) -> None:
        if len(backend.policies) >= PLACES:
            raise RuntimeError(f"Maximum number of LoRA adapters ({PLACES}) reached")
        backend.create(policy, lora)

    def known(policy: str) -> str:
        if policy not in backend.policies:
            raise HTTPException(404, f"Model {policy} not found")
        return policy

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Any:
        name = request.url.path.rpartition("/")[2]
        app.state.calls[name] = app.state.calls.get(name, 0) + 1
        return await call_next(request)

    @app.post("/api/v1/client/config")
    def config() -> Json:
        return {"pjwt_auth_enabled": False}

    @app.get("/api/v1/healthz")
    def healthz() -> Json:
        return {"status": "ok"}

    @app.get("/stats")
    def stats() -> Json:
        return backend.stats() if isinstance(backend, Pretence) else {}

    @app.get("/api/v1/get_server_capabilities")
    def capabilities() -> Json:
        return {"supported_models": [{"model_name": BASE}]}

    @app.post("/api/v1/create_session")
    def create_session() -> Json:
        return {"type": "create_session", "session_id": f"session-{uuid.uuid4().hex[:8]}"}

    @app.post("/api/v1/sessions/{session}/finish")
    def finish(session: str) -> Json:
        return {}

    @app.post("/api/v1/session_heartbeat")
    def heartbeat() -> Json:
        return {"type": "session_heartbeat"}

    @app.post("/api/v1/telemetry")
    def telemetry() -> Json:
        return {"status": "accepted"}

    @app.post("/api/v1/create_model")
    async def create_model(request: Request) -> Json:
        body = await request.json()
        policy = f"model_{uuid.uuid4().hex[:8]}"
        lora = body.get("lora_config") or {"rank": 16}

        def work() -> Json:
            create(policy, lora)
            return {"model_id": policy, "base_model": body["base_model"], "lora_config": lora}

        return later(
            training, work, model_id=policy, base_model=body["base_model"], lora_config=lora
        )

    @app.post("/api/v1/unload_model")
    async def unload_model(request: Request) -> Json:
        policy = known((await request.json())["model_id"])
        return later(training, lambda: backend.forget(policy), model_id=policy)

    @app.post("/api/v1/get_info")
    async def get_info(request: Request) -> Json:
        policy = known((await request.json())["model_id"])
        data = {"base_model": BASE, "lora_config": {"rank": 16}, "model_name": BASE}
        return {"model_id": policy, "status": "created", "model_data": data}

    @app.post("/api/v1/weights_info")
    async def weights_info(request: Request) -> Json:
        saved((await request.json())["tinker_path"], "weights")
        return {"base_model": BASE, "is_lora": True, "lora_rank": 16}

    @app.post("/api/v1/forward_backward")
    async def forward_backward(request: Request) -> Json:
        if tinker_proto.CONTENT_TYPE in request.headers["content-type"]:
            body = tinker_proto.forward_backward_body(await request.body())
        elif "json" in app.state.encodings:
            body = await request.json()
        else:
            raise HTTPException(400, "forward_backward requires a application/x-protobuf body")
        policy, learns = known(body["model_id"]), not body.get("forward_only")
        given = body["forward_backward_input"]
        return later(training, lambda: backend.forward_backward(policy, given, learns=learns))

    @app.post("/api/v1/forward")
    async def forward(request: Request) -> Json:
        body = await request.json()
        policy = known(body["model_id"])
        given = body["forward_input"]
        return later(training, lambda: backend.forward_backward(policy, given, learns=False))

    @app.post("/api/v1/optim_step")
    async def optim_step(request: Request) -> Json:
        body = await request.json()
        policy = known(body["model_id"])
        return later(training, lambda: backend.optim_step(policy, body["adam_params"]))

    async def keep(request: Request, kind: str) -> Json:
        body = await request.json()
        policy = known(body["model_id"])
        name = body.get("path") or f"s{body['sampling_session_seq_id']}-{body['seq_id']}"
        path = f"tinker://{policy}/{kind}/{name}"
        said = "save_weights" if kind == "weights" else "save_weights_for_sampler"
        answer: Json = {"path": path.replace("/sampler_weights", ""), "type": said}
        if not body.get("path"):
            answer = {"path": None, "type": said, "sampling_session_id": path}
            samplers[path] = path

        def work() -> Json:
            backend.save(policy, kind, name)
            if kind == "sampler_weights":
                newest[policy] = saved(path, kind)
            return answer

        return later(training, work)

    @app.post("/api/v1/save_weights")
    async def save_weights(request: Request) -> Json:
        return await keep(request, "weights")

    @app.post("/api/v1/save_weights_for_sampler")
    async def save_weights_for_sampler(request: Request) -> Json:
        return await keep(request, "sampler_weights")

    @app.post("/api/v1/load_weights")
    async def load_weights(request: Request) -> Json:
        body = await request.json()
        source = saved(body["path"], "weights")
        if is_new := body.get("session_id") is not None:  # the policy is created by loading
            policy = f"{body['session_id']}:train:{body['model_seq_id']}"
        else:
            policy = known(body["model_id"])

        def work() -> Json:
            if is_new:
                create(policy, {"rank": 16})
            backend.load(policy, source)
            return {"type": "load_weights"}

        return later(training, work)

    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(request: Request) -> Json:
        body = await request.json()
        name = uuid.uuid4().hex
        if body.get("model_path"):
            saved(body["model_path"], "sampler_weights")
        samplers[name] = body.get("model_path")
        return {"type": "create_sampling_session", "sampling_session_id": name}

    @app.post("/api/v1/asample")
    async def asample(request: Request) -> Json:
        body = await request.json()
        if body["sampling_session_id"] not in samplers:
            raise HTTPException(404, "Sampling session not found")
        adapter = None
        if path := samplers[body["sampling_session_id"]]:
            adapter = newest[known(path.removeprefix("tinker://").split("/")[0])]
        ids = [uuid.uuid4().hex for _ in range(body["num_samples"])]
        more = {"sample_sequence_ids": ids} if app.state.numbers_samples else {}
        return later(pool, lambda: backend.sample(adapter, body), **more)

    @app.post("/api/v1/retrieve_future")
    async def retrieve_future(request: Request) -> Any:
        future = futures.get((await request.json())["request_id"])
        if future is None:
            raise HTTPException(404, "Future not found")
        try:
            result = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), 20)
            accepted = request.headers.get("accept", "")
            wants = tinker_proto.CONTENT_TYPE in accepted and "protobuf" in app.state.encodings
            content = tinker_proto.packed(result) if wants and isinstance(result, dict) else None
            return (
                result if content is None else Response(content, 200, {}, tinker_proto.CONTENT_TYPE)
            )
        except TimeoutError:
            return JSONResponse({"type": "try_again", "queue_state": "active"}, 408)
        except Exception as error:
            return {"error": str(error), "category": "server"}

    @app.get("/api/v1/training_runs/{policy}/checkpoints/{name}/archive")
    def archive(request: Request, policy: str, name: str) -> Any:
        return RedirectResponse(
            f"{request.base_url}archive/{policy}/{name}",
            302,
            {"Expires": "Thu, 01 Dec 2994 16:00:00 GMT"},
        )

    @app.get("/archive/{policy}/{name}")
    def download(policy: str, name: str) -> Response:
        folder = saved(f"tinker://{policy}/sampler_weights/{name}", "sampler_weights")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, file.name)
        return Response(packed.getvalue(), media_type="application/octet-stream")

    return app


@contextlib.contextmanager
def running(backend: Model | Pretence, state: Path, port: int = 0) -> Iterator[tuple[str, FastAPI]]:
    """Serve in a thread of this process; the address and the application."""
    import socket

    import uvicorn

    app = app_of(backend, state)
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    """Serve until killed."""
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    if options.folder:
        backend: Model | Pretence = Model(options.folder, options.state)
    else:
        backend = Pretence(options.state, options.delay, options.workers, options.tokens)
    app = app_of(backend, options.state, threads=options.workers)
    uvicorn.run(app, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
