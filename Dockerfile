# model-router as an image.
#
#   docker build -t model-router .
#   docker run --rm -p 8080:8080 model-router
#
# What you may want to give it:
#   -v ./policies:/etc/router/policies:ro   your own policies; an edit is live without a restart
#   -v router-traces:/var/lib/router        the trace file; the volume must be writable by user 10001
#   -e ROUTER_ADMIN_HOST=0.0.0.0 -e ROUTER_ADMIN_TOKEN_FILE=/run/secrets/admin -p 8081:8081
#                                           the trace page and /metrics from outside; off loopback they need a token
# All settings: docs/settings.md. In Kubernetes set `enableServiceLinks: false`: variables such as ROUTER_PORT, which it
# makes for a service named `router`, would be read as settings.

# Pin the base by digest (FROM python:3.11-slim-bookworm@sha256:…) where builds must be repeatable.
FROM python:3.11-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements requirements

# What runs: exactly the locked packages, each checked against its hash; wheels only, as there is no compiler here.
RUN python -m venv /opt/router \
 && /opt/router/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/run.txt

# What builds: hatchling is part of the locked set for tests. Nothing of this environment is in the image.
RUN python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/test.txt

COPY pyproject.toml README.md ./
COPY router router
RUN /opt/build/bin/python -m pip wheel --no-build-isolation --no-deps --wheel-dir /dist . \
 && /opt/router/bin/python -m pip install --no-deps --no-index /dist/*.whl


FROM python:3.11-slim-bookworm

COPY --from=build /opt/router /opt/router
COPY policies /etc/router/policies
RUN install -d -o 10001 -g 10001 /var/lib/router

ENV PATH=/opt/router/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ROUTER_HOST=0.0.0.0 \
    ROUTER_POLICIES=/etc/router/policies \
    ROUTER_TRACES=sqlite:////var/lib/router/router.db

# By number, so that Kubernetes can check `runAsNonRoot` without a user database.
USER 10001:10001
WORKDIR /var/lib/router
EXPOSE 8080

# The admin listener is asked from inside; change the port here if you change ROUTER_ADMIN_PORT.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/readyz', timeout=2)"]

# Exec form: the router is process 1 and gets SIGTERM itself. It gives requests under way 30 seconds, so stop it with
# more patience than the default: docker stop --time 40.
ENTRYPOINT ["router"]
CMD ["serve"]
