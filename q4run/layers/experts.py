"""The feed-forward of a layer with experts: the router, the shared expert and the chosen ones."""

from typing import Any

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.state import LayerState
from q4run.errors import UnsupportedError
from q4run.experts.policies import Key
from q4run.kernels.experts import combine, moe_layer, route, run_experts
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.products.products import PRODUCT
from q4run.kernels.threads.pool import Pool
from q4run.layers.feed_forward import feed_forward_job, load_feed_forward, resident_job
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions
from q4run.layers.workspace import flat_input, if_useful, shared_begin
from q4run.models.parts import Experts, Router, Scores, by_kind
from q4run.timeline import EXPERTS
from q4run.weights import WeightReader

SIGMOID_ON_INPUT = Router(Scores.SIGMOID, renormalise=False, on_input=True)
# The share of a layer's experts that may be read ahead in vain.
_FEW = 0.05


class MixtureOfExperts:
    """Routed experts from the store and, where the model has one, a shared expert beside them."""

    span = EXPERTS

    def __init__(self, part: Experts, i: int, materials: Materials) -> None:
        weights, config, store, w, _ = materials
        tensors = by_kind(part.tensors(config.n_embd, i))
        self._i = i
        self._part = part
        _check_runs(part, weights)
        self._softmax = not part.router.on_input
        self._store = store
        self._addresses = store.addresses(i)
        self._router = weights.matrix(tensors[MODEL_TENSOR.FFN_GATE_INP])
        self._shared = np.zeros(1 if part.shared else 0, FEED_FORWARD)
        formats = [self._router.fmt]
        if part.shared:
            begin = shared_begin(part, w.n_batch)
            shared = part.shared.tensors(config.n_embd, i)
            self._shared_matrices = load_feed_forward(weights, shared)
            self._shared[0] = resident_job(self._shared_matrices, w, begin)
            formats += [matrix.fmt for matrix in self._shared_matrices[:2]]
        experts = store.layout.layers[i]
        # Of an expert whose rows and address are still to be told.
        self._template = np.zeros(1, FEED_FORWARD)
        self._template[0] = feed_forward_job(
            experts, w.experts.input, w.experts.input_int8, w.experts.output, w
        )
        self._buffers = w.experts._replace(
            normed_int8=if_useful(w.experts.normed_int8, *formats),
            input_int8=if_useful(w.experts.input_int8, *(m.fmt for m in experts[:2])),
        )
        self._router_product = np.zeros(1, PRODUCT)
        self._router_product[0]["matrix"] = self._router.record
        self._router_product[0]["input"] = flat_input(w.experts.normed, w.experts.normed_int8)
        self._router_product[0]["out"] = w.routing.logits.ctypes.data
        self._routing = w.routing
        self._jobs = np.zeros(part.n_expert + 1, FEED_FORWARD)
        self._norm = weights.vector(tensors[MODEL_TENSOR.FFN_NORM])
        self._eps = np.float32(config.rms_norm_eps)
        self._following = materials.following

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerState, positions: Positions) -> None:
        """Adds the experts to the stream x, float32 (n_tokens, n_embd).

        Experts run in the order in which they reach RAM; their outputs are kept apart and added
        in the router's order, so that the sum does not depend on what was in RAM.
        """
        store, routing = self._store, self._routing
        reads_ahead = not store.holds_all
        if reads_ahead and self._wants_nearly_all(len(x)):
            store.ahead.expect_layers_after(self._i)
        elif self._following and store.prediction.is_on:
            store.ahead.expect(self._following.guess(pool, x))
        else:
            reads_ahead = False
        arguments = self._routing_arguments(pool, x)
        if reads_ahead:
            n_experts, is_done = route(*arguments, routing, self._buffers), False
        else:
            n_experts, is_done = moe_layer(
                *arguments, self._template, self._shared, self._addresses, self._jobs, routing,
                self._buffers,
            )  # fmt: skip
        chosen = routing.experts[:n_experts].tolist()
        if is_done:
            store.use(self._i, chosen)
        else:
            self._run_as_they_arrive(pool, x, chosen)

    def guess(self, pool: Pool, x: np.ndarray) -> list[Key]:
        """What this layer will likely want, by its router on the stream of an earlier layer,
        float32 (1, n_embd). Writes to the buffers that the routing of other layers uses."""
        route(*self._routing_arguments(pool, x), self._routing, self._buffers)
        logits = self._routing.logits[: self._part.n_expert]
        likely = self._store.prediction.guess(self._i, logits, self._part.n_expert_used)
        return [(self._i, expert) for expert in likely]

    def _routing_arguments(self, pool: Pool, x: np.ndarray) -> tuple[Any, ...]:
        part = self._part
        return (
            pool, x, self._norm, self._eps, self._router_product, part.n_expert, part.n_expert_used,
            self._softmax,
        )  # fmt: skip

    def _wants_nearly_all(self, n_tokens: int) -> bool:
        """Whether a batch is so long that few experts, if any, will not be chosen."""
        n_choices = n_tokens * self._part.n_expert_used
        return (1 - 1 / self._part.n_expert) ** n_choices < _FEW

    def _run_as_they_arrive(self, pool: Pool, x: np.ndarray, chosen: list[int]) -> None:
        part, routing = self._part, self._routing
        place_of = {expert: place for place, expert in enumerate(chosen)}
        shared = self._shared
        with self._store.request(self._i, chosen) as request:
            # The reads are under way: what is in RAM is computed meanwhile.
            for ready in request:
                places = np.array([place_of[expert] for expert in ready], np.int64)
                run_experts(
                    pool, len(x), self._template, shared, places, self._addresses, routing,
                    self._jobs,
                )  # fmt: skip
                shared = self._shared[:0]
        has_shared = len(self._shared) > 0
        combine(pool, x, part.n_expert_used, self._softmax, has_shared, routing, self._buffers)


def _check_runs(part: Experts, weights: WeightReader) -> None:
    """Refuses experts that are declared in a form that no kernel computes yet."""
    plain = Experts(part.n_expert, part.n_expert_used, part.n_ff, part.router, part.shared)
    is_gated = part.shared is not None and part.shared.gated
    if part != plain or is_gated or part.router not in (Router(), SIGMOID_ON_INPUT):
        raise UnsupportedError(f"{weights.path}: experts of this form cannot be run yet: {part}")
