"""One side of bench.py: trains BERT on random batches and prints the times of each step as JSON.

usage: bench_side.py SIDE '{"layers": 12, "batch": 8, "length": 128, "predictions": 20, "dropout": 0.1, "steps": 5}'

Every side does a full step: forward, backward, clipping to a global norm of 1, AdamW. TensorFlow and this project run
on Python 3.10, the others in the environment that bench.py makes.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

VOCABULARY, HIDDEN, HEADS, POSITIONS = 30522, 768, 12, 512
ACCUMULATED = 4  # batches that a step divides its sequences into, on the sides that accumulate gradients


def made_up_batch(size):
    """Returns the features of one batch by name, int64 except masked_lm_weights."""
    generator = np.random.default_rng(0)
    batch, length, predictions = size["batch"], size["length"], size["predictions"]
    return {
        "input_ids": generator.integers(0, VOCABULARY, (batch, length)),
        "input_mask": np.ones((batch, length), np.int64),
        "segment_ids": np.repeat(np.arange(length)[None] // (length // 2), batch, axis=0),
        "masked_lm_positions": np.sort(
            generator.permuted(np.tile(np.arange(length), (batch, 1)), axis=1)[:, :predictions]
        ),
        "masked_lm_ids": generator.integers(0, VOCABULARY, (batch, predictions)),
        "masked_lm_weights": np.ones((batch, predictions), np.float32),
        "next_sentence_labels": generator.integers(0, 2, (batch, 1)),
    }


def this_project(size, bfloat16=False, accumulates=False, checkpoints=False):
    """Returns a function that trains this project's model for one step, with BERT_KERNELS, and returns the loss.

    size["heads"], of 64 units each, are BERT-base's by default.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from config import parse_pretraining_args
    from engine import native, oneflow_loader

    flow = oneflow_loader.load()
    import bert_util
    import pretrain

    if bfloat16 and (obstacle := native.use_bfloat16(True)):
        raise SystemExit(f"no bfloat16: {obstacle}")
    heads, batches = size.get("heads", HEADS), ACCUMULATED if accumulates else 1
    hidden = 64 * heads
    config = bert_util.BertConfig(
        VOCABULARY, hidden, size["layers"], heads, 4 * hidden, POSITIONS, 2, size["dropout"], size["dropout"]
    )
    placement = flow.placement("cpu", [0])
    batch = {
        name: flow.tensor(
            array if array.dtype == np.float32 else array.astype(np.int32), placement=placement, sbp=flow.sbp.broadcast
        )
        for name, array in made_up_batch({**size, "batch": size["batch"] // batches}).items()
    }
    model = pretrain.BertForPretraining(config, bert_util.Initializer(placement, 0))
    args = parse_pretraining_args(["--data_dir=none", "--iter_num=1000", "--warmup_batches=0"])
    args.num_accumulation_steps, args.activation_checkpointing = batches, checkpoints
    job = pretrain.PretrainJob(model, lambda: batch, args)

    def step():
        loss = job()["total_loss"].numpy().mean().item()
        # The graph returns the loss long before the update is done.
        flow._oneflow_internal.eager.Sync()
        return loss

    return step


def transformers(size, bfloat16=False):
    """Hugging Face's BertForPreTraining, with logits for all tokens, as its users run it."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    model = BertForPreTraining(
        BertConfig(
            num_hidden_layers=size["layers"],
            hidden_dropout_prob=size["dropout"],
            attention_probs_dropout_prob=size["dropout"],
        )
    ).train()
    batch = {name: torch.from_numpy(array) for name, array in made_up_batch(size).items()}
    labels = torch.full_like(batch["input_ids"], -100)
    labels.scatter_(1, batch["masked_lm_positions"], batch["masked_lm_ids"])

    def loss():
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["input_mask"],
            token_type_ids=batch["segment_ids"],
            labels=labels,
            next_sentence_label=batch["next_sentence_labels"].reshape(-1),
        ).loss

    return torch_step(model, loss, bfloat16, fused=False)


def bare_torch(size, bfloat16=False, compiles=False, bfloat16_weights=False):
    """The same network in plain PyTorch: logits of the predictions only, fused AdamW, and fused attention.

    With dropout, PyTorch's attention falls back to unfused operators on a CPU.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.query_key_value = nn.Linear(HIDDEN, 3 * HIDDEN)
            self.output = nn.Linear(HIDDEN, HIDDEN)
            self.wide, self.narrow = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
            self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN, eps=1e-12) for _ in range(2)])
            self.dropout = nn.Dropout(size["dropout"])

        def forward(self, x, mask):
            batch, length, _ = x.shape
            heads = self.query_key_value(x).view(batch, length, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)
            context = functional.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=size["dropout"])
            context = context.transpose(1, 2).reshape(batch, length, HIDDEN)
            x = self.norms[0](x + self.dropout(self.output(context)))
            return self.norms[1](x + self.dropout(self.narrow(functional.gelu(self.wide(x)))))

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.segments = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(2, HIDDEN)
            self.positions = nn.Embedding(POSITIONS, HIDDEN)
            self.norm, self.transform_norm = nn.LayerNorm(HIDDEN, eps=1e-12), nn.LayerNorm(HIDDEN, eps=1e-12)
            self.dropout = nn.Dropout(size["dropout"])
            self.layers = nn.ModuleList([Layer() for _ in range(size["layers"])])
            self.pooler, self.transform = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
            self.next_sentence = nn.Linear(HIDDEN, 2)
            self.output_bias = nn.Parameter(torch.zeros(VOCABULARY))
            self.apply(
                lambda m: nn.init.normal_(m.weight, std=0.02) if isinstance(m, (nn.Linear, nn.Embedding)) else None
            )

        def forward(self, batch):
            length = batch["input_ids"].shape[1]
            x = self.words(batch["input_ids"]) + self.segments(batch["segment_ids"]) + self.positions.weight[:length]
            x = self.dropout(self.norm(x))
            mask = (batch["input_mask"][:, None, None, :] - 1) * 10000.0
            for layer in self.layers:
                x = layer(x, mask.to(layer.output.weight.dtype))
            picked = torch.gather(x, 1, batch["masked_lm_positions"][..., None].expand(-1, -1, HIDDEN))
            picked = self.transform_norm(functional.gelu(self.transform(picked)))
            logits = functional.linear(picked, self.words.weight, self.output_bias)
            next_sentence = self.next_sentence(torch.tanh(self.pooler(x[:, 0])))
            return functional.cross_entropy(
                logits.flatten(0, 1).float(), batch["masked_lm_ids"].flatten()
            ) + functional.cross_entropy(next_sentence.float(), batch["next_sentence_labels"].flatten())

    model = Bert().train()
    batch = {name: torch.from_numpy(array) for name, array in made_up_batch(size).items()}
    forward = torch.compile(model) if compiles else model
    if bfloat16_weights:
        return torch_step_with_masters(model.to(torch.bfloat16), lambda: forward(batch))
    return torch_step(model, lambda: forward(batch), bfloat16, fused=True)


def torch_step_with_masters(model, loss):
    """As torch_step, for a model in bfloat16; the optimiser updates copies of its weights in float32."""
    import torch

    weights = list(model.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)

    def step():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad = weight.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        return value.item()

    return step


def torch_step(model, loss, bfloat16, fused):
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=fused)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value.item()

    return step


def tensorflow(size):
    """google-research/bert's network in TensorFlow's graph mode, with its optimiser written out."""
    import tensorflow as tf

    variables = {}

    def variable(name, shape, value=None):
        if name not in variables:
            initial = tf.random.truncated_normal(shape, stddev=0.02) if value is None else tf.fill(shape, value)
            variables[name] = tf.Variable(initial, name=name)
        return variables[name]

    def dense(x, name, inputs, outputs):
        return tf.nn.bias_add(
            x @ variable(f"{name}-weight", (inputs, outputs)), variable(f"{name}-bias", (outputs,), 0.0)
        )

    def norm(x, name):
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        gamma, beta = variable(f"{name}-gamma", (HIDDEN,), 1.0), variable(f"{name}-beta", (HIDDEN,), 0.0)
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)

    def dropout(x):
        return tf.nn.dropout(x, size["dropout"]) if size["dropout"] else x

    def heads(x):
        return tf.transpose(tf.reshape(x, (size["batch"], size["length"], HEADS, HIDDEN // HEADS)), (0, 2, 1, 3))

    def layer(x, mask, name):
        query, key, value = (heads(dense(x, f"{name}-{part}", HIDDEN, HIDDEN)) for part in ("query", "key", "value"))
        scores = tf.matmul(query, key, transpose_b=True) / (HIDDEN // HEADS) ** 0.5 + mask
        context = tf.transpose(dropout(tf.nn.softmax(scores)) @ value, (0, 2, 1, 3))
        out = dense(tf.reshape(context, (-1, HIDDEN)), f"{name}-output", HIDDEN, HIDDEN)
        x = norm(x + dropout(out), f"{name}-attention-norm")
        wide = tf.nn.gelu(dense(x, f"{name}-wide", HIDDEN, 4 * HIDDEN), approximate=False)
        return norm(x + dropout(dense(wide, f"{name}-narrow", 4 * HIDDEN, HIDDEN)), f"{name}-norm")

    batch = {name: tf.constant(array) for name, array in made_up_batch(size).items()}

    def loss():
        words = variable("words", (VOCABULARY, HIDDEN))
        x = tf.gather(words, batch["input_ids"]) + tf.gather(variable("segments", (2, HIDDEN)), batch["segment_ids"])
        x = x + variable("positions", (POSITIONS, HIDDEN))[: size["length"]]
        x = dropout(norm(tf.reshape(x, (-1, HIDDEN)), "embeddings"))
        mask = (tf.cast(batch["input_mask"], tf.float32)[:, None, None, :] - 1) * 10000.0
        for index in range(size["layers"]):
            x = layer(x, mask, f"layer_{index}")
        x = tf.reshape(x, (size["batch"], size["length"], HIDDEN))
        picked = tf.reshape(tf.gather(x, batch["masked_lm_positions"], batch_dims=1), (-1, HIDDEN))
        picked = norm(tf.nn.gelu(dense(picked, "transform", HIDDEN, HIDDEN), approximate=False), "transform-norm")
        logits = tf.matmul(picked, words, transpose_b=True) + variable("output_bias", (VOCABULARY,), 0.0)
        next_sentence = dense(tf.tanh(dense(x[:, 0], "pooler", HIDDEN, HIDDEN)), "next_sentence", HIDDEN, 2)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
        return tf.reduce_mean(cross_entropy(tf.reshape(batch["masked_lm_ids"], (-1,)), logits)) + tf.reduce_mean(
            cross_entropy(batch["next_sentence_labels"][:, 0], next_sentence)
        )

    loss()  # creates the variables
    moments = {name: [tf.Variable(tf.zeros_like(v)) for _ in range(2)] for name, v in variables.items()}

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss()
        gradients, _ = tf.clip_by_global_norm(tape.gradient(value, list(variables.values())), 1.0)
        for (name, parameter), gradient in zip(variables.items(), gradients, strict=True):
            gradient = tf.convert_to_tensor(gradient)
            m, v = moments[name]
            m.assign(0.9 * m + 0.1 * gradient)
            v.assign(0.999 * v + 0.001 * tf.square(gradient))
            parameter.assign_sub(1e-4 * (m / (tf.sqrt(v) + 1e-6) + 0.01 * parameter))
        return value

    return lambda: step().numpy().item()


def products_alone(size):
    """The matrix products of a step, without attention: three of each, for forward and backward."""
    import products

    tokens, predictions = size["batch"] * size["length"], size["batch"] * size["predictions"]
    layer = [(tokens, HIDDEN, HIDDEN)] * 4 + [(tokens, 4 * HIDDEN, HIDDEN), (tokens, HIDDEN, 4 * HIDDEN)]
    shapes = layer * size["layers"] + [(predictions, VOCABULARY, HIDDEN), (predictions, HIDDEN, HIDDEN)]
    multiply, arrays = products.multiplier(), {}

    def array(*key):
        """Returns the array of this key, (operand, its numbers), made at its first use."""
        if key not in arrays:
            arrays[key] = np.random.default_rng(0).standard_normal(key[1], dtype=np.float32)
        return arrays[key]

    def product(m, n, k, **transposed):
        multiply(array("a", m * k), array("b", k * n), array("c", m * n), m, n, k, **transposed)

    def step():
        for m, n, k in shapes:
            product(m, n, k)
            product(m, k, n, transpose_b=True)
            product(k, n, m, transpose_a=True)
        return 0.0

    return step


SIDES = {
    "this project": this_project,
    "this project, bfloat16": lambda size: this_project(size, bfloat16=True),
    "accumulation": lambda size: this_project(size, accumulates=True),
    "checkpointing": lambda size: this_project(size, checkpoints=True),
    "accumulation, checkpointing": lambda size: this_project(size, accumulates=True, checkpoints=True),
    "OneFlow as installed": this_project,
    "Transformers": transformers,
    "Transformers, bfloat16": lambda size: transformers(size, bfloat16=True),
    "PyTorch": bare_torch,
    "PyTorch, compiled": lambda size: bare_torch(size, compiles=True),
    "PyTorch, bfloat16": lambda size: bare_torch(size, bfloat16=True),
    "PyTorch, bfloat16, compiled": lambda size: bare_torch(size, bfloat16=True, compiles=True),
    "PyTorch, bfloat16 weights": lambda size: bare_torch(size, bfloat16_weights=True),
    "TensorFlow": tensorflow,
    "matrix products alone": products_alone,
}


def measure(sides):
    """Runs the side sys.argv[1] of `sides`, name -> function, with the size sys.argv[2]; prints its report."""
    start = time.perf_counter()
    size = json.loads(sys.argv[2])
    step = sides[sys.argv[1]](size)
    losses, seconds, processor_seconds = [step()], [], []
    first = time.perf_counter() - start
    for _ in range(size["steps"]):
        before, processor_before = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - before)
        processor_seconds.append(time.process_time() - processor_before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    report = {"seconds": seconds, "processor_seconds": processor_seconds, "first_step": first, "peak_gb": peak}
    print(json.dumps({**report, "losses": losses}))


if __name__ == "__main__":
    measure(SIDES)
