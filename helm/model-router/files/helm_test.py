"""What `helm test` runs: one streamed request through the router beside it, and a look at the release's own Service.

The router beside it has the release's image, settings and policies, and a simulator as its upstream: nothing is billed
and no key is needed. The release's Service is asked without a credential and must refuse in the API's own shape, which
also costs nothing. Arguments: the router's origin, and the Service's origin or `-`.
"""

import json
import sys
import time
import urllib.error
import urllib.request

LIMIT_S = 60.0


def post(origin: str, headers: dict[str, str], **more: object) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of `POST /v1/messages`."""
    body = {
        "model": "claude-sonnet-5-5",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "Translate to French: good morning"}],
        **more,
    }
    request = urllib.request.Request(  # noqa: S310 - the origins are those of the pod
        f"{origin}/v1/messages",
        json.dumps(body).encode(),
        {"content-type": "application/json", "anthropic-version": "2023-06-01", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310
            return answer.status, dict(answer.headers.items()), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers.items()), error.read().decode()


def reached(origin: str, headers: dict[str, str], **more: object) -> tuple[int, dict[str, str], str]:
    """The same, once somebody listens; at most LIMIT_S are waited for that."""
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            return post(origin, headers, **more)
        except OSError as exc:
            if time.monotonic() > until:
                raise SystemExit(f"{origin} does not answer: {exc}") from exc
            time.sleep(0.2)


def main(router: str, service: str) -> None:
    """Print what was seen; SystemExit with the reason where something is wrong."""
    status, headers, text = reached(router, {"x-api-key": "helm-test"}, stream=True)
    if status != 200 or "event: message_stop" not in text:
        raise SystemExit(f"the router answered {status}: {text[:500]}")
    named = {name.lower(): value for name, value in headers.items()}
    print(
        "streamed through",
        *(f"{name}={named.get(name)}" for name in ("x-router-model", "x-router-rule", "x-router-policy")),
    )
    if service != "-":
        status, _, text = reached(service, {})
        if status != 401 or json.loads(text)["error"]["type"] != "authentication_error":
            raise SystemExit(f"the Service answered {status} to a request without a credential: {text[:500]}")
        print("the Service answers, and refuses who has no credential")


if __name__ == "__main__":
    main(*sys.argv[1:])
