"""Prices: what a call costs, by a table of the user's and, where that has no line, by genai-prices' list.

What always holds:

* A model without a price is refused with `UnknownModel`. None is free by accident.
* A cost is rounded once, upwards, to nanodollars.
* No lock is taken. What was found is kept in two generations of bounded size, and finding it again does no harm. So
  everything here may be called from any thread, finaliser and signal handler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from token_budget._money import shown_type, to_tokens, usd_text
from token_budget.metering._catalogue import Catalogue, load
from token_budget.metering._images import DEAREST, DEFAULT, LINES, UNKNOWN, Images, of_family
from token_budget.metering._names import MAX_NAME, Patterns, is_own, names, plain, provider_of
from token_budget.metering._rates import Free, Unpriced
from token_budget.metering._table import STANDARD, line, tier_name
from token_budget.metering._usage import Usage, without_images

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import datetime  # noqa: ICN001  # as at run time, where `_lazy` gives the name its meaning
    import decimal
    import typing

    from token_budget.metering._rates import Priced
else:
    from token_budget._lazy import datetime, decimal, typing

_GENERATION = 1024  # prices found that one generation keeps
_ADVICE = "give it a line in Prices({...}), an alias or a fallback"


class Prices:
    """What models cost: a table of yours first, then the list of the package ``genai-prices`` if it is installed.

    A line of the table is one of

    * ``(input, output)``, ``(input, output, cache_read)`` or ``(input, output, cache_read, cache_write)``;
    * a dict with ``input`` and ``output``, and any of ``cache_read``, ``cache_write``, ``cache_write_1h``,
      ``audio_input``, ``audio_output``, ``image_input``, ``image_cache_read``, ``image_output``, ``reasoning``,
      ``web_search``, ``request``, ``steps`` and ``tiers``;
    * ``"free"``: the model costs nothing.

    Rates are USD for a million tokens; ``web_search`` and ``request`` are USD for one (0.01 and 0 if they are not
    given). Each is an int, str, Decimal, or a float, which counts as the number that its repr shows. A read from a
    cache costs the input rate unless it has its own, a write 1.25 times the input, and one for an hour 1.6 times the
    write; audio, images and reasoning cost what other tokens do. ``steps={200_000: {...}}`` are the rates of calls with
    more than 200,000 input tokens, for all their tokens. ``tiers={"priority": 1.75, "flex": {...}}`` are service tiers:
    a factor of the line's token rates, or rates of their own. Priority is 2 and flex 0.5 if nothing is said, and a tier
    that nobody knows costs what the dearest known one does. ``@us`` after a tier is Anthropic's ``inference_geo``: 1.1
    times the tier.

    A name of the table may have ``*`` in it. A name without one wins, then the pattern with the most characters that
    are not ``*``. Then aliases, then the name without its provider's prefix, then the list, by provider and without.
    The model's case does not matter. A fine-tuned model (``ft:...``) needs a line of the table.

    What a tool that makes images used costs what its own model asks: by its line, or by a pattern that has ``image`` in
    it, then by OpenAI's prices (`_images`), then by the list, else what the dearest model of images asks. The image
    rates are for that alone. Images are free where the line of the calling model is ``"free"``.

    One that is made is not changed any more, and may be used from all threads.

    Args:
        table: Lines by the model's name or by a pattern.
        aliases: Names for models, as for deployments of Azure: ``{"my-gpt5": "gpt-5"}``.
        fallback: The line of every model that has no price elsewhere.
        catalogue: Whether the list of genai-prices is asked. It is imported for the first model that has no line.
        clock: Seconds since 1970, for prices that change with the date or the time of day.

    Raises:
        TypeError: the table is no dict, or something in it is not of the types above.
        ValueError: a rate is negative, not finite or too large, all rates of a line are 0, or aliases go in a circle.

    ```python
    prices = Prices({"gpt-5*": ("1.25", 10), "my-llama": "free"}, catalogue=False)
    assert prices.quote("gpt-5-2025-08-07", input_tokens=1000, output_tokens=500) == Decimal("0.00625")
    ```
    """

    __slots__ = (
        "__weakref__",
        "_aliases",
        "_clock",
        "_fallback",
        "_governed",
        "_lines",
        "_list",
        "_old",
        "_patterns",
        "_young",
    )

    def __init__(
        self,
        table: Mapping[str, typing.Any] | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        fallback: typing.Any = None,
        catalogue: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        given = _by_name(table, "table")
        self._lines = {name: line(value, f"the price of {name!r:.120}") for name, value in given.items()}
        self._patterns = Patterns(name for name in self._lines if "*" in name)
        self._aliases = {name: _alias(value, name) for name, value in _by_name(aliases, "aliases").items()}
        for name in self._aliases:
            self._target(name)
        self._fallback = None if fallback is None else line(fallback, "the fallback price")
        self._list: Catalogue | str | None = None if catalogue else ""
        self._clock = clock
        self._young: dict[object, Priced] = {}
        self._governed: dict[tuple[str, str], bool] = {}  # what `_governs` has answered
        self._old: dict[object, Priced] = {}

    def cost(
        self,
        model: str | None,
        usage: Usage,
        *,
        provider: str | None = None,
        service_tier: str | None = None,
        at: datetime.datetime | None = None,
    ) -> decimal.Decimal:
        """Return what an answer cost, in USD, rounded up to whole nanodollars.

        Args:
            model: The model's name, as the request or the answer says it.
            usage: The tokens of one answer. A step looks at its input, so that of several together costs more.
            provider: Who served it (``openai``, ``anthropic``, ``google``, ...), if that is known.
            service_tier: As the request or the answer says it. None, ``auto`` and ``default`` are the standard one.
            at: When, for prices of the list that change; now if not given. One without a time zone is in UTC.

        Raises:
            UnknownModel: it has no price.
        """
        if at is None:
            nanos = self.nanos(model, usage, provider=provider, service_tier=service_tier)
        else:
            moment = at.replace(tzinfo=at.tzinfo or datetime.timezone.utc)
            found = self._priced(model, provider, service_tier, moment)
            nanos = found.nanos(usage)
            if usage.image_generation_output_tokens or usage.image_generation_input_tokens:
                nanos = self._with_images(found, found.nanos, usage, (_images_of(usage, UNKNOWN),))
        from decimal import Decimal

        return Decimal(usd_text(nanos))

    def quote(
        self,
        model: str | None,
        input_tokens: int,
        output_tokens: int = 0,
        *,
        provider: str | None = None,
        service_tier: str | None = None,
        at: datetime.datetime | None = None,
    ) -> decimal.Decimal:
        """Return what a call of so many tokens costs, in USD; see `cost`.

        Raises:
            UnknownModel: it has no price.
            TypeError: a number of tokens is no integer.
            ValueError: a number of tokens is negative.
        """
        usage = Usage(
            input_tokens=to_tokens(input_tokens, "input_tokens"),
            output_tokens=to_tokens(output_tokens, "output_tokens"),
        )
        return self.cost(model, usage, provider=provider, service_tier=service_tier, at=at)

    def nanos(
        self, model: str | None, usage: Usage, *, provider: str | None = None, service_tier: str | None = None
    ) -> int:
        """Return what an answer cost in integer nanodollars, rounded up; see `cost`.

        Raises:
            UnknownModel: it has no price.
        """
        return self._cost(model, usage, provider, service_tier, ())

    def _cost(
        self,
        model: str | None,
        usage: Usage,
        provider: str | None,
        service_tier: str | None,
        images: tuple[Images, ...],
    ) -> int:
        """Do what `nanos` does, with the images that the answer tells of."""
        found = self._young.get((model, provider, service_tier))
        if found is None:
            found = self._found(model, provider, service_tier)
        if usage.image_generation_output_tokens or usage.image_generation_input_tokens:
            return self._with_images(found, found.nanos, usage, images or (_images_of(usage, UNKNOWN),))
        return found.nanos(usage)

    def _most(
        self,
        model: str | None,
        usage: Usage,
        provider: str | None,
        service_tier: str | None,
        image_model: str | None = None,
    ) -> int:
        """Return the most that a call can cost of which that usage is the worst case; see `Rates.most`."""
        found = self._young.get((model, provider, service_tier)) or self._found(model, provider, service_tier)
        if usage.image_generation_output_tokens:
            return self._with_images(found, found.most, usage, (_images_of(usage, image_model),))
        return found.most(usage)

    def _with_images(
        self, found: Priced, price: Callable[[Usage], int], usage: Usage, images: tuple[Images, ...]
    ) -> int:
        """Return what a call costs with the images that its tool made, which their own model prices, in any tier.

        Who says that the calling model costs nothing says so of its tools too.
        """
        if isinstance(found, Free):
            return 0
        return price(without_images(usage)) + sum(self._image_rates(one.model).images(one) for one in images)

    def _image_rates(self, model: str | None) -> Priced:
        """Return the rates of a model of images, of OpenAI's default where None; those of the dearest if unknown."""
        key = (model,)
        found = self._young.get(key) or self._old.get(key)
        if found is None:
            found = self._image_rates_afresh(plain(DEFAULT if model is None else model))
            self._keep(key, found)
        return found

    def _image_rates_afresh(self, name: str) -> Priced:
        """Look into the table, into what is known of OpenAI's models of images, and into the list.

        A pattern of the table counts where it speaks of images: ``gpt-*`` does not mean them.
        """
        if len(name) <= MAX_NAME:
            key = self._key(name)
            if key is not None and ("*" not in key or "image" in key):
                own = self._lines[key]
                return own if isinstance(own, Free) else own.priced(STANDARD, None)
            name = self._target(name)
            known = of_family(LINES, name.rpartition("/")[2])
            if known is not None:
                return _standard(known)
            listed = self._listed(name, None, STANDARD, None)
            if not isinstance(listed, Unpriced):
                return listed
        return _standard(LINES[DEAREST])

    def knows(self, model: str | None, provider: str | None = None) -> bool:
        """Tell whether the model has a price of its own; the fallback is none."""
        key = (model, provider)
        found = self._young.get(key) or self._old.get(key)
        if found is None:
            found = self._own(model, plain(provider or "") or None, STANDARD, None)
            self._keep(key, found)
        return not isinstance(found, Unpriced)

    @property
    def data_date(self) -> datetime.date | None:
        """A day that the list of genai-prices is not older than; None without the list. Imports it."""
        known = self._catalogue()
        return known.date() if isinstance(known, Catalogue) else None

    def _catalogue(self) -> Catalogue | str:
        """Return the list, or why there is none."""
        known = self._list
        if known is None:
            known = self._list = load()
        return known

    def _found(self, model: str | None, provider: str | None, service_tier: str | None) -> Priced:
        """Return the rates that hold now, and keep them where `nanos` looks."""
        key = (model, provider, service_tier)
        found = self._old.get(key) or self._priced(model, provider, service_tier, None)
        self._keep(key, found)
        return found

    def _keep(self, key: tuple[str | None, ...], found: Priced) -> None:
        """Keep it among the young; when those are many they become the old, and the old are forgotten."""
        if any(part is not None and len(part) > MAX_NAME for part in key):
            return
        young = self._young
        if len(young) >= _GENERATION:
            self._old, self._young = young, {}
            young = self._young
        young[key] = found

    def _priced(
        self, model: str | None, provider: str | None, service_tier: str | None, at: datetime.datetime | None
    ) -> Priced:
        tier, where = tier_name(service_tier), plain(provider or "") or None
        found = self._own(model, where, tier, at)
        if self._fallback is None or not isinstance(found, Unpriced):
            return found
        return self._fallback if isinstance(self._fallback, Free) else self._fallback.priced(tier, where)

    def _own(self, model: str | None, provider: str | None, tier: str, at: datetime.datetime | None) -> Priced:
        """Return the price of the model apart from the fallback, or that it has none."""
        if model is None or not model.strip():
            return Unpriced("the request names no model, so there is no price for it")
        name = plain(model)
        if len(model) > MAX_NAME:
            return Unpriced(f"there is no price for model {name!r:.120}: the name is too long")
        key = self._key(name)
        name = self._target(name)
        if key is None:
            return self._listed(name, provider, tier, at)
        found = self._lines[key]
        return found if isinstance(found, Free) else found.priced(tier, provider_of(name, provider))

    def _governs(self, asked: str, answered: str) -> bool:
        """Tell whether the table's line for the model that was asked prices an answer that names another one.

        It does, for who wrote it knows what the model costs, unless the table also says what the other one costs: by
        its name, or by a pattern that says nothing of what was asked.
        """
        found = self._governed.get((asked, answered))
        if found is None:
            found = self._governs_afresh(asked, answered)
            if len(asked) + len(answered) <= MAX_NAME:
                if len(self._governed) >= _GENERATION:
                    self._governed = {}
                self._governed[asked, answered] = found
        return found

    def _governs_afresh(self, asked: str, answered: str) -> bool:
        if not self._lines or self._key(plain(asked)) is None:
            return False
        key = self._key(plain(answered))
        return key is None or ("*" in key and any(map(Patterns((key,)).match, self._meanings(plain(asked)))))

    def _key(self, name: str) -> str | None:
        """Return the key of the table's line for a plain name: itself or a pattern, by an alias, without its prefix."""
        for meaning in (name,) if name in self._lines else self._meanings(name):
            key = meaning if meaning in self._lines else self._patterns.match(meaning)
            if key is not None:
                return key
        return None

    def _meanings(self, name: str) -> list[str]:
        """Return what a plain name may mean in the table: itself, what aliases lead to, both without prefixes."""
        target = self._target(name)
        return list(dict.fromkeys((name, target, *(short for _, short in names(target, None)))))

    def _target(self, name: str) -> str:
        """Return the name that aliases lead to."""
        seen = []
        while name in self._aliases:
            if name in seen:
                raise ValueError(f"aliases go in a circle at {name!r:.120}")
            seen.append(name)
            name = self._aliases[name]
        return name

    def _listed(self, name: str, provider: str | None, tier: str, at: datetime.datetime | None) -> Priced:
        """Return the price that the list has for the model, or that it has none."""
        served = f" at {provider!r:.70}" if provider else ""
        reason = f"there is no price for model {name!r:.120}{served}: {_ADVICE}"
        if is_own(name):
            return Unpriced(f"{reason}; no list has the prices of fine-tuned and custom models")
        known = self._catalogue()
        if isinstance(known, str):
            return Unpriced(f"{reason}; {known}" if known else reason)
        for where, short in names(name, provider):
            one = known.find(where, short)
            if one is not None:
                seller, model = one
                if at is None:
                    found = known.priced(model, tier, seller, self._clock)
                else:
                    found = known.priced_at(model, tier, seller, at)
                if not isinstance(found, Unpriced):
                    return found
                reason = f"{found.reason}: {_ADVICE}"
        return Unpriced(reason)


def _images_of(usage: Usage, model: str | None) -> Images:
    """Return the images of a usage, of which nothing more is told: the dearest that they can be."""
    taken, made = usage.image_generation_input_tokens, usage.image_generation_output_tokens
    return Images(model, image_input=taken, image_output=made)


def _standard(rates: dict[str, typing.Any]) -> Priced:
    known = line(rates, "an image model")
    return known if isinstance(known, Free) else known.priced(STANDARD, None)


def _by_name(given: Mapping[str, typing.Any] | None, what: str) -> dict[str, typing.Any]:
    """Return a dict of a user's by plain names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} must be a dict, not {shown_type(given)}")
    found = {}
    for key, value in given.items():
        if not isinstance(key, str):
            raise TypeError(f"a key of {what} must be the name of a model, not {shown_type(key)}")
        name = plain(key)
        if not name or len(name) > MAX_NAME:
            raise ValueError(f"a key of {what} must have 1 to {MAX_NAME} characters")
        if name in found:
            raise ValueError(f"{what} names {name!r:.120} twice; case does not matter")
        found[name] = value
    return found


def _alias(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the alias {name!r:.120} must be the name of a model, not {shown_type(value)}")
    return plain(value)
