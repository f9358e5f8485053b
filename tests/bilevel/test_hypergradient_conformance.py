from __future__ import annotations

from conformance.hypergradient import HypergradientConformance

from src.bilevel.hypergradient import Exact, FiniteDifference, FirstOrder, Hypergradient, OneSided


class TestFirstOrder(HypergradientConformance):
    def hypergradient(self) -> Hypergradient:
        return FirstOrder()


class TestFiniteDifference(HypergradientConformance):
    def hypergradient(self) -> Hypergradient:
        return FiniteDifference()


class TestOneSided(HypergradientConformance):
    def hypergradient(self) -> Hypergradient:
        return OneSided()


class TestExact(HypergradientConformance):
    def hypergradient(self) -> Hypergradient:
        return Exact()
