"""From torch's symbolic sizes (sympy expressions) to the graph's dimensions (postfix tuples over named symbols)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce

import sympy  # type: ignore[import-untyped]
import torch

from kvant.graph import Dim, combine

# Denominators beyond this come from factors such as 1.3, whose exact value as a float is no useful ratio.
_LARGEST_DENOMINATOR = 2**16


class NotExpressibleError(Exception):
    """A size that no ``Dim`` stands for; the export is tried again with fewer dynamic dimensions."""


def symint_expression(size: torch.SymInt) -> sympy.Expr:
    """The sympy expression of a symbolic size, after everything that the export learned about it."""
    return sympy.sympify(size.node.expr)


class Symbols:
    """The names of an export's free sizes, and the translation of expressions over them."""

    def __init__(self) -> None:
        self._dims: dict[sympy.Symbol, Dim] = {}
        self._known: dict[sympy.Expr, Dim] = {}
        self.example: dict[str, int] = {}

    def declare(self, size: int | torch.SymInt, name: str, example: int) -> Dim:
        """The dimension of an input: an int, or a symbol called ``name`` unless its expression has one already."""
        expression = sympy.Integer(size) if isinstance(size, int) else symint_expression(size)
        if expression.is_Integer:
            return int(expression)
        if expression in self._known:
            return self._known[expression]
        unknown = [symbol for symbol in expression.free_symbols if symbol not in self._dims]
        name = self._unique(name)
        if len(unknown) != 1:
            raise NotExpressibleError(f"the size {expression} of an input depends on other inputs' sizes")
        self._dims[unknown[0]] = self._solve(expression, unknown[0], name)
        self._known[expression] = (name,)
        self.example[name] = example
        return (name,)

    def _solve(self, expression: sympy.Expr, symbol: sympy.Symbol, name: str) -> Dim:
        """``symbol`` in terms of ``name``, which stands for ``expression``: with 8 * s it is name // 8."""
        factor, offset = expression.coeff(symbol, 1), expression.coeff(symbol, 0)
        exact = sympy.expand(factor * symbol + offset - expression) == 0
        if not (exact and factor.is_Integer and offset.is_Integer and factor > 0):
            raise NotExpressibleError(f"the size {expression} of an input cannot be solved for its symbol")
        solved: Dim = (name,) if offset == 0 else combine("-", (name,), int(offset))
        return solved if factor == 1 else combine("//", solved, int(factor))

    def _unique(self, name: str) -> str:
        count = 1
        unique = name
        while unique in self.example:
            count += 1
            unique = f"{name}_{count}"
        return unique

    def dim(self, size: int | torch.SymInt) -> Dim:
        """``size`` as a dimension.

        Raises:
            NotExpressibleError: it depends on data, or needs more than integer arithmetic.
        """
        if isinstance(size, int):
            return int(size)
        expression = symint_expression(size)
        if expression not in self._known:
            self._known[expression] = _Translation(self._dims).of(expression)
        return self._known[expression]

    def shape(self, sizes: Sequence[int | torch.SymInt]) -> tuple[Dim, ...]:
        """A shape as dimensions."""
        return tuple(self.dim(size) for size in sizes)


class _Translation:
    """Sympy expression -> Dim, one short rule for each of torch's integer functions."""

    def __init__(self, symbols: Mapping[sympy.Symbol, Dim]) -> None:
        self._symbols = symbols

    def of(self, expression: sympy.Expr) -> Dim:
        numerator, denominator = _fraction(expression)
        if denominator != 1:
            # torch proved such a quotient to be an integer, so the floor changes nothing.
            return combine("//", self.of(numerator), int(denominator))
        if expression.is_Integer:
            return int(expression)
        if isinstance(expression, sympy.Symbol):
            return self._symbol(expression)
        if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
            return self._chain("*", [expression.base] * int(expression.exp))
        if expression.is_Add:
            return self._sum(expression)
        if expression.is_Mul:
            return self._chain("*", expression.args)
        return self._function(expression)

    def _symbol(self, symbol: sympy.Symbol) -> Dim:
        if symbol not in self._symbols:
            raise NotExpressibleError(f"the size {symbol} depends on data")
        return self._symbols[symbol]

    def _sum(self, expression: sympy.Expr) -> Dim:
        terms = sorted(expression.args, key=lambda term: (bool(term.could_extract_minus_sign()), bool(term.is_Integer)))
        total = self.of(terms[0])
        for term in terms[1:]:
            negative = bool(term.could_extract_minus_sign())
            total = combine("-" if negative else "+", total, self.of(-term if negative else term))
        return total

    def _chain(self, operator: str, parts: Sequence[sympy.Expr]) -> Dim:
        return reduce(lambda left, right: combine(operator, left, right), [self.of(part) for part in parts])

    def _function(self, expression: sympy.Expr) -> Dim:
        name, args = type(expression).__name__, expression.args
        match name:
            case "FloorDiv" | "CleanDiv" | "IntTrueDiv":
                return self._chain("//", args)
            case "CeilDiv":
                return combine(
                    "//", combine("-", combine("+", self.of(args[0]), self.of(args[1])), 1), self.of(args[1])
                )
            case "Mod" | "PythonMod":
                return self._chain("%", args)
            case "ModularIndexing":
                return combine("%", self._chain("//", args[:2]), self.of(args[2]))
            case "Max" | "Min":
                return self._chain(name.lower(), args)
            case "ToFloat" | "Identity":
                return self.of(args[0])
            # Sizes are not negative, so truncating is rounding down.
            case "TruncToInt" | "FloorToInt":
                return self._floor(args[0])
            case "CeilToInt":
                return combine("-", 0, self._floor(-args[0]))
        raise NotExpressibleError(f"the size {expression} needs more than integer arithmetic")

    def _floor(self, value: sympy.Expr) -> Dim:
        exact = value.replace(lambda part: part.is_Float, _rational)
        numerator, denominator = _fraction(exact)
        return self.of(numerator) if denominator == 1 else combine("//", self.of(numerator), int(denominator))


def _fraction(expression: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    if not (expression.is_Add or expression.is_Mul or expression.is_Rational):
        return expression, sympy.Integer(1)
    numerator, denominator = sympy.together(expression).as_numer_denom()
    if not denominator.is_Integer:
        raise NotExpressibleError(f"the size {expression} divides by a size")
    return (expression, denominator) if denominator == 1 else (numerator, denominator)


def _rational(value: sympy.Float) -> sympy.Rational:
    exact = Fraction(float(value))
    if exact.denominator > _LARGEST_DENOMINATOR:
        raise NotExpressibleError(f"the factor {value} is not a ratio of small integers")
    return sympy.Rational(exact.numerator, exact.denominator)
