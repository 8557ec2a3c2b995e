"""Triton and OpenVINO Model Server on loopback: the KServe v2 protocol over what an export wrote.

The repository is read as the servers read it: Triton's `config.pbtxt` by NVIDIA's own message,
`config.json` with the keys that OpenVINO Model Server knows. A shape or type that the description
does not allow is refused, as the servers refuse it; the file runs on onnxruntime or OpenVINO.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype(np.float32)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/1)?/infer")
_OVMS_KEYS = {"name", "base_path", "target_device", "plugin_config", "shape", "batch_size", "nireq"}

Arrays = dict[str, NDArray[Any]]


@dataclass
class Tensor:
    """What a description says of an input or output: its type, and its shape outside and inside."""

    dtype: np.dtype[Any]
    dims: list[int]
    inner: list[int]


class Model:
    """A model as Triton serves it."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        self.config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert self.config.name == folder.name
        assert self.config.platform == "onnxruntime_onnx"
        assert self.config.HasField("dynamic_batching")
        self.session = onnxruntime.InferenceSession(
            folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        self.inputs = self._tensors(self.config.input, self.session.get_inputs())
        self.outputs = self._tensors(self.config.output, self.session.get_outputs())

    def _tensors(self, described: Any, real: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Check a description against the file, as Triton does when it loads a model."""
        ranks = {entry.name: len(entry.shape) for entry in real}
        types = {entry.name: entry.type for entry in real}
        found = {}
        for entry in described:
            name = model_config_pb2.DataType.Name(entry.data_type).removeprefix("TYPE_")
            dims = list(entry.dims)
            assert dims, "Triton has no shape without an axis"
            inner = list(entry.reshape.shape) if entry.HasField("reshape") else dims
            assert ranks[entry.name] == len(inner) + 1, entry.name
            assert types[entry.name] == f"tensor({ {'FP32': 'float', 'UINT8': 'uint8'}[name] })"
            found[entry.name] = Tensor(_DTYPES[name], dims, inner)
        return found

    def infer(self, arrays: Arrays, wanted: list[str]) -> Arrays:
        """Answer a request, or raise ValueError with what is wrong with it."""
        for name, array in arrays.items():
            tensor = self.inputs[name]
            fits = len(array.shape) == len(tensor.dims) + 1 and array.dtype == tensor.dtype
            if not fits or len(array) > self.config.max_batch_size:
                raise ValueError(f"unexpected shape or type for input '{name}': {array.shape}")
        names = wanted or list(self.outputs)
        answers = dict(zip(names, self.session.run(names, arrays), strict=True))
        for name, array in answers.items():
            if self.outputs[name].dims != self.outputs[name].inner:
                answers[name] = array.reshape(len(array), *self.outputs[name].dims)
        return answers


class OvmsModel:
    """A model as OpenVINO Model Server serves it."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import openvino

        assert set(config) <= _OVMS_KEYS  # its schema allows no others
        mount, name = config["base_path"].rsplit("/", 1)
        assert mount == "/models"
        self._model = openvino.Core().compile_model(
            str(folder / name / "1" / "model.onnx"),
            config["target_device"],
            config["plugin_config"],
        )

    def infer(self, arrays: Arrays, wanted: list[str]) -> Arrays:
        """Answer a request, or raise ValueError with what is wrong with it."""
        answers = {key.any_name: value for key, value in self._model(arrays).items()}
        return {name: answers[name] for name in wanted or answers}


def triton_models(repository: Path) -> dict[str, Any]:
    """Load a repository as `tritonserver --model-repository` does."""
    return {path.parent.name: Model(path.parent) for path in repository.glob("*/config.pbtxt")}


def ovms_models(folder: Path) -> dict[str, Any]:
    """Load a folder as `ovms --config_path /models/config.json` does."""
    entries = json.loads((folder / "config.json").read_text())["model_config_list"]
    return {one["config"]["name"]: OvmsModel(folder, one["config"]) for one in entries}


class Server:
    """Both protocols on free ports; a context manager."""

    def __init__(self, models: dict[str, Any]) -> None:
        handler = type("Handler", (_Http,), {"models": models})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._grpc = grpc.server(ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Grpc(models), self._grpc)
        self.http = f"127.0.0.1:{self._http.server_port}"
        self.grpc = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Server:
        Thread(target=self._http.serve_forever, daemon=True).start()
        self._grpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None).wait()


class _Http(BaseHTTPRequestHandler):
    """KServe v2 over HTTP, with the extension for tensors as bytes behind the JSON."""

    models: dict[str, Any]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        if parts[1:2] == ["models"] and parts[-1] == "config":
            from google.protobuf import json_format

            config = self.models[parts[2]].config
            text = json_format.MessageToJson(config, preserving_proto_field_name=True)
            self._reply(200, text.encode())
        else:
            self._reply(200 if parts[-1] in ("ready", "live") else 404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request, rest = json.loads(body[:length]), body[length:]
        match = _INFER.fullmatch(self.path)
        assert match
        try:
            arrays = {}
            for entry in request["inputs"]:
                size = entry["parameters"]["binary_data_size"]
                dtype = _DTYPES[entry["datatype"]]
                arrays[entry["name"]] = np.frombuffer(rest[:size], dtype).reshape(entry["shape"])
                rest = rest[size:]
            wanted = [entry["name"] for entry in request.get("outputs", [])]
            answers = self.models[match[1]].infer(arrays, wanted)
        except ValueError as error:
            self._reply(400, json.dumps({"error": str(error)}).encode())
            return
        head = json.dumps(
            {"model_name": match[1], "outputs": [_described(n, a) for n, a in answers.items()]}
        )
        blobs = b"".join(array.tobytes() for array in answers.values())
        self._reply(200, head.encode() + blobs, {"Inference-Header-Content-Length": str(len(head))})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": _NAMES[array.dtype],
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """KServe v2 over gRPC."""

    def __init__(self, models: dict[str, Any]) -> None:
        self._models = models

    def ModelReady(self, request: Any, _context: Any) -> Any:  # noqa: N802, ANN401
        return service_pb2.ModelReadyResponse(ready=request.name in self._models)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401
        arrays = {
            entry.name: np.frombuffer(raw, _DTYPES[entry.datatype]).reshape(list(entry.shape))
            for entry, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        wanted = [entry.name for entry in request.outputs]
        try:
            answers = self._models[request.model_name].infer(arrays, wanted)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        reply = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, array in answers.items():
            reply.outputs.add(name=name, datatype=_NAMES[array.dtype], shape=array.shape)
            reply.raw_output_contents.append(array.tobytes())
        return reply
