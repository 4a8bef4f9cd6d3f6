"""A front before us that reads requests in its own way: what it means is what we do, request for request (S31)."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager

import pytest
from kit.processes import router
from kit.raw_client import RawClient, request
from kit.raw_upstream import raw_upstream
from kit.redis_server import _free_port
from kit.stage import always, answers
from kit.strict_cases import BODY, KEY, POST, REFUSED, SERVED, Case

pytestmark = pytest.mark.anyio

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
CONF = """\
worker_processes 1; master_process off; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    underscores_in_headers on; ignore_invalid_headers off;
    log_format plain "$status $proxy_host"; access_log {folder}/access.log plain;
    upstream router {{ server 127.0.0.1:{to}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://router; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering {buffering};
        }}
    }}
}}
"""
SMALL = [case for case in [*REFUSED, *SERVED] if len(case.data) < 4000]


@pytest.fixture(scope="module")
async def upstream():
    async with raw_upstream(answers()) as running:
        yield running


@pytest.fixture(scope="module")
async def server(upstream, tmp_path_factory):
    async with router(tmp_path_factory.mktemp("behind"), upstream.origin, policy=always(), cache="off") as running:
        yield running


@asynccontextmanager
async def nginx(folder, to: int, buffering: str):
    port = _free_port()
    (folder / "nginx.conf").write_text(CONF.format(folder=folder, port=port, to=to, buffering=buffering))
    process = await asyncio.create_subprocess_exec(
        str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    wire = await RawClient.open(port)
                    await wire.close()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.01)
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(scope="module", params=["on", "off"])
async def front(request, server, tmp_path_factory):
    if NGINX is None:
        pytest.skip("nginx is not installed")
    async with nginx(tmp_path_factory.mktemp("front"), server.port, request.param) as port:
        yield port


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
async def test_the_front_and_we_see_the_same_requests(front, server, upstream, case: Case) -> None:
    """As many calls upstream as answers of success; a marked request behind is served as itself or not at all."""
    asked = len(upstream.requests)
    mark = BODY.replace(b"Hi", b"marked")
    wire = await RawClient.open(front)
    behind = request(POST, *KEY, b"content-length: %d" % len(mark), b"connection: close", body=mark)
    await wire.say(case.data + behind)
    try:
        found = await asyncio.wait_for(wire.everything(), 5)
    finally:
        await wire.close()
    served = found.count(b"HTTP/1.1 200 OK\r\n")
    sent = upstream.requests[asked:]
    assert len(sent) == served
    assert [call.line for call in sent] == [call.line for call in sent if call.line.startswith(b"POST /v1/messages")]
    bodies = [call.body for call in sent]
    assert all(body.count(b"marked") <= 1 and body.endswith(b"}]}") for body in bodies)
    # And the connections that the front keeps to us are in step: the next client gets its own answer.
    own = BODY.replace(b"Hi", b"mine")
    other = await RawClient.open(front)
    await other.say(request(POST, *KEY, b"content-length: %d" % len(own), b"connection: close", body=own))
    assert [answer.status for answer in await other.answers()] == [200]
    await other.close()
    assert b"mine" in upstream.requests[-1].body
    assert len(upstream.requests) == asked + served + 1
