"""Partial credit for contract facts: F1 over the fields, as the source of a python grader.

make.py puts this file into grader.json. Standard library only, so it runs in any grader image.
"""

import re

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
CURRENCIES = {"€": "EUR", "$": "USD", "£": "GBP", "euro": "EUR", "dollar": "USD", "pound": "GBP"}


def words(text):
    return re.findall(r"[^\W_]+", text.casefold())


def name_credit(answer, reference):
    """F1 over the words of a name, so that `Ltd` may be forgotten at a cost."""
    left, right = words(answer), words(reference)
    shared = sum(min(left.count(word), right.count(word)) for word in set(left))
    return 2 * shared / (len(left) + len(right)) if shared else 0.0


def parse_date(text):
    """(year, month, day) of `2024-03-05`, `5 March 2024` or `March 5, 2024`; None elsewhere."""
    iso = re.search(r"(\d{4})-(\d{1,2})-(\d{1,2})", text)
    if iso:
        return tuple(int(part) for part in iso.groups())
    month = next((i for i, name in enumerate(MONTHS, 1) if f" {name}" in f" {text.lower()}"), None)
    year, day = re.search(r"\d{4}", text), re.search(r"(?<!\d)\d{1,2}(?!\d)", text)
    return (int(year[0]), month, int(day[0])) if month and year and day else None


def date_credit(answer, reference):
    """1 for the day, 0.5 for the right month of the right year."""
    left, right = parse_date(answer), parse_date(reference)
    if left is None or right is None:
        return 0.0
    return 1.0 if left == right else 0.5 if left[:2] == right[:2] else 0.0


def parse_amount(text):
    """(digits, currency) of `EUR 12,500`, `€12,500.00` or `12,500 euros`; currency may be None."""
    number = re.search(r"\d[\d,.' ]*", text)
    if number is None:
        return None
    whole = re.sub(r"[.,]\d{1,2}$", "", number[0].strip(" ,.'"))
    named = re.search(r"EUR|USD|GBP", text.upper())
    signs = (code for sign, code in CURRENCIES.items() if sign in text.lower())
    return re.sub(r"\D", "", whole), named[0] if named else next(signs, None)


def amount_credit(answer, reference):
    """1 for number and currency, 0.5 for the number alone."""
    left, right = parse_amount(answer), parse_amount(reference)
    if left is None or right is None or left[0] != right[0]:
        return 0.0
    return 1.0 if left[1] == right[1] else 0.5


FIELDS = {
    "seller": name_credit,
    "buyer": name_credit,
    "date": date_credit,
    "amount": amount_credit,
}


def grade(sample, item):
    """2 x credit / (fields answered + fields stated); an empty field counts as not answered."""
    output = sample.get("output_json")
    output = output if isinstance(output, dict) else {}
    answer = {key: str(output.get(key) or "").strip() for key in FIELDS}
    both = [key for key in FIELDS if answer[key] and item[key]]
    credit = sum(FIELDS[key](answer[key], item[key]) for key in both)
    fields = sum(bool(answer[key]) + bool(item[key]) for key in FIELDS)
    return 2 * credit / fields if fields else 0.0
