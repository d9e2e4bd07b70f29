"""The feed-forward of a layer with experts: the router, the shared expert and the chosen ones."""

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.state import LayerState
from q4run.experts.policies import Key
from q4run.kernels.experts import MIXTURE, combine, moe_layer, route, run_experts
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.routing import CHOSEN_SOFTMAX, SIGMOID, SOFTMAX
from q4run.kernels.threads.pool import Pool
from q4run.layers.feed_forward import (
    ACTIVATIONS,
    feed_forward_job,
    load_feed_forward,
    resident_job,
)
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions
from q4run.layers.workspace import Workspace, flat_input, if_useful, shared_begin
from q4run.models.parts import BIAS, WEIGHT, Experts, Role, Scores, by_kind
from q4run.timeline import EXPERTS

_SCORES = {
    Scores.SOFTMAX: SOFTMAX,
    Scores.SIGMOID: SIGMOID,
    Scores.CHOSEN_SOFTMAX: CHOSEN_SOFTMAX,
}
# The share of a layer's experts that may be read ahead in vain.
_FEW = 0.05


class MixtureOfExperts:
    """Routed experts from the store and, where the model has one, a shared expert beside them."""

    span = EXPERTS

    def __init__(self, part: Experts, i: int, materials: Materials) -> None:
        self._i = i
        self._part = part
        self._store = materials.store
        self._addresses = self._store.addresses(i)
        self._following = materials.following
        self._read_weights(materials)
        self._routing = materials.workspace.routing
        self._jobs = np.zeros(part.n_expert + 1, FEED_FORWARD)
        self._record = np.zeros(1, MIXTURE)
        record = self._record[0]
        record["norm"] = self._address(part.norm)
        record["eps"] = materials.config.rms_norm_eps
        record["update"] = materials.workspace.experts.update.ctypes.data
        for field, array in self._routing._asdict().items():
            if field != "logits":  # the router's product writes them
                record[field] = array.ctypes.data
        if part.residual_scale != 1:
            record["residual_scale"] = part.residual_scale
        self._describe_experts(record, materials.workspace)
        self._describe_router(record["router"], materials.workspace)

    def _read_weights(self, materials: Materials) -> None:
        part, weights = self._part, materials.weights
        tensors = part.tensors(materials.config.n_embd, self._i)
        self._router = weights.matrix(by_kind(tensors)[MODEL_TENSOR.FFN_GATE_INP])
        self._vectors = {
            (t.kind, t.suffix): weights.vector(t)
            for t in tensors
            if t.role in (Role.NORM, Role.BIAS) or t.kind is MODEL_TENSOR.FFN_GATE_INP_SHEXP
        }
        self._shared = (
            load_feed_forward(weights, tensors, part.shared.n_ff) if part.shared else None
        )

    def _describe_experts(self, record: np.void, w: Workspace) -> None:
        part, matrices = self._part, self._store.layout.layers[self._i]
        source, source_int8 = w.experts.input, w.experts.input_int8
        expert = feed_forward_job(matrices, source, source_int8, w.experts.output, w)
        expert["activation"] = ACTIVATIONS[part.activation]
        expert["gate_bias"], expert["up_bias"], expert["down_bias"] = self._bias_addresses()
        record["expert"] = expert
        if part.shared and self._shared:
            shared = resident_job(self._shared, w, shared_begin(part, w.n_batch))
            shared["activation"] = ACTIVATIONS[part.activation]
            record["shared"] = shared
            record["shared_gate"] = self._address(MODEL_TENSOR.FFN_GATE_INP_SHEXP)

    def _bias_addresses(self) -> tuple[int, int, int]:
        down = self._address(MODEL_TENSOR.FFN_DOWN_EXP, BIAS)
        gate_up = self._vectors.get((MODEL_TENSOR.FFN_GATE_UP_EXP, BIAS))
        if gate_up is None:
            gate = self._address(MODEL_TENSOR.FFN_GATE_EXP, BIAS)
            return gate, self._address(MODEL_TENSOR.FFN_UP_EXP, BIAS), down
        self._gate_up = [np.ascontiguousarray(half) for half in np.split(gate_up, 2, axis=1)]
        gate, up = (half.ctypes.data for half in self._gate_up)
        return gate, up, down

    def _describe_router(self, router: np.void, w: Workspace) -> None:
        part = self._part.router
        formats = [matrix.fmt for matrix in (self._router, *(self._shared or ())[:2])]
        product = router["product"]
        product["matrix"] = self._router.record
        product["input"] = flat_input(w.experts.normed, if_useful(w.experts.normed_int8, *formats))
        product["out"] = w.routing.logits.ctypes.data
        router["n_used"] = self._part.n_expert_used
        router["bias"] = self._address(MODEL_TENSOR.FFN_GATE_INP, BIAS)
        router["selection_bias"] = self._address(MODEL_TENSOR.FFN_EXP_PROBS_B, BIAS)
        router["scores"] = _SCORES[part.scores]
        router["n_group"], router["n_group_used"] = part.n_group, part.n_group_used
        router["renormalise"], router["on_input"] = part.renormalise, part.on_input
        if part.scale != 1:
            router["scale"] = part.scale

    def _address(self, kind: MODEL_TENSOR, suffix: str = WEIGHT) -> int:
        """Where a vector is in RAM; 0 for one that the layer does not have."""
        vector = self._vectors.get((kind, suffix))
        return 0 if vector is None else vector.ctypes.data

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
        if reads_ahead:
            n_experts, is_done = route(pool, x, self._record), False
        else:
            n_experts, is_done = moe_layer(pool, x, self._record, self._addresses, self._jobs)
        chosen = routing.experts[:n_experts].tolist()
        if is_done:
            store.use(self._i, chosen)
        else:
            self._run_as_they_arrive(pool, x, chosen)

    def guess(self, pool: Pool, x: np.ndarray) -> list[Key]:
        """What this layer will likely want, by its router on the stream of an earlier layer,
        float32 (1, n_embd). Writes to the buffers that the routing of other layers uses."""
        route(pool, x, self._record)
        logits = self._routing.logits[: self._part.n_expert]
        likely = self._store.prediction.guess(self._i, logits, self._part.n_expert_used)
        return [(self._i, expert) for expert in likely]

    def _wants_nearly_all(self, n_tokens: int) -> bool:
        """Whether a batch is so long that few experts, if any, will not be chosen."""
        n_choices = n_tokens * self._part.n_expert_used
        return (1 - 1 / self._part.n_expert) ** n_choices < _FEW

    def _run_as_they_arrive(self, pool: Pool, x: np.ndarray, chosen: list[int]) -> None:
        place_of = {expert: place for place, expert in enumerate(chosen)}
        with_shared = self._shared is not None
        with self._store.request(self._i, chosen) as request:
            # The reads are under way: what is in RAM is computed meanwhile.
            for ready in request:
                places = np.array([place_of[expert] for expert in ready], np.int64)
                run_experts(
                    pool, len(x), self._record, with_shared, places, self._addresses, self._jobs
                )
                with_shared = False
        combine(pool, x, self._record)
