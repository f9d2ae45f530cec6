"""Runs google-research/bert's extract_features.py, as it is, on the installed TensorFlow.

BERT_REPO is a checkout of google-research/bert, written for TensorFlow 1; the flags are those of the script. A commit
before 2019 computes GELU by the error function, as this project does, and later ones by its tanh approximation.

    python benchmarks/google_features.py BERT_REPO --input_file=text.txt --output_file=features.jsonl ...
"""

import os
import sys
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow.compat.v1 as tensorflow_1  # noqa: E402

EPSILON = 1e-12  # of tf.contrib.layers.layer_norm in float32


class Estimator:
    """As much of tf.contrib.tpu.TPUEstimator as the script uses, to predict on this machine."""

    def __init__(self, model_fn, predict_batch_size, **settings):
        self._model_fn = model_fn
        self._batch_size = predict_batch_size

    def predict(self, input_fn, yield_single_examples):
        with tensorflow_1.Graph().as_default(), tensorflow_1.Session() as session:
            data = tensorflow_1.data.make_one_shot_iterator(input_fn({"batch_size": self._batch_size}))
            spec = self._model_fn(data.get_next(), None, tensorflow_1.estimator.ModeKeys.PREDICT, None)
            session.run(tensorflow_1.global_variables_initializer())
            while True:
                try:
                    outputs = session.run(spec.predictions)
                except tensorflow_1.errors.OutOfRangeError:
                    return
                for row in range(len(outputs["unique_id"])):
                    yield {name: values[row] for name, values in outputs.items()}


def layer_norm(inputs, begin_norm_axis, begin_params_axis, scope):
    """tf.contrib.layers.layer_norm over the last axis."""
    assert begin_norm_axis == begin_params_axis == -1
    with tensorflow_1.variable_scope(scope or "LayerNorm"):
        shape = inputs.shape[-1:]
        beta = tensorflow_1.get_variable("beta", shape, initializer=tensorflow_1.zeros_initializer())
        gamma = tensorflow_1.get_variable("gamma", shape, initializer=tensorflow_1.ones_initializer())
        mean, variance = tensorflow_1.nn.moments(inputs, [-1], keepdims=True)
        return tensorflow_1.nn.batch_normalization(inputs, mean, variance, beta, gamma, EPSILON)


def main():
    bert_repo, *flags = sys.argv[1:]
    tensorflow_1.disable_v2_behavior()
    tpu = SimpleNamespace(
        InputPipelineConfig=SimpleNamespace(PER_HOST_V2=None),
        RunConfig=lambda **settings: None,
        TPUConfig=lambda **settings: None,
        TPUEstimator=Estimator,
        TPUEstimatorSpec=SimpleNamespace,
    )
    tensorflow_1.contrib = SimpleNamespace(tpu=tpu, layers=SimpleNamespace(layer_norm=layer_norm))
    # Its scripts import TensorFlow 1 as tensorflow.
    sys.modules["tensorflow"] = tensorflow_1
    sys.path[0] = bert_repo
    import extract_features

    extract_features.FLAGS(["extract_features.py", *flags])
    extract_features.main(None)


if __name__ == "__main__":
    main()
