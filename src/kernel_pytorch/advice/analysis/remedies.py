"""What to write instead of a defect. Without torch.

Where the statement at fault is known, the remedy is the statement to write in its place.
"""

from __future__ import annotations

import ast
import re

from .observations import (
    Differing,
    GraphBreak,
    HostSync,
    PythonLoop,
    RebuiltConstant,
    Recompile,
    RepeatedCopy,
)

MEMORY = "shorter inputs, a smaller batch, or attention by F.scaled_dot_product_attention"
MEMORY_TRAINING = "torch.utils.checkpoint.checkpoint around each block, a smaller batch, or shorter inputs"
UNFUSED = "F.scaled_dot_product_attention on 4-D inputs, with is_causal=True or a mask without a gradient"
FLOAT64 = "give dtype=torch.float32, or the dtype of the other operand, where the float64 tensor is made"
CHANNELS_LAST = (
    "model = model.to(memory_format=torch.channels_last) and "
    "x = x.contiguous(memory_format=torch.channels_last) once, before the first convolution"
)
COMPILER = "install g++ or clang++, or set CXX to one"


def of_break(found: GraphBreak) -> str:
    """Of a graph break."""
    if found.cause == "item":
        return _keep_tensor(found.statement)
    if found.cause in ("print", "log"):
        call = _call(found.statement) or "the call"
        return f"remove it, or: if not torch.compiler.is_compiling(): {call}"
    if found.cause == "branch":
        return _branch(found.statement)
    if found.cause == "dynamic shape":
        return (
            "keep the shape: torch.where(mask, x, 0), or a product with the mask, in place of selected rows; "
            "else torch._dynamo.config.capture_dynamic_output_shape_ops = True"
        )
    if found.cause == "disabled":
        return "remove torch.compiler.disable, or call the function outside of the model's forward"
    return found.hint or "move the call out of forward"


def of_sync(found: HostSync) -> str:
    """Of a call that waits for the device."""
    if found.call in (".item()", ".tolist()", "bool()", "int()", "float()"):
        return _branch(found.statement) if found.call == "bool()" else _keep_tensor(found.statement)
    if found.call in (".cpu()", '.to("cpu")', ".numpy()"):
        return "stay on the tensor's device with torch's own functions; move results once, after the model"
    return "keep the result a tensor of a shape known beforehand, as torch.where gives it"


def of_recompile(found: Recompile) -> str:
    """Of code that is compiled again and again."""
    if found.cause == "length":
        return (
            "make no Python value of the length here: torch functions over the whole dimension in place of "
            "range(length), no dict with the length as its key"
        )
    named = re.search(r"\b[A-Za-z_]\w*\.([A-Za-z_]\w*)", found.guard)
    if named is None:
        return "give the value as a tensor, or keep it constant"
    return (
        f'keep {named[0]} a tensor: self.register_buffer("{named[1]}", torch.tensor(...)), changed in place'
    )


def of_loop(loop: PythonLoop) -> str:
    """Of a Python loop over parts of a tensor, or experts."""
    if loop.over == "weights":
        return (
            "stack the weights, [experts, in, out], and compute all at once: "
            'torch.einsum("...i,eio->...eo", x, weights)'
        )
    return (
        f"call {loop.operator} once on the whole tensor before the loop, and keep in the loop only what "
        "needs the step before it; a recurrence as torch.nn.GRU or LSTM, a running sum as torch.cumsum"
    )


def of_copy(copy: RepeatedCopy) -> str:
    """Of a copy."""
    if copy.cause == "stored":
        return f"store {copy.name} in this form, once, in __init__"
    if copy.cause == "unneeded":
        return "remove .contiguous(): what reads the result takes any strides"
    return "copy once: x = x.contiguous() before the first use"


def of_constant(built: RebuiltConstant) -> str:
    """Of a tensor computed from sizes alone."""
    if any(word in built.statement.lower() for word in ("mask", "tril", "triu", "<", ">")):
        return (
            'in __init__: self.register_buffer("mask", ..., persistent=False) at the greatest length, here '
            "self.mask[:n, :n]; for attention is_causal=True needs none"
        )
    return (
        'in __init__: self.register_buffer("table", ..., persistent=False), its greatest length; here a slice'
    )


def of_differing(found: Differing) -> str:
    """Of outputs that differ in eval mode."""
    if not found.operator:
        return "forward changes what a later call reads: keep no state between calls"
    if found.submodule:
        return f"model.eval(): {found.submodule} is in training mode"
    if "dropout" in found.operator:
        return "F.dropout(x, p, training=self.training)"
    if found.operator == "scaled_dot_product_attention":
        return "dropout_p=self.dropout if self.training else 0.0"
    return "draw the random numbers outside of the model and give them as an input"


def _keep_tensor(statement: str) -> str:
    for node in _nodes(statement):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("item", "tolist"):
            value = ast.unparse(node.func.value)
            return f"keep the tensor: {value} in place of {ast.unparse(node)}"
        if isinstance(node.func, ast.Name) and node.func.id in ("int", "float", "bool") and node.args:
            return f"keep the tensor: {ast.unparse(node.args[0])} in place of {ast.unparse(node)}"
    return "keep the tensor in place of its Python value"


def _branch(statement: str) -> str:
    for node in _nodes(statement):
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            test = ast.unparse(node.test)
            return f"torch.where({test}, if_true, if_false), or torch.cond({test}, function, other, inputs)"
        if isinstance(node, ast.Assert):
            return f"remove it, or: torch._assert_async({ast.unparse(node.test)})"
    return "torch.where(condition, if_true, if_false), or torch.cond"


def _call(statement: str) -> str:
    nodes = _nodes(statement)
    return next((ast.unparse(node) for node in nodes if isinstance(node, ast.Call)), "")


def _nodes(statement: str) -> list[ast.AST]:
    """All nodes of a statement, of which a body may be missing."""
    for text in (statement, f"{statement} pass", f"{statement}: pass"):
        try:
            return list(ast.walk(ast.parse(text)))
        except SyntaxError:
            continue
    return []
