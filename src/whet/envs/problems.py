"""Mathematical problems with one right answer that takes a computation: text, the answer, and code that prints it.

Each kind is a function of a random generator. The answer comes from an algorithm of its own here, not from the code, so that
running the code checks both. A problem belongs to the split that the hash of its text says: 8 of 10 to train, 1 to dev, 1 to
test. So no problem is in two of them, whatever the seeds.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from whet.seeding import derive_seed
from whet.types import Split

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
Made = tuple[str, str, object]
"""Text, code, answer."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, code that prints its answer, and the answer."""

    kind: str
    text: str
    code: str
    answer: str


def make(seed: int, split: Split, kinds: tuple[str, ...]) -> Problem:
    """The problem of this seed: drawn again until it belongs to the split, which takes ten draws where the split is small."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(kinds)
        text, code, answer = KINDS[kind](rng)
        if split_of(text) == split:
            return Problem(kind, text, code.strip("\n") + "\n", str(answer))


def split_of(text: str) -> Split:
    """The split that a problem belongs to, for ever."""
    tenth = derive_seed("python", "split", text) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def multiples(rng: random.Random) -> Made:
    a, b, p, q = rng.randint(1, 500), rng.randint(1000, 9999), *rng.sample((3, 4, 5, 6, 7, 9, 11, 13), 2)
    text = f"What is the sum of all integers from {a} to {b}, both included, that are divisible by {p} or by {q}?"

    def upto(n: int) -> int:
        return sum(sign * d * (n // d) * (n // d + 1) // 2 for d, sign in ((p, 1), (q, 1), (math.lcm(p, q), -1)))

    return text, f"print(sum(n for n in range({a}, {b} + 1) if n % {p} == 0 or n % {q} == 0))", upto(b) - upto(a - 1)


def digits_of_power(rng: random.Random) -> Made:
    base, power = rng.randint(3, 99), rng.randint(30, 150)
    total, left = 0, base**power
    while left:
        left, digit = divmod(left, 10)
        total += digit
    return f"What is the sum of the decimal digits of {base}^{power}?", f"print(sum(map(int, str({base} ** {power}))))", total


def primes_between(rng: random.Random) -> Made:
    low = rng.randint(100, 4000)
    high = low + rng.randint(200, 2000)
    code = f"""
def prime(n):
    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))

print(sum(prime(n) for n in range({low}, {high} + 1)))
"""
    return f"How many prime numbers p satisfy {low} <= p <= {high}?", code, sum(low <= p <= high for p in _primes())


def prime_after(rng: random.Random) -> Made:
    low, k = rng.randint(500, 5000), rng.randint(5, 60)
    code = f"""
found, n = 0, {low}
while found < {k}:
    n += 1
    found += all(n % d for d in range(2, int(n ** 0.5) + 1))
print(n)
"""
    answer = next(itertools.islice((p for p in _primes() if p > low), k - 1, None))
    return f"What is prime number {k} in the list of all primes greater than {low}, in increasing order?", code, answer


def last_digits(rng: random.Random) -> Made:
    base, power, modulus = rng.randint(12, 9999), rng.randint(1000, 10**6), rng.randint(1000, 10**6)
    result, square, left = 1, base % modulus, power
    while left:
        result = result * square % modulus if left & 1 else result
        square, left = square * square % modulus, left >> 1
    return f"What is the remainder of {base}^{power} divided by {modulus}?", f"print(pow({base}, {power}, {modulus}))", result


def lattice_paths(rng: random.Random) -> Made:
    width, height = rng.randint(6, 11), rng.randint(6, 11)
    cells = [(x, y) for x in range(width + 1) for y in range(height + 1) if (x, y) not in ((0, 0), (width, height))]
    blocked = sorted(rng.sample(cells, 3))
    points = ", ".join(f"({x}, {y})" for x, y in blocked)
    text = (
        f"A path goes from (0, 0) to ({width}, {height}) on the integer grid by steps that add 1 to x or 1 to y. "
        f"How many such paths avoid all of the points {points}?"
    )
    code = f"""
blocked = {{{points}}}
ways = {{(0, 0): 1}}
for x in range({width} + 1):
    for y in range({height} + 1):
        if (x, y) != (0, 0):
            ways[x, y] = 0 if (x, y) in blocked else ways.get((x - 1, y), 0) + ways.get((x, y - 1), 0)
print(ways[{width}, {height}])
"""
    # paths that meet no blocked point before their end, by the first one that they meet
    ends = [*blocked, (width, height)]
    free: list[int] = []
    for i, (x, y) in enumerate(ends):
        free.append(_paths(x, y) - sum(free[j] * _paths(x - u, y - v) for j, (u, v) in enumerate(ends[:i])))
    return text, code, free[-1]


def _paths(x: int, y: int) -> int:
    return math.comb(x + y, x) if x >= 0 and y >= 0 else 0


def coins(rng: random.Random) -> Made:
    values = sorted(rng.sample((1, 2, 3, 5, 7, 8, 10, 12, 20, 25), rng.randint(3, 5)))
    amount = rng.randint(80, 300)
    text = f"In how many ways can an amount of {amount} be paid with coins of {_listed(values)}, any number of each? Order is irrelevant."
    code = f"""
ways = [1] + [0] * {amount}
for coin in {values}:
    for amount in range(coin, {amount} + 1):
        ways[amount] += ways[amount - coin]
print(ways[{amount}])
"""

    @functools.cache
    def count(left: int, used: int) -> int:
        if used == 1:
            return int(left % values[0] == 0)
        return sum(count(left - values[used - 1] * n, used - 1) for n in range(left // values[used - 1] + 1))

    return text, code, count(amount, len(values))


def arrangements(rng: random.Random) -> Made:
    letters = "".join(sorted(rng.choices("ABCDE", k=rng.randint(6, 8))))
    text = f"How many different arrangements of the letters {letters} have no two equal letters next to each other?"
    code = f"""
from itertools import permutations

words = set(permutations("{letters}"))
print(sum(all(a != b for a, b in zip(word, word[1:])) for word in words))
"""

    @functools.cache
    def count(left: tuple[int, ...], last: int) -> int:
        if not any(left):
            return 1
        return sum(count((*left[:i], n - 1, *left[i + 1 :]), i) for i, n in enumerate(left) if n and i != last)

    return text, code, count(tuple(Counter(letters).values()), -1)


def fixed_points(rng: random.Random) -> Made:
    n, k = rng.randint(7, 60), rng.randint(1, 6)
    text = f"How many permutations of {n} objects leave exactly {k} of them in place?"
    code = f"""
from math import comb

derangements = [1, 0]
for n in range(2, {n} + 1):
    derangements.append((n - 1) * (derangements[-1] + derangements[-2]))
print(comb({n}, {k}) * derangements[{n} - {k}])
"""
    rest = n - k
    return text, code, math.comb(n, k) * sum((-1) ** i * math.factorial(rest) // math.factorial(i) for i in range(rest + 1))


def divisors(rng: random.Random) -> Made:
    n = rng.randint(1000, 9999) * rng.choice((12, 30, 36, 60, 90))
    text = f"What is the sum of all positive divisors of {n}?"
    total, left, p = 1, n, 2
    while left > 1:
        power = 1
        while left % p == 0:
            left, power = left // p, power * p
        total *= (power * p - 1) // (p - 1)
        p += 1
    return text, f"print(sum(d for d in range(1, {n} + 1) if {n} % d == 0))", total


def greatest_common(rng: random.Random) -> Made:
    n, low = rng.randint(50, 2000), rng.randint(1, 300)
    high = low + rng.randint(100, 900)
    text = f"What is the sum of gcd(i, {n}) for all integers i from {low} to {high}, both included?"
    code = f"from math import gcd\n\nprint(sum(gcd(i, {n}) for i in range({low}, {high} + 1)))"
    answer = sum(_phi(d) * (high // d - (low - 1) // d) for d in range(1, n + 1) if n % d == 0)
    return text, code, answer


def _phi(n: int) -> int:
    return sum(math.gcd(i, n) == 1 for i in range(1, n + 1))


def palindromes(rng: random.Random) -> Made:
    base, low = rng.choice((2, 3, 5, 7, 8)), rng.randint(1, 900)
    high = low + rng.randint(500, 8000)
    text = f"How many integers from {low} to {high}, both included, are palindromes when written in base {base}?"
    code = f"""
def palindrome(n):
    digits = []
    while n:
        n, digit = divmod(n, {base})
        digits.append(digit)
    return digits == digits[::-1]

print(sum(palindrome(n) for n in range({low}, {high} + 1)))
"""
    count, length = 0, 1
    while base ** (length - 1) <= high:  # palindromes made from their first halves
        half = (length + 1) // 2
        for first in range(base ** (half - 1), base**half):
            value, rest = first, first // base if length % 2 else first
            for _ in range(length // 2):
                rest, digit = divmod(rest, base)
                value = value * base + digit
            count += low <= value <= high
        length += 1
    return text, code, count


def substrings(rng: random.Random) -> Made:
    word, k = "".join(rng.choices("abc", k=rng.randint(40, 90))), rng.randint(3, 5)
    text = f"How many different substrings of length {k} does this string have? {word}"
    code = f'word = "{word}"\nprint(len({{word[i:i + {k}] for i in range(len(word) - {k} + 1)}}))'
    return text, code, sum("".join(piece) in word for piece in itertools.product("abc", repeat=k))


def caesar(rng: random.Random) -> Made:
    word, shift = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(12, 24))), rng.randint(2, 24)
    text = (
        f"Replace every letter of {word} by the one {shift} places later in the alphabet (after z comes a), then reverse the result and "
        f"remove every third letter, the first one removed being the third. What is left?"
    )
    code = f"""
shifted = "".join(chr((ord(c) - 97 + {shift}) % 26 + 97) for c in "{word}")[::-1]
print("".join(c for i, c in enumerate(shifted, 1) if i % 3))
"""
    table = str.maketrans(string.ascii_lowercase, string.ascii_lowercase[shift:] + string.ascii_lowercase[:shift])
    kept = list(reversed(word.translate(table)))
    del kept[2::3]
    return text, code, "".join(kept)


def weekdays(rng: random.Random) -> Made:
    first = rng.randint(1900, 2080)
    last = first + rng.randint(5, 60)
    day, name = rng.randint(1, 28), rng.choice(WEEKDAYS)
    text = f"How many months from January {first} to December {last} have a {name} on day {day} (Gregorian calendar)?"
    code = f"""
from datetime import date

dates = (date(year, month, {day}) for year in range({first}, {last} + 1) for month in range(1, 13))
print(sum(day.strftime("%A") == "{name}" for day in dates))
"""
    # Zeller's congruence, in which January and February belong to the year before and 0 is a Saturday
    count = 0
    for year, month in itertools.product(range(first, last + 1), range(1, 13)):
        y, m = (year, month) if month > 2 else (year - 1, month + 12)
        count += (day + 13 * (m + 1) // 5 + y + y // 4 - y // 100 + y // 400) % 7 == (WEEKDAYS.index(name) + 2) % 7
    return text, code, count


def matrix_power(rng: random.Random) -> Made:
    rows = [[rng.randint(-5, 9) for _ in range(3)] for _ in range(3)]
    power, modulus = rng.randint(20, 400), rng.choice((97, 101, 997, 1009, 9973))
    text = f"Let M be the matrix with rows {_listed(rows)}. What is the trace of M^{power} modulo {modulus} (from 0 to {modulus - 1})?"
    code = f"""
def product(a, b):
    return [[sum(x * y for x, y in zip(row, column)) % {modulus} for column in zip(*b)] for row in a]

m = {rows}
result = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
for _ in range({power}):
    result = product(result, m)
print(sum(result[i][i] for i in range(3)) % {modulus})
"""
    # Newton: the traces of the powers obey the characteristic polynomial's recurrence
    (a, b, c), (d, e, f), (g, h, i) = rows
    t, s = a + e + i, (a * e - b * d) + (a * i - c * g) + (e * i - f * h)
    n = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    traces = [3, t, t * t - 2 * s]
    while len(traces) <= power:
        traces.append((t * traces[-1] - s * traces[-2] + n * traces[-3]) % modulus)
    return text, code, traces[power] % modulus


def recurrence(rng: random.Random) -> Made:
    first, second, p, q = rng.randint(0, 20), rng.randint(1, 20), rng.randint(2, 9), rng.randint(1, 9)
    n, modulus = rng.randint(200, 3000), rng.choice((1000, 9973, 10007, 65537))
    text = f"Let x(0) = {first}, x(1) = {second} and x(n) = {p} x(n-1) + {q} x(n-2). What is x({n}) modulo {modulus}?"
    code = f"a, b = {first}, {second}\nfor _ in range({n}):\n    a, b = b, {p} * b + {q} * a\nprint(a % {modulus})"
    result, square, bits = (1, 0), (0, 1), n  # powers of t modulo t^2 - pt - q, as coefficients of 1 and t
    while bits:
        if bits & 1:
            result = _times(result, square, p, q, modulus)
        square, bits = _times(square, square, p, q, modulus), bits >> 1
    return text, code, (result[0] * first + result[1] * second) % modulus


def _times(a: tuple[int, int], b: tuple[int, int], p: int, q: int, modulus: int) -> tuple[int, int]:
    high = a[1] * b[1]
    return (a[0] * b[0] + q * high) % modulus, (a[0] * b[1] + a[1] * b[0] + p * high) % modulus


def dice(rng: random.Random) -> Made:
    n, sides = rng.randint(4, 9), rng.choice((4, 6, 8, 10, 12))
    total = rng.randint(2 * n, n * sides - n)
    text = f"{n} different dice with faces 1 to {sides} are thrown. In how many of the outcomes is the sum exactly {total}?"
    code = f"""
ways = {{0: 1}}
for _ in range({n}):
    after = {{}}
    for total, count in ways.items():
        for face in range(1, {sides} + 1):
            after[total + face] = after.get(total + face, 0) + count
    ways = after
print(ways.get({total}, 0))
"""
    terms = ((-1) ** k * math.comb(n, k) * math.comb(total - sides * k - 1, n - 1) for k in range((total - n) // sides + 1))
    return text, code, sum(terms)


def partitions(rng: random.Random) -> Made:
    n, k = rng.randint(20, 90), rng.randint(3, 9)
    text = f"In how many ways can {n} be written as a sum of exactly {k} positive integers, ignoring their order?"
    code = f"""
from functools import cache

@cache
def count(n, k, largest):
    if k == 0:
        return int(n == 0)
    return sum(count(n - part, k - 1, part) for part in range(1, min(n, largest) + 1))

print(count({n}, {k}, {n}))
"""
    ways = [1] + [0] * (n - k)  # by conjugation: partitions of n - k into parts of at most k
    for part in range(1, k + 1):
        for total in range(part, n - k + 1):
            ways[total] += ways[total - part]
    return text, code, ways[n - k]


def shortest_path(rng: random.Random) -> Made:
    names = string.ascii_uppercase[: rng.randint(8, 11)]
    edges = {pair: rng.randint(2, 40) for pair in rng.sample(list(itertools.combinations(names, 2)), 2 * len(names))}
    edges |= {(a, b): rng.randint(20, 60) for a, b in itertools.pairwise(names) if (a, b) not in edges}
    roads = ", ".join(f"{a}-{b} {length}" for (a, b), length in edges.items())
    text = f"Roads and their lengths: {roads}. How long is the shortest way from {names[0]} to {names[-1]}?"
    code = f"""
import heapq

roads = {{}}
for road in "{roads}".split(", "):
    ends, length = road.split()
    a, b = ends.split("-")
    roads.setdefault(a, []).append((b, int(length)))
    roads.setdefault(b, []).append((a, int(length)))
queue, done = [(0, "{names[0]}")], set()
while queue:
    length, at = heapq.heappop(queue)
    if at == "{names[-1]}":
        print(length)
        break
    if at not in done:
        done.add(at)
        for to, more in roads[at]:
            heapq.heappush(queue, (length + more, to))
"""
    far = {(a, b): math.inf if a != b else 0 for a in names for b in names}
    for (a, b), length in edges.items():
        far[a, b] = far[b, a] = length
    for via, a, b in itertools.product(names, names, names):
        far[a, b] = min(far[a, b], far[a, via] + far[via, b])
    return text, code, far[names[0], names[-1]]


def digit_base(rng: random.Random) -> Made:
    base, n = rng.choice((2, 3, 4, 5, 6, 7, 9)), rng.randint(500, 6000)
    text = f"Write every integer from 1 to {n} in base {base}. What is the sum of all the digits written?"
    code = f"""
total = 0
for n in range(1, {n} + 1):
    while n:
        total += n % {base}
        n //= {base}
print(total)
"""
    total, place = 0, 1
    while place <= n:
        full, rest = divmod(n + 1, place * base)
        digit, part = divmod(rest, place)
        total += full * place * base * (base - 1) // 2 + place * digit * (digit - 1) // 2 + digit * part
        place *= base
    return text, code, total


def intervals(rng: random.Random) -> Made:
    spans = [(start, start + rng.randint(5, 120)) for start in (rng.randint(-500, 500) for _ in range(rng.randint(10, 18)))]
    listed = ", ".join(f"[{a}, {b}]" for a, b in spans)
    text = f"What is the total length of the union of these intervals of the real line? {listed}"
    code = f"""
total, end = 0, float("-inf")
for a, b in sorted([{listed}]):
    total += max(0, b - max(a, end))
    end = max(end, b)
print(total)
"""
    return text, code, sum(any(a <= x < b for a, b in spans) for x in range(-600, 700))


def knapsack(rng: random.Random) -> Made:
    items = [(rng.randint(4, 40), rng.randint(10, 99)) for _ in range(rng.randint(9, 12))]
    room = sum(weight for weight, _ in items) // rng.choice((2, 3))
    listed = ", ".join(f"({weight}, {value})" for weight, value in items)
    text = (
        f"Each pair is an item's weight and value: {listed}. What is the greatest total value of items that weigh at most {room} together?"
    )
    code = f"""
best = [0] * ({room} + 1)
for weight, value in [{listed}]:
    for room in range({room}, weight - 1, -1):
        best[room] = max(best[room], best[room - weight] + value)
print(max(best))
"""
    sums = {(0, 0)}
    for weight, value in items:
        sums |= {(w + weight, v + value) for w, v in sums if w + weight <= room}
    return text, code, max(value for _, value in sums)


def sequence_median(rng: random.Random) -> Made:
    x, a, c, m = rng.randint(1, 999), rng.randint(3, 999), rng.randint(1, 999), rng.randint(1000, 99999)
    n = 2 * rng.randint(25, 250) + 1
    text = f"Let x(0) = {x} and x(i+1) = ({a} x(i) + {c}) mod {m}. What is the median of x(1), ..., x({n})?"
    code = (
        f"x, values = {x}, []\nfor _ in range({n}):\n    x = ({a} * x + {c}) % {m}\n    values.append(x)\nprint(sorted(values)[{n // 2}])"
    )
    values = list(itertools.islice(itertools.accumulate(itertools.repeat(0), lambda x, _: (a * x + c) % m, initial=x), 1, n + 1))
    return text, code, next(v for v in values if sum(u < v for u in values) <= n // 2 < sum(u <= v for u in values))


@functools.cache
def _primes() -> tuple[int, ...]:
    """All below 8192."""
    sieve = bytearray([1]) * 8192
    for p in range(2, 91):
        if sieve[p]:
            sieve[p * p :: p] = bytes(len(sieve[p * p :: p]))
    return tuple(p for p in range(2, len(sieve)) if sieve[p])


def _listed(values: list[int] | list[list[int]]) -> str:
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}"


KINDS: dict[str, Callable[[random.Random], Made]] = {
    function.__name__: function
    for function in (
        *(multiples, digits_of_power, primes_between, prime_after, last_digits, lattice_paths, coins, arrangements, fixed_points),
        *(divisors, greatest_common, palindromes, substrings, caesar, weekdays, matrix_power, recurrence, dice),
        *(partitions, shortest_path, digit_base, intervals, knapsack, sequence_median),
    )
}
"""Name -> what makes a problem of that kind."""
