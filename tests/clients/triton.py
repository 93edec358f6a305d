#!/usr/bin/env python3
"""Calls Triton with its own clients, over HTTP and gRPC, and prints what they saw.

The plan comes as JSON on stdin: {"address": "host:port", "key": ..., "stranger": ...}; the answer goes as JSON to stdout:
one entry for each call, by its name.
"""

import json
import queue
import sys

import numpy
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

LEFT = numpy.array([1, 2, 3, 4], dtype=numpy.int32)
RIGHT = numpy.array([10, 20, 30, 40], dtype=numpy.int32)


def inputs(client):
    made = [client.InferInput(name, [4], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor, values in zip(made, (LEFT, RIGHT)):
        tensor.set_data_from_numpy(values)
    return made


def refusal(make):
    try:
        make()
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": error.message()}
    return None


def stream(client, headers, models):
    """Sends one request for each model through one stream; returns the sums, and the first error."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    try:
        sums, error = [], None
        for model in models:
            client.async_stream_infer(model, inputs(over_grpc))
            result, error = answers.get(timeout=30)
            if error is not None:
                break
            sums.append(result.as_numpy("OUTPUT0").tolist())
        return {"sums": sums, "error": str(error.status()) if error else None}
    finally:
        client.stop_stream()


def main():
    plan, saw = json.load(sys.stdin), {}
    key = {"authorization": f"Bearer {plan['key']}"}
    # The HTTP client writes into the headers that it is given, so each call gets a copy.
    stranger = {"authorization": f"Bearer {plan['stranger']}"}

    client = over_http.InferenceServerClient(plan["address"])
    saw["http infer"] = client.infer("simple", inputs(over_http), headers=dict(key)).as_numpy("OUTPUT0").tolist()
    binary = [over_http.InferRequestedOutput("OUTPUT0", binary_data=True)]
    result = client.infer("simple", inputs(over_http), model_version="1", outputs=binary, headers=dict(key))
    saw["http infer binary"] = result.as_numpy("OUTPUT0").tolist()
    saw["http unknown key"] = refusal(lambda: client.infer("simple", inputs(over_http), headers=dict(stranger)))
    saw["http unknown model"] = refusal(lambda: client.infer("nobody", inputs(over_http), headers=dict(key)))
    saw["http load"] = refusal(lambda: client.load_model("simple", headers=dict(key)))

    client = over_grpc.InferenceServerClient(plan["address"])
    saw["grpc live"] = client.is_server_live(headers=dict(key))
    saw["grpc infer"] = client.infer("simple", inputs(over_grpc), headers=dict(key)).as_numpy("OUTPUT0").tolist()
    saw["grpc infer by alias"] = client.infer("adder", inputs(over_grpc), headers=dict(key)).as_numpy("OUTPUT0").tolist()
    saw["grpc unknown key"] = refusal(lambda: client.infer("simple", inputs(over_grpc), headers=dict(stranger)))
    saw["grpc unknown model"] = refusal(lambda: client.infer("nobody", inputs(over_grpc), headers=dict(key)))
    saw["grpc load"] = refusal(lambda: client.load_model("simple", headers=dict(key)))
    saw["grpc unload"] = refusal(lambda: client.unload_model("simple", headers=dict(key)))
    saw["grpc stream"] = stream(client, dict(key), ["simple", "simple", "simple"])
    saw["grpc stream by alias"] = stream(client, dict(key), ["adder", "adder"])
    saw["grpc stream of two models"] = stream(client, dict(key), ["simple", "story"])
    json.dump(saw, sys.stdout)


if __name__ == "__main__":
    main()
