"""Messages of other libraries without the passwords and tokens that this process was given.

They come by the address in ``MLFLOW_TRACKING_URI``, and by variables of their own. A secret is
hidden as it was written, percent-encoded and decoded; so is each part of it, since a library that
cuts an address at an ``@`` or ``/`` of the password shows only that.
"""

import logging
import os
import re
import traceback
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

HIDDEN = "***"
SHORTEST = 4  # a shorter secret is hidden in addresses only, or every word would lose its letters
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
ALONE = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD")
# The login of an address, whatever is in its password; a path has none.
LOGIN = re.compile(r"^([\w+.-]+://|(?![\w+.-]+://))(?!/)(.*)@")
LOGINS = re.compile(r"(?<=://)[^\s/'\"]*@")  # of addresses in a text
NAMES = "passw|pwd|token|secret|credential|signature|key|odbc_connect"
KEY = rf"(?i)([?&;][^=&;?\s]*(?:{NAMES})[^=&;\s]*=)"
QUERY = re.compile(KEY + "([^&]*)")  # of an address
QUERIES = re.compile(KEY + r"([^&;\s'\"]*)")  # of addresses in a text


def shown(address: str) -> str:
    """Give an address without its user's name, its password, and what is secret in its query."""
    return LOGIN.sub(r"\1", QUERY.sub(rf"\1{HIDDEN}", address))


def clean(message: str) -> str:
    """Take out of a message what nobody may read."""
    for address in _addresses():
        message = message.replace(address, shown(address))
    for secret in sorted(_secrets(), key=len, reverse=True):
        message = re.sub(re.escape(secret), HIDDEN, message, flags=re.IGNORECASE)
    return LOGINS.sub("", QUERIES.sub(rf"\1{HIDDEN}", message))


def clean_logs() -> None:
    """Take secrets out of what libraries log in this process from now on."""
    if any(_wholes()):
        _install()


@cache
def _install() -> None:
    make = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _cleaned(make(*args, **kwargs))

    logging.setLogRecordFactory(made)


def _cleaned(record: logging.LogRecord) -> logging.LogRecord:
    if not record.name.startswith("mico_exp"):  # its own words are clean, and may be a password
        try:
            record.msg, record.args = clean(record.getMessage()), None
        except (TypeError, ValueError):  # logging itself complains of it, in its own way
            return record
        if record.exc_info and record.exc_info[1]:
            record.exc_text = clean(
                "".join(traceback.format_exception(record.exc_info[1]))
            ).rstrip()
    return record


def _addresses() -> list[str]:
    given = (os.environ.get(name, "") for name in ADDRESSES)
    return [address.rstrip("/") for address in given if address]  # as MLflow's errors have it


def _secrets() -> set[str]:
    """All that is secret, in every form in which a library may show it."""
    forms = {
        form
        for whole in _wholes()
        for decoded in (whole, unquote(whole), unquote_plus(whole))
        for part in (decoded, *re.split("[@/#?:&]", decoded))
        for form in (part, quote(part, safe=""), repr(part)[1:-1])
    }
    return {form for form in forms if len(form) >= SHORTEST}


def _wholes() -> Iterator[str]:
    """Give the secrets as they were written."""
    yield from (os.environ.get(name, "") for name in ALONE)
    for address in _addresses():
        for pattern, text in ((QUERY, address), (QUERIES, unquote(address))):
            yield from (value for _, value in pattern.findall(text))
        if login := LOGIN.match(QUERY.sub(r"\1", address)):
            name, colon, password = login[2].partition(":")
            yield password
            if not colon and address.startswith("http"):  # a token in the place of a name
                yield name
