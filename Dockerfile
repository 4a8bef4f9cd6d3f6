# model-router as an image.
#
#   docker build -t model-router .
#   docker run --rm -p 8080:8080 model-router
#
# buildah: `buildah bud --format docker -t model-router .`, or the image has no health check.
# What you may want to give it:
#   --read-only --cap-drop ALL --security-opt no-new-privileges
#                                           it needs nothing of what these take away
#   -v ./policies:/etc/router/policies:ro   your own policies; an edit is live without a restart
#   -v router-traces:/var/lib/router        traces and the policy history; the volume must be writable by user 10001
#   -e ROUTER_ADMIN_HOST=0.0.0.0 -e ROUTER_ADMIN_TOKEN_FILE=/run/secrets/admin -p 8081:8081
#                                           the trace page and /metrics from outside; off loopback they need a token
# All settings: docs/settings.md. With Redis on one machine: compose.yaml. In Kubernetes: docs/kubernetes.md.
# It uses no syntax newer than buildah 1.28: no heredoc, no `COPY --link`, no `HEALTHCHECK --start-interval`.

# The base of both stages: Python 3.11 or later. Pin it by digest where builds must be repeatable:
#   --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build

# Where packages come from, for those who do not ask the public index: a mirror, or a folder of wheels in the build.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements requirements

# What runs: exactly the locked packages, each checked against its hash; wheels only, as there is no compiler here. The
# environment never has a pip of its own, nor the setuptools that Python 3.11 adds and with them a `.pth` start-up hook.
RUN python3 -m venv --without-pip /opt/router \
 && python3 -m pip --python /opt/router/bin/python install --no-compile --require-hashes --only-binary :all: -r requirements/run.txt

# What builds: hatchling. Nothing of this environment is in the image.
RUN python3 -m venv --without-pip /opt/build \
 && python3 -m pip --python /opt/build/bin/python install --require-hashes --only-binary :all: -r requirements/build.txt

COPY pyproject.toml README.md ./
COPY policies policies
COPY router router
# Compiled here, once, for nothing can be written later; by content and not by time, so that the same sources make the
# same files.
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
 && python3 -m pip --python /opt/router/bin/python install --no-compile --no-deps --no-index /dist/*.whl \
 && /opt/router/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/router/lib

# Nothing may run before the router does: a hook of a package would, in every process and every health check.
COPY tools/__init__.py tools/start_hooks.py tools/
RUN python3 -m tools.start_hooks /opt/router


FROM ${BASE}

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="model-router" \
      org.opencontainers.image.description="A proxy that speaks the Anthropic API and sends each request to the model it needs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Of the base only the interpreter is needed: what installs packages goes, Debian's start-up hook, and all set-user-id bits.
RUN rm -rf /etc/python3*/sitecustomize.py /usr/lib/python3*/sitecustomize.py /usr/lib/python3*/__pycache__/sitecustomize.* \
           /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/site-packages /usr/local/bin/pip* \
           /usr/lib/python3*/ensurepip /usr/lib/python3/dist-packages /usr/bin/pip* /usr/share/python-wheels \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && install -d -o 10001 -g 10001 /var/lib/router

COPY --from=build /opt/router /opt/router
COPY policies /etc/router/policies

ENV PATH=/opt/router/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ROUTER_HOST=0.0.0.0 \
    ROUTER_POLICIES=/etc/router/policies \
    ROUTER_TRACES=sqlite:////var/lib/router/router.db

# By number, so that Kubernetes can check `runAsNonRoot` without a user database.
USER 10001:10001
WORKDIR /var/lib/router
EXPOSE 8080 8081
STOPSIGNAL SIGTERM

# Asked from inside, on the port that the settings name; no curl and no shell is needed for it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('ROUTER_ADMIN_PORT', '8081') + '/readyz', timeout=2)"]

# Exec form: the router is process 1 and gets SIGTERM itself. It gives requests under way 28 seconds, so stop it with
# more patience than the default: docker stop --time 40.
ENTRYPOINT ["router"]
CMD ["serve"]
