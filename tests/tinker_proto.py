"""The protobuf of newer Tinker clients, as a server reads and writes it.

The inverse of the client's own conversions, for the small server of the tests (`tinker_server`),
which speaks JSON inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Json = dict[str, Any]
CONTENT_TYPE = "application/x-protobuf"


def forward_backward_body(body: bytes) -> Json:
    """The JSON body that older clients send, and `forward_only`."""
    from tinker.proto import tinker_public_pb2 as pb

    given = pb.ForwardBackwardRequest()
    given.ParseFromString(body)
    data = [
        {
            "model_input": {"chunks": [
                {"tokens": np.frombuffer(chunk.encoded_text.tokens, np.int32).tolist()}
                for chunk in datum.model_input
            ]},
            "loss_fn_inputs": {
                name: {"data": np.frombuffer(tensor.dense, _numpy(pb, tensor.dtype)).tolist()}
                for name, tensor in datum.loss_fn_inputs.items()
            },
        }
        for datum in given.data
    ]  # fmt: skip
    config = dict(given.loss_fn_config)
    wanted = {"data": data, "loss_fn": given.loss_fn, "loss_fn_config": config or None}
    return {
        "model_id": given.model_id,
        "forward_backward_input": wanted,
        "forward_only": given.forward_only,
    }


def packed(result: Json) -> bytes | None:
    """A result of sampling or of an update as protobuf; None for other results."""
    if "sequences" in result:
        return _samples(result)
    if "loss_fn_outputs" in result:
        return _outputs(result)
    return None


def _samples(result: Json) -> bytes:
    from tinker.proto import tinker_public_pb2 as pb

    reasons = {"stop": pb.STOP_REASON_STOP, "length": pb.STOP_REASON_LENGTH}
    answer = pb.SampleResponse()
    for each in result["sequences"]:
        answer.sequences.add(
            stop_reason=reasons[each["stop_reason"]],
            tokens=np.asarray(each["tokens"], np.int32).tobytes(),
            logprobs=np.asarray(each["logprobs"], np.float32).tobytes(),
        )
    return bytes(answer.SerializeToString())


def _outputs(result: Json) -> bytes:
    from tinker.proto import tinker_public_pb2 as pb

    answer = pb.ForwardBackwardOutput(loss_fn_output_type=result["loss_fn_output_type"])
    for name, value in result["metrics"].items():
        answer.metrics[name] = value
    record = answer.loss_fn_outputs.add(num_datums=len(result["loss_fn_outputs"]))
    values = [np.asarray(e["logprobs"]["data"], np.float32) for e in result["loss_fn_outputs"]]
    offsets = np.cumsum([0, *(each.nbytes for each in values)]).astype(np.int64)
    tensor = record.fields["logprobs"]
    tensor.dtype = pb.DTYPE_FLOAT32
    tensor.data = b"".join(each.tobytes() for each in values)
    tensor.offsets = offsets.tobytes()
    return bytes(answer.SerializeToString())


def _numpy(pb: Any, dtype: int) -> Any:
    return np.float32 if dtype == pb.DTYPE_FLOAT32 else np.int64
