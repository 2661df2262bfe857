"""Hypothesis strategies for amounts and caps, in one place."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import strategies as st

# Small numbers collide with caps and with each other. Large numbers find what small ones hide.
tokens = st.one_of(st.integers(0, 12), st.integers(0, 10**18))
token_caps = st.one_of(st.none(), st.integers(0, 60), st.integers(0, 10**18))

_tenths = st.integers(0, 12).map(lambda n: n / 10)
_ties = st.integers(0, 10**6).map(lambda n: (n + 0.5) * 1e-9)  # n and a half nanodollars, as nearly as a float can
_floats = st.floats(0, 1e9, allow_nan=False)
_decimals = st.decimals(0, 10**9, allow_nan=False, places=12) | st.integers(0, 12).map(lambda n: Decimal(n) / 10)
_fractions = st.fractions(0, 10**9) | st.integers(0, 12).map(lambda n: Fraction(n, 10))
_half_nanos = st.integers(0, 10**12).map(lambda n: Fraction(2 * n + 1, 2 * 10**9))
_whole = st.integers(0, 3) | st.integers(0, 10**9)

usd = st.one_of(_tenths, _whole, _ties, _floats, _decimals, _fractions, _half_nanos)
usd_caps = st.one_of(st.none(), _tenths, usd)
