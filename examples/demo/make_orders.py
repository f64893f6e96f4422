"""Makes orders.csv and stock.csv, always the same: python -m examples.demo.make_orders"""

import csv
import random
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
ORDERS = 5_000

KINDS = {"MUG": 1290, "TEE": 2400, "POSTER": 1800, "NOTEBOOK": 990, "BAG": 3450, "LAMP": 7900}
COLOURS = ["BLUE", "GREEN", "OCHRE", "PLUM", "SAND", "WHITE"]
SOLD_OUT = ["LAMP-PLUM", "TEE-OCHRE"]
SCARCE = ["BAG-GREEN", "POSTER-SAND"]

COUNTRIES = {
    "DE": ("EUR", "Anna Jonas Lena Paul Mia Emil", "Schulz Wagner Becker Hoffmann Koch Richter"),
    "FR": ("EUR", "Louise Hugo Chloé Jules Inès Gabriel", "Martin Bernard Dubois Laurent Moreau"),
    "GB": ("GBP", "Olivia George Amelia Harry Isla Noah", "Smith Jones Taylor Davies Evans Walker"),
    "PL": ("PLN", "Zofia Jakub Hanna Antoni Maja Filip", "Nowak Wójcik Mazur Krawczyk Kaczmarek"),
    "SE": ("SEK", "Alice Lucas Maja Oscar Elsa Hugo", "Andersson Lindberg Nyström Åkesson"),
    "US": ("USD", "Emma Liam Ava James Sophia Mason", "Williams Garcia Miller O'Brien Nguyen"),
}
RATES = {"EUR": 1.0, "GBP": 0.86, "PLN": 4.3, "SEK": 11.2, "USD": 1.08}

# What people, and the systems that they type into, get wrong.
BAD_QUANTITIES = ["0", "-1", "", "two", "1.5", "100000"]
UNKNOWN = ["MUG-BLEU", "TEE", "GIFT-CARD", "LAMP-TEAL"]


def stock() -> Iterable[tuple[str, int, int]]:
    """SKU, price in euro cents, pieces."""
    for kind, cents in KINDS.items():
        for colour in COLOURS:
            sku = f"{kind}-{colour}"
            yield sku, cents, 0 if sku in SOLD_OUT else 150 if sku in SCARCE else 5_000


def orders(chance: random.Random) -> Iterable[tuple[object, ...]]:
    """Order id, customer, country, currency, items, cents."""
    prices = {sku: cents for sku, cents, _ in stock()}
    for number in range(ORDERS):
        country = chance.choices([*COUNTRIES], weights=[30, 18, 16, 12, 8, 16])[0]
        currency, first, last = COUNTRIES[country]
        customer = f"{chance.choice(first.split())} {chance.choice(last.split())}"
        skus = chance.sample([*prices], k=chance.choices([1, 2, 3, 4], weights=[55, 28, 12, 5])[0])
        items = [(sku, chance.choices([1, 2, 3, 6], weights=[70, 20, 7, 3])[0]) for sku in skus]
        cents = round(sum(prices[sku] * n for sku, n in items) * RATES[currency])
        written = [(sku, str(n)) for sku, n in items]
        if chance.random() < 0.02:
            written[0] = (written[0][0], chance.choice(BAD_QUANTITIES))
        elif chance.random() < 0.02:
            written[-1] = (chance.choice(UNKNOWN), written[-1][1])
        basket = " ".join(f"{sku}:{quantity}" for sku, quantity in written)
        yield f"SO-{100_001 + number}", customer, country, currency, basket, cents


def main(folder: Path = HERE) -> None:
    write(folder / "stock.csv", "sku cents pieces", stock())
    header = "order_id customer country currency items cents"
    write(folder / "orders.csv", header, orders(random.Random(7)))


def write(path: Path, header: str, rows: Iterable[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split())
        writer.writerows(rows)


if __name__ == "__main__":
    main()
