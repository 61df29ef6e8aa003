"""What is secret is in no message, however a library writes it."""

import logging
from urllib.parse import quote, unquote

import pytest

from mico_exp.common.redaction import clean, clean_logs, shown

PASSWORDS = [
    "S3cretPass",
    "pa@ss/word",
    "pa%40ss%2Fword",
    "one#two?three",
    "two words",
    "it's'\\so",
]
LOGINS = [f"user:{password}@" for password in PASSWORDS]
ADDRESSES = [
    *(f"http://{login}host:5000" for login in LOGINS),
    *(f"postgresql+psycopg2://{login}host:5432/db?sslmode=require" for login in LOGINS),
    *(
        f"mysql://host/db?user=me&password={password}"
        for password in PASSWORDS
        if "#" not in password
    ),
    "http://S3cretPass@host:5000/",
    "user:S3cretPass@host:5000",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3DS3cretPass",
    "postgresql://host/db?sslpassword=S3cretPass&sslmode=require",
    "http://host/?api_key=S3cretPass",
]


def secret_of(address):
    """The password, as this test put it there."""
    return next(p for p in PASSWORDS if p in address)


@pytest.fixture(autouse=True)
def _nothing_is_given(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_form_of_a_password_is_left(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    secret = secret_of(address)
    tail = address.rstrip("/")
    decoded, encoded = unquote(secret), quote(unquote(secret), safe="")
    for message in (
        f"API request to {tail}/api/2.0 failed",
        f"cannot parse {unquote(address)!r}",
        f"access denied: {secret}, {decoded}, {encoded}, {decoded!r}",
        f"cannot resolve host '{decoded.rpartition('@')[2]}'",
        f"port '{decoded.partition('/')[0].partition('#')[0]}' is no number",
    ):
        left = clean(message)
        for form in {secret, decoded, encoded, repr(decoded)[1:-1]}:
            assert form.lower() not in left.lower()
        for part in decoded.replace("@", "/").replace("#", "/").replace("?", "/").split("/"):
            assert len(part) < 4 or part not in left
    assert secret not in shown(address)
    assert decoded not in shown(address)
    assert "host" in shown(address) or "odbc" in address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("file:///home/me@work/mlruns", "file:///home/me@work/mlruns"),
        ("/home/me@work/mlruns", "/home/me@work/mlruns"),
        ("postgresql://me:pw@db/x?sslmode=require", "postgresql://db/x?sslmode=require"),
        ("http://me:a/b@c#d@host:1/x", "http://host:1/x"),
        ("mysql://db/x?password=a@b&ssl=1", "mysql://db/x?password=***&ssl=1"),
    ],
)
def test_what_is_shown_of_an_address(address, expected):
    assert shown(address) == expected


def test_a_short_secret_takes_no_words_with_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:run@host")
    message = "the run at http://me:run@host/api of http://me:run@other is running"
    assert clean(message) == "the run at http://host/api of http://other is running"


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_secrets_of_their_own_variables(name, monkeypatch):
    monkeypatch.setenv(name, "S3cretPass")
    assert clean("401: S3cretPass is wrong") == "401: *** is wrong"


def test_addresses_that_nobody_gave():
    assert clean("no artifact in sftp://me:S3cretPass@store/x") == "no artifact in sftp://store/x"
    assert clean("GET https://store/x?sig=1&X-Amz-Signature=S3cretPass failed") == (
        "GET https://store/x?sig=1&X-Amz-Signature=*** failed"
    )


def test_what_libraries_log(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:S3cretPass@host")
    clean_logs()
    log = logging.getLogger("mlflow.store")
    log.warning("cannot reach %s", "http://me:S3cretPass@host")
    try:
        raise ValueError("S3cretPass")
    except ValueError:
        log.exception("of %s", "S3cretPass")
    assert "cannot reach http://host" in caplog.text
    assert "ValueError: ***" in caplog.text
    assert "S3cretPass" not in caplog.text
