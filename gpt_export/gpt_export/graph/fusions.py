"""Fuse x + y (+ bias) and the norm after it to one ONNX Runtime operator; the exporter does not."""

from __future__ import annotations

import onnx_ir as ir

FUSED = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
}
BIAS = {"LayerNormalization": 4, "RMSNormalization": 3}  # index of the bias among the inputs


def fuse_skip_norms(model: ir.Model) -> None:
    """Replace Add + norm by SkipLayerNormalization (RMSNorm: SkipSimplifiedLayerNormalization).

    If y is itself the sum of a product and a bias, the bias becomes an input of the fused operator.
    The sum x + y is the residual stream; it stays available as the fused operator's fourth output.
    """
    graph = model.graph
    for norm in [node for node in graph if node.op_type in FUSED]:
        total = norm.inputs[0]
        add = total.producer() if total is not None else None
        if total is None or add is None or add.op_type != "Add" or _has_constant(add):
            continue
        x, y = add.inputs
        gone = [norm, add]
        inputs = [x, y, *norm.inputs[1:]]
        biased = y.producer() if y is not None and len(y.uses()) == 1 else None
        if biased is not None and biased.op_type == "Add" and _is_bias(biased.inputs[1]):
            inputs[1] = biased.inputs[0]
            inputs += [None] * (BIAS[norm.op_type] - len(inputs)) + [biased.inputs[1]]
            gone.append(biased)
        epsilon = norm.attributes.get("epsilon", ir.AttrFloat32("epsilon", 1e-5))
        fused = ir.node(
            FUSED[norm.op_type],
            inputs,
            {"epsilon": epsilon.as_float()},
            domain="com.microsoft",
            num_outputs=4,
        )
        normed, _, _, stream = fused.outputs
        normed.type, stream.type = norm.outputs[0].type, total.type
        normed.name, stream.name = norm.outputs[0].name, total.name
        graph.insert_before(norm, fused)
        ir.convenience.replace_all_uses_with(norm.outputs[0], normed)
        ir.convenience.replace_all_uses_with(total, stream)
        graph.remove(gone, safe=True)
        if not stream.uses():
            fused.resize_outputs(1)
    model.opset_imports["com.microsoft"] = 1


def _is_bias(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.shape is not None
        and len(value.shape) == 1
    )


def _has_constant(add: ir.Node) -> bool:
    """True if a summand is constant, as a bias is: the fused operator would not broadcast it."""
    return any(value is None or value.is_initializer() for value in add.inputs)
