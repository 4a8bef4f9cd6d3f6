"""Which addresses a webhook may go to (S12): only those of hosts that the operator lists, read in one way alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest, SettingsError
from router.serve.webhook_hosts import Webhook, check_webhooks, read_hosts, read_webhook

HOSTS = read_hosts(
    "hooks.example, other.example:8443 ,*.wide.example, 10.1.2.3, [FD00::7]:8443, localhost:9000, [::1]:80"
)


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("https://hooks.example", "https://hooks.example", b"/"),
        ("https://hooks.example/a/b?c=d&e=f/g?h", "https://hooks.example", b"/a/b?c=d&e=f/g?h"),
        ("https://hooks.example?a=b", "https://hooks.example", b"/?a=b"),
        ("https://HOOKS.Example:443/A", "https://hooks.example", b"/A"),
        ("https://other.example:8443/", "https://other.example:8443", b"/"),
        ("https://a.wide.example/", "https://a.wide.example", b"/"),
        ("https://a.b.wide.example/", "https://a.b.wide.example", b"/"),
        ("https://10.1.2.3/", "https://10.1.2.3", b"/"),
        ("https://[::ffff:10.1.2.3]/", "https://10.1.2.3", b"/"),
        ("https://[fd00:0:0::7]:8443/", "https://[fd00::7]:8443", b"/"),
        ("http://localhost:9000/x", "http://localhost:9000", b"/x"),
        ("https://localhost:9000/x", "https://localhost:9000", b"/x"),
        ("http://[0:0:0:0:0:0:0:1]/", "http://[::1]", b"/"),
    ],
)
def test_a_listed_host_is_called(url: str, origin: str, target: bytes) -> None:
    """By the form of its name that was compared, with the path and query as they came."""
    found = read_webhook(url, HOSTS)
    assert (found.origin, found.target) == (origin, target)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/", "https://hooks.example.evil/", "https://evilhooks.example/", "https://wide.example/",
        "https://xwide.example/", "https://hooks.example:8443/", "https://other.example/", "https://10.1.2.4/",
        "https://10.1.2.3:80/", "https://127.0.0.1:9000/", "https://169.254.169.254/", "https://[::1]:9000/",
        "https://167838211/", "https://0xa.1.2.3/", "https://012.1.2.3/", "https://10.66051/", "https://[::]/",
        "https://[fd00::8]:8443/", "https://a..wide.example/",
    ],
)  # fmt: skip
def test_another_host_is_refused_by_name(url: str) -> None:
    """Also what resembles a listed one, another port, and numbers that some take for an address."""
    with pytest.raises(InvalidRequest, match="is not one that this router calls") as caught:
        read_webhook(url, HOSTS)
    assert "`hooks.example`" not in caught.value.message  # what is listed is nobody's business
    assert "webhook_hosts" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example", "//hooks.example/", "ftp://hooks.example/", "HTTPS://hooks.example/",
        "https:/hooks.example/",
        "https://user@hooks.example/", "https://hooks.example@evil.example/", "https://evil.example\\@hooks.example/",
        "https://hooks.example\\.evil.example/", "https://hooks.example#@evil.example/", "https://hooks.example/#x",
        "https://hooks.example /", "https://hooks.example/ x", "https://hooks.example/\r\nx: y", "https://hooks.example/\n",
        "https://hooks.example/\x00", "https://hooks.example/ü", "https://hooks。example/", "https://hooks.example./",
        "https://hooks.example:/", "https://hooks.example:0/", "https://hooks.example:65536/", "https://hooks.example:4４3/",
        "https://[fd00::7%25eth0]:8443/", "https://[fd00::7]evil.example:8443/", "https://hooks.example/" + "a" * 2048,
        " https://hooks.example/", "https://-hooks.example/", "https://%68ooks.example/",
    ],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused_unshown(url: str) -> None:
    """No user, no fragment, nothing but visible ASCII, one form of port: nothing two readers could differ on."""
    with pytest.raises(InvalidRequest, match="is not an address that is called") as caught:
        read_webhook(url, HOSTS)
    assert "evil" not in caught.value.message


def test_a_private_machine_is_called_by_https_only() -> None:
    """Plain text goes to the router's own machine, and nowhere else."""
    for url in ("http://hooks.example/", "http://10.1.2.3/", "http://a.wide.example/"):
        with pytest.raises(InvalidRequest, match="must be `https://…`"):
            read_webhook(url, HOSTS)


def test_without_a_list_the_header_is_refused_plainly() -> None:
    """The client reads which setting is missing, and what to do without it."""
    with pytest.raises(InvalidRequest, match="`webhook_hosts` is not set") as caught:
        read_webhook("https://hooks.example/", ())
    assert "`location`" in caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        "", "https://hooks.example", "hooks.example/x", "*", "*.", "*hooks.example", "a.*.example", "hooks.example:0",
        "hooks.example:70000", "user@hooks.example", "hooks..example", "hooks.example.", "10.1.2", "0x7f000001", "[::1",
        "169.254.169.254", "[fe80::1]", "224.0.0.1", "0.0.0.0", "[::]", "[::ffff:169.254.169.254]", "*.10.1.2.3",
        "*.localhost", "hööks.example", "hooks\n.example", "hooks.example,", ",", "a,,b",
    ],
)  # fmt: skip
def test_a_list_that_says_something_odd_stops_the_start(entry: str) -> None:
    """With the entry; link-local addresses, where clouds keep their metadata, are never receivers."""
    with pytest.raises(SettingsError, match="`webhook_hosts` lists `"):
        read_hosts(entry)


def test_a_list_needs_a_secret_and_a_secret_no_list() -> None:
    """An unsigned webhook could come from anybody."""
    with pytest.raises(SettingsError, match="`webhook_secret` is not"):
        check_webhooks("hooks.example", None)
    check_webhooks("hooks.example", "s")
    check_webhooks(None, "s")
    check_webhooks(None, None)
    assert read_hosts(None) == ()


@given(
    st.text(max_size=60)
    | st.from_regex(r"https?://[a-z@:/.\\#?\[\]0-9]{0,30}hooks\.example[a-z@:/.\\#?]{0,20}", fullmatch=True)
)
def test_whatever_is_written_leads_to_a_listed_host_or_nowhere(url: str) -> None:
    """An origin is made of nothing but a listed name; all else is InvalidRequest, never another error."""
    try:
        found = read_webhook(url, HOSTS)
    except InvalidRequest:
        return
    assert isinstance(found, Webhook)
    assert found.origin in ("https://hooks.example", "https://localhost:9000", "http://localhost:9000")
    assert found.target.startswith(b"/")
