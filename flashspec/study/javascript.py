"""Python functions as JavaScript: arithmetic, lists, loops, lambdas and classes of values, enough for the formulas of `theory`.

What a function calls of this package comes along. What has no JavaScript here is refused, never approximated.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from typing import Any

HERE = "flashspec"
PLAIN = {  # what is written field by field
    "Add": "+", "Sub": "-", "Mult": "*", "Div": "/", "Pow": "**", "USub": "-", "Not": "!", "And": "&&", "Or": "||",
    "Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">=", "Eq": "===", "NotEq": "!==", "Is": "===", "IsNot": "!==",
    "Expr": "{value};", "Return": "return {value};", "Raise": "throw {exc};", "Assign": "{targets} = {value};",
    "AugAssign": "{target} {op}= {value};", "For": "for ({target} of {iter}) {{ {body} }}",
    "If": "if ({test}) {{ {body} }} else {{ {orelse} }}", "IfExp": "({test} ? {body} : {orelse})",
    "BinOp": "({left} {op} {right})", "UnaryOp": "({op}{operand})", "Subscript": "{value}[{slice}]", "Starred": "...{value}",
    "List": "[{elts}]", "Tuple": "[{elts}]", "Lambda": "(({args}) => {body})", "arguments": "{args}", "arg": "{arg}",
    "Load": "", "Store": "",
}  # fmt: skip
NAMES = {"int": "Math.trunc", "max": "Math.max", "self": "this", "ValueError": "Error", "math.inf": "Infinity"}
PRELUDE = """const range = (low, high) => high === undefined ? range(0, low) : [...Array(high - low).keys()].map((n) => low + n);
const enumerate = (items) => items.map((item, place) => [place, item]);
const sum = (items) => items.reduce((total, item) => total + item, 0);
const len = (items) => items.length;
const callable = (value) => typeof value === "function";
"""


def script(*functions: Callable[..., Any]) -> str:
    """These functions, and all of this package that they call, as a script. ValueError for what cannot be written."""
    known: dict[str, Any] = {}
    for function in functions:
        _gather(function.__name__, function, known)
    return PRELUDE + "\n".join(_defined(name, thing) for name, thing in known.items()) + "\n"


def _gather(name: str, thing: Any, known: dict[str, Any]) -> None:
    """Add a thing and what it needs."""
    if known.setdefault(name, thing) is not thing:
        raise ValueError(f"{name} names two things; a script has one name for each, so rename one of them")
    if not callable(thing):
        return
    scope = vars(sys.modules[thing.__module__])
    for part in _run(_tree(thing)):
        for used in [each.id for each in ast.walk(part) if isinstance(each, ast.Name) and each.id in scope]:
            ours = getattr(scope[used], "__module__", HERE).startswith(HERE) and not inspect.ismodule(scope[used])
            if ours and known.get(used) is not scope[used]:
                _gather(used, scope[used], known)


def _tree(thing: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _methods(tree: Any) -> list[Any]:
    return [part for part in tree.body if isinstance(part, ast.FunctionDef) and not part.name.startswith("__")]


def _run(tree: Any) -> list[Any]:
    """The statements that run when a function, or a method of a class, is called."""
    return [line for each in _methods(tree) for line in each.body] if isinstance(tree, ast.ClassDef) else tree.body


def _defined(name: str, thing: Any) -> str:
    """One function, class of values or constant as a statement."""
    if not callable(thing):
        return f"const {name} = {json.dumps(thing)};"
    tree = _tree(thing)
    if isinstance(tree, ast.FunctionDef):
        return f"function {_function(tree)}"
    fields = [part for part in tree.body if isinstance(part, ast.AnnAssign)]
    given = [write(part.target) + (f" = {write(part.value)}" if part.value else "") for part in fields]
    inside = [*(write(part.target) for part in fields), *map(_function, _methods(tree))]
    return f"function {name}({', '.join(given)}) {{ return {{{', '.join(inside)}}}; }}"


def _function(tree: Any) -> str:
    """Name, arguments and body."""
    taken = [each.arg for each in tree.args.args]
    names = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    local = f"let {', '.join(sorted(names.difference(taken)))};" if names.difference(taken) else ""
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    return f"{tree.name}({', '.join(taken[taken[:1] == ['self'] :])}) {{ {local} {write(body)} }}"


def write(node: Any) -> str:
    """A node of a syntax tree, or several; ValueError for one that has no JavaScript here."""
    if isinstance(node, list):
        return (" " if node and isinstance(node[0], ast.stmt) else ", ").join(map(write, node))
    if not isinstance(node, ast.AST):
        return str(node or "")
    special = _special(node)
    if special is not None:
        return special
    kind = type(node).__name__
    if kind not in PLAIN:
        said = ast.unparse(node).splitlines()[0]
        raise ValueError(f"no JavaScript for {kind} in `{said}`: write it with plain arithmetic")
    return PLAIN[kind].format_map({name: write(value) for name, value in ast.iter_fields(node)})


def _special(node: Any) -> str | None:
    """The nodes that are more than their fields in order; None for another."""
    match node:
        case ast.Constant():
            return json.dumps(node.value)
        case ast.Name() | ast.Attribute() if (whole := ast.unparse(node)) in NAMES or isinstance(node, ast.Name):
            return NAMES.get(whole, whole)
        case ast.Attribute():
            return f"{write(node.value)}.{node.attr}"
        case ast.BinOp(left=ast.List(elts=items), op=ast.Mult()):
            return f"Array({write(node.right)}).fill({write(items)})"
        case ast.BoolOp():
            return f"({f' {write(node.op)} '.join(map(write, node.values))})"
        case ast.Compare():
            sides = [write(each) for each in (node.left, *node.comparators)]
            return f"({' && '.join(map(' '.join, zip(sides, map(write, node.ops), sides[1:], strict=False)))})"
        case ast.Call(func=ast.Attribute(value=owner, attr="values"), keywords=[]):
            return f"Object.values({write(owner)})"
        case ast.Call(keywords=[]):
            return f"{write(node.func)}({write(node.args)})"
        case ast.GeneratorExp(generators=[each]):
            chosen = "".join(f".filter(({write(each.target)}) => {write(test)})" for test in each.ifs)
            return f"{write(each.iter)}{chosen}.map(({write(each.target)}) => {write(node.elt)})"
        case ast.Dict():
            return f"{{{', '.join(map(': '.join, zip(map(write, node.keys), map(write, node.values), strict=True)))}}}"
        case ast.JoinedStr():
            parts = (str(p.value) if isinstance(p, ast.Constant) else f"${{{write(vars(p)['value'])}}}" for p in node.values)
            return f"`{''.join(parts)}`"
    return None
