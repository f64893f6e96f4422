"""A value is stored whole or refused; an annotation never drops part of it in silence."""

from dataclasses import dataclass
from typing import TypedDict

import pytest

from dbos_async import DBOS, SerializationError


@dataclass
class Payment:
    cents: int


@dataclass
class CardPayment(Payment):
    card: str = "visa"


class Note(TypedDict):
    text: str


async def test_a_result_of_which_its_annotation_keeps_a_part_is_refused(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("faithful", dbos_database_url)

    @dbos.step
    async def pay() -> Payment:
        return CardPayment(5)

    @dbos.step
    async def notes() -> list[Note]:
        return [{"text": "a", "author": "b"}]  # type: ignore[typeddict-unknown-key]  # the point

    @dbos.step
    async def precise() -> float:
        return 2**53 + 1

    @dbos.workflow
    async def run(which: str) -> None:
        await {"pay": pay, "notes": notes, "precise": precise}[which]()

    async with dbos:
        for which in ("pay", "notes", "precise"):
            with pytest.raises(SerializationError, match=which):
                await run(which)


async def test_an_argument_of_which_its_annotation_keeps_a_part_is_refused(
    dbos_database_url: str,
) -> None:
    dbos = DBOS("faithful", dbos_database_url)

    @dbos.workflow
    async def settle(payment: Payment) -> int:
        return payment.cents

    async with dbos:
        assert await settle(Payment(7)) == 7
        with pytest.raises(SerializationError, match="settle"):
            await settle(CardPayment(7))


async def test_what_means_the_same_in_other_words_is_not_refused(dbos_database_url: str) -> None:
    dbos = DBOS("faithful", dbos_database_url)

    @dbos.step
    async def whole() -> float:
        return 3

    @dbos.step
    async def letters() -> set[str]:
        return set("the quick brown fox")

    @dbos.step
    async def pair() -> object:
        return (1, 2)

    @dbos.workflow
    async def run() -> list[object]:
        return [await whole(), len(await letters()), await pair()]

    async with dbos:
        assert await run() == [3.0, 16, [1, 2]]
