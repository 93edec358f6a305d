import time

import numpy
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            text = backend.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            sender = request.get_response_sender()
            for word in text.split():
                if word.startswith("pause:"):
                    time.sleep(int(word.removeprefix("pause:")) / 1000)
                    continue
                output = backend.Tensor("text_output", numpy.array([word.encode()], dtype=object))
                sender.send(backend.InferenceResponse([output]))
            sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
